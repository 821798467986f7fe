"""Configurations read for what they make a loader import, run or download: by the keys that are known, and by the shape of
values under keys that are not."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import LimitExceeded
from ..rules import Rule
from . import remote_rules as rules
from .expressions import EVALUATING, hostile_expression
from .targets import DANGEROUS, is_hostile, judge_known, passes

MOST_VALUES = 200_000
MOST_ASKED = 1_000_000  # of one configuration; tables of tens of thousands of added tokens are honest
_ARCHIVES = ("weight_map", "vocab", "merges", "added_tokens_decoder", "id2label", "label2id", "log_history")

#: libraries whose names in a configuration are honest
KNOWN = frozenset((
    "transformers", "sentence_transformers", "diffusers", "torch", "peft", "timm", "onnxruntime", "optimum",
    "accelerate", "keras", "tensorflow", "tf_keras", "nemo", "nemo_text_processing", "pytorch_lightning", "lightning",
    "lightning_fabric", "torchvision", "torchaudio", "open_clip", "flair", "spacy", "spacy_transformers", "setfit",
    "span_marker", "pylate", "model2vec", "numpy", "jax", "flax", "optax", "mlx", "mlx_lm", "mlx_vlm", "vllm",
    "llmcompressor", "compressed_tensors", "auto_gptq", "gptqmodel", "awq", "bitsandbytes", "megatron", "deepspeed",
    "trl", "axolotl", "llamafactory", "unsloth", "fairseq", "fairseq2", "espnet", "espnet2", "speechbrain",
    "asteroid", "pyannote", "tokenizers", "datasets", "evaluate", "safetensors", "huggingface_hub", "sklearn",
    "skops", "xgboost", "torchtune", "litgpt", "lit_gpt", "mergekit", "stable_diffusion", "deepfloyd_if", "onnx",
    "paddlenlp", "ultralytics", "thinc", "allennlp", "stanza", "gliner", "colbert", "ragatouille", "langchain",
    "cosmos", "omegaconf", "hydra", "apex", "transformer_engine", "haystack", "torch_geometric", "botorch", "pyro",
    "gpytorch", "ldm", "sgm", "espnet3", "hydra_plugins", "monai", "mmengine", "mmcv", "mmdet", "mmseg", "mmpose", "detectron2",
    "audiocraft", "lerobot", "kornia", "einops", "funasr", "modelscope", "xformers",
    "sentencepiece", "anomalib", "dynamic_network_architectures", "nnunetv2", "torchmetrics",
))  # fmt: skip
#: pipelines of diffusers that a model_index.json names in place of a library
_PIPELINES = re.compile(
    r"stable_diffusion\w*|deepfloyd_if|kandinsky\w*|paint_by_example|unclip|audioldm\w*|shap_e|"
    r"wuerstchen|latte|stable_cascade|ledits_pp|blip_diffusion|unidiffuser|pag|latent_diffusion|"
    r"spectrogram_diffusion|pixart_\w+|flux\w*|hunyuan\w*|ltx\w*|cogvideo\w*|sana\w*|wan\w*|"
    r"qwenimage\w*|lumina\w*|omnigen\w*|mochi\w*|aura_flow|controlnet\w*|i2vgen_xl|musicldm|"
    r"versatile_diffusion|cosmos\w*|chroma\w*|hidream\w*|skyreels\w*|bria\w*"
)  # fmt: skip
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(?:@[\w.-]+)?(?::[\w.]+)?")
#: as transformers tells a repository from the name of an implementation
_KERNEL = re.compile(r"[^/:]+/[^/:]+(?:@[^/:]+)?(?::[^/:]+)?")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?::[A-Za-z_]\w*)?|[A-Za-z_]\w*:[A-Za-z_]\w*")
_HANDLED = re.compile(r"\.(?:auto_map|custom_pipelines|custom_generate)(?=[.\[]|$)")  # what :func:`_by_key` says
_OTHER = re.compile(r"[\w.-]+(?:/[\w.-]+)?--[\w.]+\.\w+")
_TARGETS = ("_target_", "__target__", "_class_", "@class", "class_path", "py_object", "py/object", "py/type", "py/function",
            "py/reduce")  # fmt: skip
_IMPORTING = re.compile(
    r"(?:.*_|^)(?:class|cls|class_?name|class_?path|module|module_?name|module_?path|target|import|import_?path|factory|entry_?point|callable|"
    r"function|func|fn|hook|plug_?in|loader|handler|impl|backend_class|processor_class|parent_library|activation(?:_function|_fn)?|"
    r"pre_?processor|post_?processor|code|script|python_file|model_file|py_module)s?_?$", re.IGNORECASE
)  # fmt: skip
_IMPLEMENTATION = re.compile(
    r"_?\w*(?:attn|attention|experts?|kernel\w*|moe)_?(?:implementation|impl|backend|mapping|config)?(?:_internal)?$"
)
#: a library by its path, or another one than QNN's own, which are looked for where it is installed
_NATIVE = re.compile(r"[/\\]|^(?!Qnn\w+\.dll$|libQnn\w+\.so$).*\.(?:so|dll|dylib)(?:\.\d+)*$")
_YES = re.compile(r"true|yes|on|1", re.IGNORECASE)
_MODULES = ("module", "__module__", "module_name", "py_module")
_NAMES = ("name", "class", "__class__", "__name__", "__type__", "class_name", "function", "qualname", "attr")
_CODE_FILE = re.compile(r"[\w./\\-]+\.(?:py|pyc|so|dll|dylib|sh|pyd)")


@dataclass(frozen=True)
class Ask:
    """One value that makes a loader import or fetch something; ``files`` are Python files that it names."""

    rule: Rule
    place: str
    message: str
    evidence: str
    files: tuple[str, ...] = ()
    severity: str = ""


class Pairs(list):  # type: ignore[type-arg]
    """A JSON object as its pairs: readers differ on which of two equal keys counts, so both are looked at."""


def parsed(data: bytes) -> Any:
    """A JSON value with objects as :class:`Pairs`; ``None`` when it is none.

    Raises:
        LimitExceeded: nested deeper than this process follows; another one may.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=Pairs)
    except ValueError:
        return None
    except RecursionError as error:
        raise LimitExceeded("values nested too deep to be followed") from error


def asks(name: str, value: Any, local: frozenset[str] = frozenset()) -> Iterator[Ask]:
    """Everything in one configuration that makes a loader import or download code. ``local`` are names of modules that lie in
    the folder: they come before a library of that name.

    Raises:
        LimitExceeded: more values than are looked at.
    """
    base, known = name.rsplit("/", 1)[-1], KNOWN - local
    if base == "modules.json" and isinstance(value, list):
        yield from _modules(value, known)
    if base in ("router_config.json", "config.json") and isinstance(value, Pairs):
        yield from _routes(value, known)
    if base in ("model_index.json", "modular_model_index.json") and isinstance(value, Pairs):
        yield from _components(value, known)
    pending: list[tuple[str, str, Any]] = [("$", "", value)]
    count = 0
    left = [MOST_VALUES]
    evaluated = isinstance(value, Pairs) and any(key in EVALUATING for key, _ in value)
    while pending:
        count += 1
        if count > MOST_ASKED:
            raise LimitExceeded(f"more than {MOST_ASKED} values")
        path, key, here = pending.pop()
        if isinstance(here, Pairs):
            pending += [(f"{path}.{k}"[:200], str(k), v) for k, v in reversed(here)
                        if k not in _ARCHIVES
                        and (v is True or isinstance(v, str | list | Pairs) or k == "trust_remote_code")]  # fmt: skip
        elif isinstance(here, list):
            pending += [(f"{path}[{n}]"[:200], key, v) for n, v in enumerate(here) if isinstance(v, str | list | Pairs)]
        yield from _by_key(base, path, key, here, left)
        if isinstance(here, str):
            yield from _by_shape(base, path, key, here, known)
            if evaluated and (what := hostile_expression(here)):
                yield Ask(rules.HOSTILE_PATH, path, f"an expression that MONAI evaluates calls {what}", here[:300])


def _strings(value: Any, left: list[int]) -> list[str]:
    """The strings in a value, the outer ones first; ``left[0]`` counts down the values that may be looked at for one file.

    Raises:
        LimitExceeded: no more are left.
    """
    found: list[str] = []
    pending = deque([value])
    while pending:
        left[0] -= 1
        if left[0] < 0:
            raise LimitExceeded(f"more than {MOST_VALUES} values below keys that name code")
        here = pending.popleft()
        if isinstance(here, str):
            found.append(here)
        elif isinstance(here, Pairs):
            pending += [v for _, v in here]
        elif isinstance(here, list):
            pending += here
    return found


def _by_key(base: str, path: str, key: str, value: Any, left: list[int]) -> Iterator[Ask]:
    if key in ("auto_map", "custom_pipelines", "custom_generate") and value and "[" not in path.rsplit(".", 1)[-1]:
        texts = _strings(value, left)
        names = [text for text in texts if "." in text or "--" in text or "/" in text]
        elsewhere = [text for text in names if "--" in text or (key == "custom_generate" and "/" in text)]
        files = tuple(text.split("--")[-1].split(".")[0] + ".py" for text in names)
        shown = ", ".join(texts[:6])
        if elsewhere:
            yield Ask(rules.ELSEWHERE, path, f"{key} names code of another repository: {elsewhere[0]}", shown)
        if names != elsewhere or not names:
            yield Ask(rules.REMOTE, path, f"{key} names code of this folder: {shown[:160]}", shown, files)
    elif isinstance(value, Pairs) and (target := _in_parts(value)):
        yield Ask(rules.HOSTILE_PATH, path, f"{key or 'an object'} names {target[:160]}, in parts", target[:300])
    elif key == "trust_remote_code" and (value is True or (type(value) is int and value == 1) or _YES.fullmatch(str(value))):
        loader = base.endswith("config.json") or base in ("params.json", "model_index.json")
        yield Ask(rules.CONSENT, path, "trust_remote_code is true", "", severity="" if loader else "note")
    elif key == "parent_library" and isinstance(value, str) and value and "." not in value and value not in KNOWN:
        yield Ask(rules.CLASS_PATH, path, f"{key} names {value[:160]} (PEFT imports it)", value[:300], _files(value))
    elif key == "model_file" and isinstance(value, str) and value.endswith(".py"):
        yield Ask(rules.REMOTE, path, f"model_file names code of this folder: {value[:160]} (mlx-lm imports it)", value,
                  (value.rsplit("/", 1)[-1],))  # fmt: skip
    elif isinstance(value, str) and _IMPLEMENTATION.fullmatch(key.lower()) and _kernel(value):
        yield Ask(rules.KERNEL, path, f"{key} names the repository {value[:160]}", value[:200])
    elif isinstance(value, Pairs | list) and re.search(r"kernel|attn_implementation|_implementation", key):
        for text in filter(_kernel, _strings(value, left)):
            yield Ask(rules.KERNEL, path, f"{key} names the repository {text[:160]}", text[:200])
    elif key in ("custom_ops_library", "backend_path", "library_path") and isinstance(value, str) and (
        key == "custom_ops_library" or _NATIVE.search(value)
    ) and value:
        yield Ask(rules.REMOTE, path, f"{key} names the native library {value[:160]}, which ONNX Runtime loads", value[:300])
    elif key == "_attn_implementation_internal" and isinstance(value, str) and not re.fullmatch(r"[a-z0-9_]+", value):
        yield Ask(rules.KERNEL, path, f"{key} is {value[:160]!r}", value[:200])


def _in_parts(value: Pairs) -> str:
    """A function that runs programs or code, named by its module and its name apart (fiddle's ``pyref``, skops, NeMo 2), or by a
    list (LangChain's ``id``); nothing where it is none."""
    said = {str(k): v for k, v in value if isinstance(v, str)}
    for first in _MODULES:
        for last in _NAMES if first in said else ():
            if last in said and passes(target := f"{said[first]}.{said[last]}"):
                return target
    listed = dict(value).get("id") if any(k == "lc" for k, _ in value) else None
    if isinstance(listed, list) and all(isinstance(part, str) for part in listed) and passes(target := ".".join(listed)):
        return target
    return ""


def _kernel(value: str) -> bool:
    """Whether an implementation is a repository's, behind whatever wrapper (``paged|...``)."""
    return any(_KERNEL.fullmatch(part.strip()) for part in value.split("|"))


def _by_shape(base: str, path: str, key: str, value: str, known: frozenset[str]) -> Iterator[Ask]:
    if len(value) > 300:
        if (key in _TARGETS or _IMPORTING.fullmatch(key)) and _DOTTED.fullmatch(value.strip()):  # os.path.os.path.os is os
            yield Ask(rules.CLASS_PATH, path, f"{key} names {value[:100]}…, a path of {len(value)} letters", value[:300])
        return
    value = value.strip()
    root = value.split(".")[0].split(":")[0]
    if DANGEROUS.fullmatch(value):
        yield Ask(rules.HOSTILE_PATH, path, f"{key or 'a value'} names {value}", value)
    elif _DOTTED.fullmatch(value) and (is_hostile(value) if key in _TARGETS else _IMPORTING.fullmatch(key) and passes(value)):
        yield Ask(rules.HOSTILE_PATH, path, f"{key} names {value}", value)
    elif _HANDLED.search(path) or (key == "model_file" and value.endswith(".py")):
        return
    elif key in _TARGETS and _DOTTED.fullmatch(value):
        level = judge_known(value) if key in ("_target_", "__target__", "class_path") and root in known else ""
        if root not in known or level == "suspicious":
            yield Ask(rules.CLASS_PATH, path, f"{key} names {value}", value, _files(value))
        elif level:
            yield Ask(rules.HOSTILE_PATH, path, f"{key} names {value}", value)
    elif _OTHER.fullmatch(value) and "/" in value:
        yield Ask(rules.ELSEWHERE, path, f"{key} names code of another repository: {value}", value)
    elif _IMPORTING.fullmatch(key) and base != "modules.json":
        if _CODE_FILE.fullmatch(value):
            yield Ask(rules.REMOTE, path, f"{key} names the file {value}", value, (value.replace("\\", "/").rsplit("/", 1)[-1],))
        elif _DOTTED.fullmatch(value) and root not in known and not _REPOSITORY.fullmatch(value):
            yield Ask(rules.CLASS_PATH, path, f"{key} names {value}", value, _files(value))
    elif key in ("architectures", "tokenizer_class", "model_type") and re.fullmatch(r"[\w./-]+(?:[.:/]|--)\w+", value) and (
        ":" in value or "--" in value or (key != "model_type" and "." in value)
    ):
        yield Ask(rules.CLASS_PATH, path, f"{key} names {value}, which is no plain class name", value, _files(value))


def _files(value: str) -> tuple[str, ...]:
    return (value.split(".")[0].split(":")[0] + ".py",)


def _modules(modules: list[Any], known: frozenset[str]) -> Iterator[Ask]:
    """The list of modules of a sentence-transformers model: their ``type`` is imported."""
    for n, module in enumerate(modules):
        kind = dict(module).get("type") if isinstance(module, Pairs) else None
        if not isinstance(kind, str) or kind.split(".")[0] in known:
            continue
        if DANGEROUS.fullmatch(kind.strip()):
            continue
        rule = rules.ELSEWHERE if "--" in kind else rules.REMOTE
        yield Ask(rule, f"$[{n}].type", f"the module type {kind[:160]} is imported", kind, () if "--" in kind else _files(kind))


def _routes(config: Pairs, known: frozenset[str]) -> Iterator[Ask]:
    """The modules that a router of sentence-transformers (or its older ``Asym``) imports, by their names in it."""
    found = dict(config)
    types = found.get("types")
    for name, kind in types if isinstance(types, Pairs) and "structure" in found else ():
        if isinstance(kind, str) and kind.split(".")[0] not in known and not DANGEROUS.fullmatch(kind.strip()):
            rule = rules.ELSEWHERE if "--" in kind else rules.REMOTE
            yield Ask(rule, f"$.types.{name}"[:200], f"the module type {kind[:160]} is imported", kind[:300],
                      () if "--" in kind else _files(kind))  # fmt: skip


def _components(index: Pairs, known: frozenset[str]) -> Iterator[Ask]:
    """The parts of a diffusers pipeline: (library, class) each, and the class of the pipeline itself."""
    for key, value in index:
        if key == "_class_name" and isinstance(value, list):
            of = f"the pipeline's class is {value[-1]!s:.80} of {value[0]!s:.80}" if value else "the pipeline has no class"
            yield Ask(rules.REMOTE, "$._class_name", of, str(value)[:200],
                      (f"{value[0]}.py",) if value else ())  # fmt: skip
        if key.startswith("_") or not isinstance(value, list) or len(value) not in (2, 3) or not isinstance(value[0], str):
            continue
        library = value[0]
        if library.split(".")[0] in known or _PIPELINES.fullmatch(library):
            continue
        rule = rules.ELSEWHERE if "--" in library or "/" in library else rules.REMOTE
        of = f"the part {key} is {value[1]!s:.80} of {library[:80]}"
        yield Ask(rule, f"$.{key}", of, str(list(value))[:200], (f"{library}.py",))


_YAML_TARGET = re.compile(
    r"(?:^|[{,])[ \t-]*['\"]?(_target_|__target__|class_path|_class_)['\"]?\s*:\s*['\"]?([\w.]+)", re.MULTILINE)  # fmt: skip
_YAML_TRUST = re.compile(r"^[ \t-]*trust_remote_code\s*:\s*(?:true|yes|on)\b", re.MULTILINE | re.IGNORECASE)


def yaml_asks(text: str, local: frozenset[str] = frozenset()) -> Iterator[Ask]:
    """The same for the keys of a YAML file that instantiate by name."""
    for match in _YAML_TARGET.finditer(text):
        key, value = match.groups()
        place = f"line {text.count(chr(10), 0, match.start()) + 1}"
        if DANGEROUS.fullmatch(value):
            yield Ask(rules.HOSTILE_PATH, place, f"{key} names {value}", value)
        elif "." in value and value.split(".")[0] not in KNOWN - local:
            yield Ask(rules.CLASS_PATH, place, f"{key} names {value}", value, _files(value))
        elif "." in value and key != "_target_" and (level := judge_known(value)):  # of that key, where YAML is read
            yield Ask(rules.HOSTILE_PATH if level == "malicious" else rules.CLASS_PATH, place, f"{key} names {value}", value)
    if (trust := _YAML_TRUST.search(text)) is not None:
        place = f"line {text.count(chr(10), 0, trust.start()) + 1}"
        yield Ask(rules.CONSENT, place, "trust_remote_code is true", "", severity="note")
