"""Configurations that name what is built: as SpeechBrain, NeMo, Hydra, MONAI, torchtune and diffusers write them, and hostile ones
whose names lie in the same libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from . import Case
from .assembly import SHELL

Build = Callable[[Path], None]
LOAD = "from hyperpyyaml import load_hyperpyyaml\nload_hyperpyyaml((folder / 'hyperparams.yaml').open())\n"


def _yaml(text: str, name: str = "hyperparams.yaml") -> Build:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def _hydra(target: str, more: str = "") -> Build:
    return _yaml(f"model:\n  _target_: {target}\n{more}", "config.yaml")


def _json(target: str) -> Build:
    return lambda folder: (folder / "config.json").write_text(json.dumps({"head": {"_target_": target}})) and None


#: a recognizer with a recurrent language model, as its recipe is written
SPEECH = """
seed: 1986
__set_seed: !apply:torch.manual_seed [!ref <seed>]
output_folder: !ref results/CRDNN/<seed>
sample_rate: 16000
n_fft: 400
activation: !name:torch.nn.LeakyReLU
dnn_neurons: 512
tuple: (4, 4)
epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
    limit: 15
normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
compute_features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_fft: !ref <n_fft>
enc: !new:speechbrain.lobes.models.CRDNN.CRDNN
    activation: !ref <activation>
    cnn_kernelsize: (3, 3)
    dnn_neurons: !ref <dnn_neurons>
env_corrupt: !new:speechbrain.augment.augmenter.Augmenter
    augmentations: [!new:speechbrain.augment.time_domain.SpeedPerturb {orig_freq: 16000, speeds: [95, 100, 105]}]
log_softmax: !new:speechbrain.nnet.activations.Softmax
    apply_log: True
ctc_cost: !name:speechbrain.nnet.losses.ctc_loss
    blank_index: 0
seq_cost: !name:speechbrain.nnet.losses.nll_loss
    label_smoothing: 0.1
kld: !name:speechbrain.nnet.losses.kldiv_loss
valid_search: !new:speechbrain.decoders.S2SRNNBeamSearcher
    scorer: !new:speechbrain.decoders.scorer.ScorerBuilder
        full_scorers: [!new:speechbrain.decoders.scorer.CoverageScorer {vocab_size: 5000}]
lm_model: !new:speechbrain.lobes.models.RNNLM.RNNLM
    activation: !name:torch.nn.LeakyReLU
tokenizer: !new:sentencepiece.SentencePieceProcessor
modules:
    enc: !ref <enc>
    normalize: !ref <normalize>
model: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <log_softmax>]
adam_opt_class: !name:torch.optim.Adadelta
    lr: 1.0
lr_annealing: !new:speechbrain.nnet.schedulers.NewBobScheduler
    initial_value: 1.0
noam: !name:speechbrain.nnet.schedulers.inverse_learning_rate_scheduler
error_rate_computer: !name:speechbrain.utils.metric_stats.ErrorRateStats
cer_computer: !name:speechbrain.utils.metric_stats.ErrorRateStats
    split_tokens: True
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: !ref <output_folder>/save
    recoverables:
        model: !ref <model>
train_logger: !new:speechbrain.utils.train_logger.FileTrainLogger
    save_file: !ref <output_folder>/train_log.txt
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    collect_in: !ref <output_folder>/save
    loadables:
        lm: !ref <lm_model>
    custom_hooks:
        lm: !name:speechbrain.utils.checkpoints.torch_recovery
    paths:
        lm: speechbrain/asr-crdnn-rnnlm-librispeech/lm.ckpt
dataset: !apply:speechbrain.dataio.dataset.DynamicItemDataset.from_csv
    csv_path: train.csv
read: !name:speechbrain.dataio.dataio.read_audio
pad: !name:speechbrain.dataio.batch.PaddedBatch
undo: !name:speechbrain.utils.data_utils.undo_padding
best: !name:speechbrain.utils.checkpoints.average_checkpoints
seeded: !apply:speechbrain.utils.seed_everything [!ref <seed>]
wav2vec2: !new:speechbrain.lobes.models.huggingface_transformers.wav2vec2.Wav2Vec2
    source: facebook/wav2vec2-base
blank: !copy <seed>
sorted: !applyref:sorted [3, 1]
decoding: !PLACEHOLDER
window: !apply:torch.hann_window [400]
rest: !include:more.yaml
"""
NEMO = """
target: nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel
preprocessor:
  _target_: nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor
  sample_rate: 16000
spec_augment:
  _target_: nemo.collections.asr.modules.SpectrogramAugmentation
encoder:
  _target_: nemo.collections.asr.modules.ConformerEncoder
decoder:
  _target_: nemo.collections.asr.modules.RNNTDecoder
generator:
  _target_: nemo.collections.tts.modules.hifigan_modules.Generator
aligner:
  _target_: nemo.collections.tts.data.text_to_speech_tokenizers.EnglishPhonemesTokenizer
  g2p:
    _target_: nemo_text_processing.g2p.modules.EnglishG2p
optim:
  name: adamw
  sched: {name: NoamAnnealing}
exp_manager:
  log: ${now:%Y}
"""
HYDRA = """
cwd:
  _target_: hydra.utils.get_original_cwd
act:
  _target_: hydra.utils.get_method
  path: torch.nn.functional.relu
net:
  _target_: torchvision.models.resnet50
  weights: null
vit:
  _target_: timm.create_model
  model_name: vit_base
opt:
  _target_: torch.optim.AdamW
  _partial_: true
sched:
  _target_: transformers.get_cosine_schedule_with_warmup
onecycle:
  _target_: torch.optim.lr_scheduler.OneCycleLR
tok:
  _target_: transformers.AutoTokenizer.from_pretrained
  pretrained_model_name_or_path: gpt2
lm:
  _target_: transformers.AutoModelForCausalLM.from_config
pipe:
  _target_: transformers.pipeline
  model: gpt2
loss: {_target_: torch.nn.functional.cross_entropy, _partial_: true}
init: {_target_: torch.nn.init.xavier_uniform_, _partial_: true}
fill: {_target_: torch.zeros, size: [3]}
loader:
  _target_: torch.utils.data.DataLoader
  collate_fn: {_target_: torch.utils.data.default_collate, _partial_: true}
metric: {_target_: torchmetrics.functional.accuracy, _partial_: true}
rearrange: {_target_: einops.layers.torch.Rearrange, pattern: b c -> c b}
clip: {_target_: torch.nn.utils.clip_grad_norm_, _partial_: true}
trainer:
  _target_: lightning.pytorch.Trainer
  callbacks: [{_target_: lightning.pytorch.callbacks.ModelCheckpoint, save_top_k: 1}]
tfm: {_target_: torchvision.transforms.functional.to_tensor, _partial_: true}
audio: {_target_: torchaudio.load, _partial_: true}
dset: {_target_: detectron2.data.get_detection_dataset_dicts, names: coco}
lora: {_target_: peft.get_peft_model, _partial_: true}
diff: {_target_: diffusers.DDPMScheduler.from_pretrained, subfolder: scheduler}
conf: {_target_: omegaconf.OmegaConf.create}
"""
TUNE = """
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /tmp/Meta-Llama-3-8B/original/tokenizer.model
model:
  _component_: torchtune.models.llama3.lora_llama3_8b
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset}
collate: {_component_: torchtune.data.padded_collate_sft}
optimizer: {_component_: torch.optim.AdamW, fused: true}
loss: {_component_: torchtune.modules.loss.CEWithChunkedOutputLoss}
lr_scheduler: {_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup}
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer}
profiler: {_component_: torchtune.training.setup_torch_profiler}
metric_logger: {_component_: torchtune.training.metric_logging.DiskLogger}
"""
MONAI = """
imports: [$import glob]
network_def: {_target_: monai.networks.nets.UNet, spatial_dims: 3}
loss: {_target_: monai.losses.DiceCELoss}
collate: {_target_: monai.data.list_data_collate}
inferer: {_target_: monai.inferers.SlidingWindowInferer}
handlers: [{_target_: monai.handlers.CheckpointLoader, load_path: $@ckpt_dir + '/model.pt'}]
post: {_target_: monai.transforms.Compose, transforms: [{_target_: monai.transforms.Activationsd, keys: pred}]}
seed: {_target_: monai.utils.set_determinism, seed: 1}
"""

SPEECHBRAIN = "speechbrain.utils.superpowers.run_shell"
NAMED = [
    ("applyref", f"x: !applyref:os.system [{json.dumps(SHELL)}]\n", "malicious", LOAD),
    ("apply", f"x: !apply:os.system [{json.dumps(SHELL)}]\n", "malicious", LOAD),
    ("module", "x: !module:os\n", "malicious", ""),
    ("new", f"x: !new:subprocess.Popen\n    args: {json.dumps(SHELL)}\n    shell: True\n", "malicious", LOAD),
    ("name", "x: !name:os.system\n", "malicious", ""),
    ("shell", f"x: !apply:{SPEECHBRAIN} [id]\n", "malicious", ""),
    ("importer", "x: !apply:speechbrain.utils.importutils.import_from_path [x.py]\n", "malicious", ""),
    ("foreign-class", "x: !new:speechbrain.inference.interfaces.foreign_class\n    source: evil/x\n", "malicious", ""),
    ("download", "x: !apply:speechbrain.utils.data_utils.download_file [a, b]\n", "suspicious", ""),
    ("passes", "x: !name:speechbrain.utils.checkpoints.torch.load\n", "malicious", ""),
    ("passes-module", "x: !module:speechbrain.utils.data_utils.urllib.request\n", "malicious", ""),
    ("from-hparams", "x: !apply:speechbrain.inference.ASR.EncoderASR.from_hparams {source: evil/x}\n", "suspicious", ""),
    ("includes-text", "x: !include:notes.txt\n", "suspicious", ""),
    ("includes-outside", "x: !include:../other/hyperparams.yaml\n", "suspicious", ""),
]
TARGETS = [
    (SPEECHBRAIN, "malicious"), ("torch.nn.modules.module.torch.load", "malicious"),
    ("mmengine.utils.package_utils.install_package", "malicious"), ("monai.apps.utils.download_and_extract", "suspicious"),
    ("torchvision.datasets.utils.download_and_extract_archive", "suspicious"), ("torch.save", "suspicious"),
    ("transformers.utils.hub.huggingface_hub.Repository", "suspicious"), ("transformers.utils.logging.sys.exit", "malicious"),
    ("diffusers.StableDiffusionPipeline.from_single_file", "suspicious"), ("transformers.modeling_utils.np.load", "malicious"),
    ("nemo.core.classes.ModelPT.restore_from", "suspicious"),
]  # fmt: skip
#: what Ultralytics runs where the dataset that a YAML file describes is not there
DOWNLOADS = [
    ("python", "download: |\n  import os\n  os.system('touch marker')\n", "malicious"),
    ("imported", "download: __import__('os').system('touch marker')\n", "malicious"),
    ("shell", "download: bash -c 'touch marker'\n", "malicious"),
    ("script", "download: bash data/scripts/get_coco.sh\n", "suspicious"),
    ("unpacks", "download: |\n  from ultralytics.utils.downloads import download\n  download(['https://x.org/a'])\n", "suspicious"),
]
DATASET = "path: ../datasets/coco8\ntrain: images/train\nval: images/val\nnames:\n  0: person\n"

#: older loaders of YOLO evaluate what stands for a layer, and its arguments
LAYERS = "nc: 80\nbackbone:\n  - [-1, 1, Conv, [64, 6, 2, 2]]\n  - [-1, 1, \"{}\", [128]]\n"

HOSTILE = [
    *(Case(f"layer-evaluated-{n}", _yaml(LAYERS.format(text), "yolov5s.yaml"), "malicious", ("config-names-code",))
      for n, text in enumerate(("__import__('os').system('touch marker')", "subprocess.run(['touch', 'marker']) or Conv",
                                "getattr(os, 'sys' + 'tem')('touch marker')"))),
    *(Case(f"dataset-download-{name}", _yaml(DATASET + text, "data.yaml"), verdict, ("config-names-code",))
      for name, text, verdict in DOWNLOADS),
    *(Case(f"speechbrain-{name}", _yaml(text), verdict, ("config-names-code",), fires, needs=("hyperpyyaml",) if fires else ())
      for name, text, verdict, fires in NAMED),
    *(Case(f"target-{target.replace('.', '-').replace('_', '-')}", _hydra(target), verdict, ("config-names-code",))
      for target, verdict in TARGETS),
    Case("target-in-json-shell", _json(SPEECHBRAIN), "malicious", ("config-calls",)),
    Case("target-in-json-download", _json("torchvision.datasets.utils.download_url"), "suspicious", ("config-imports",)),
    Case("target-component", _yaml("a:\n  _component_: monai.apps.utils.download_and_extract\n", "config.yaml"), "suspicious",
         ("config-names-code",)),
    Case("target-by-path", _hydra("hydra.utils.get_method", f"  path: {SPEECHBRAIN}\n"), "malicious", ("config-names-code",)),
    *(Case(f"target-trusts-{n}", _hydra(target, "  trust_remote_code: true\n"), "suspicious", ("config-names-code",))
      for n, target in enumerate(("transformers.pipeline", "transformers.AutoModel.from_pretrained"))),
]  # fmt: skip


def _speech(folder: Path) -> None:
    (folder / "hyperparams.yaml").write_text(SPEECH)
    (folder / "more.yaml").write_text("a: !new:speechbrain.nnet.containers.ModuleList\n")


PLAIN = ("torch.nn.functional.silu", "torchvision.models.resnet18", "transformers.AutoModel.from_pretrained", "timm.create_model")
HONEST = [
    Case("speechbrain-recipe", _speech),
    Case("nemo-recipe", _yaml(NEMO, "model_config.yaml")),
    Case("layer-plain", _yaml(LAYERS.format("nn.Upsample"), "yolov5s.yaml")),
    Case("dataset-archive", _yaml(DATASET + "download: https://github.com/x/y/releases/download/v1/coco8.zip\n", "data.yaml")),
    Case("dataset-plain-word", _yaml(DATASET + "download: true\nother:\n  download: print(1)\n", "data.yaml")),
    Case("hydra-recipe", _yaml(HYDRA, "config.yaml")),
    Case("torchtune-recipe", _yaml(TUNE, "config.yaml")),
    Case("monai-recipe", _yaml(MONAI, "inference.yaml")),
    *(Case(f"target-in-json-plain-{n}", _json(target)) for n, target in enumerate(PLAIN)),
]
CASES = HOSTILE + HONEST
