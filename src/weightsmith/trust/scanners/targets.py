"""Dotted names in configurations by which a loader reaches a function that runs programs or code.

Loaders follow such a name attribute by attribute, and a library's modules hold what they import:
``transformers.utils.hub.os.system`` is ``os.system``. So it is not the library at its beginning that decides, but what is passed
on the way and what is called.
"""

from __future__ import annotations

import re

from .python_tables import RUNNERS

DANGEROUS = re.compile(
    r"(?:os|posix|nt)\.(?:system|popen|exec\w*|spawn\w*|remove|unlink|posix_spawn\w*|startfile)|subprocess\.\w+|(?:builtins|__builtin__)\."
    r"(?:exec|eval|compile|__import__|open|getattr)|runpy\.\w+|pty\.spawn|commands\.\w+|importlib\.import_module|pickle\.loads?|"
    r"marshal\.loads|shutil\.rmtree|ctypes\.\w[\w.]*|webbrowser\.open|code\.interact|timeit\.timeit|pip\.\w[\w.]*|"
    r"pathlib\.Path\.\w+|torch\.(?:load|hub\.\w+|jit\.load|serialization\.load|package\.\w[\w.]*|utils\.(?:collect_env|cpp_extension)\.\w+)|"
    r"transformers\.dynamic_module_utils\.\w+|numpy\.(?:load|testing\.\w[\w.]*|f2py\.\w[\w.]*)|pandas\.(?:read_pickle|eval)|"
    r"(?:joblib|dill|cloudpickle)\.\w+|yaml\.(?:unsafe_load|load)|cProfile\.run|bdb\.\w[\w.]*|pdb\.run|trace\.\w[\w.]*"
)
_CALLS = re.compile(
    rf"(?:builtins|__builtin__|{RUNNERS})(?:\.|\Z)"
    r"|.*\.(?:eval|exec|system|popen|Popen|run|check_output|check_call|call_command|spawn\w*|__import__|import_module|load_module"
    r"|exec_module|_load_unlocked|load_inline|hub\.load|cpp_extension\.\w+)\Z",
    re.ASCII,
)
_INNER = frozenset({
    "os", "posix", "subprocess", "shutil", "builtins", "importlib", "pickle", "marshal", "socket", "runpy", "ctypes",
    "__globals__", "__builtins__", "__init__",
})  # fmt: skip
#: what configurations call in good faith: it runs nothing that it is not handed in a name of its own
_HARMLESS = re.compile(
    r"(?:builtins|__builtin__)\.(?:list|dict|tuple|set|frozenset|str|int|float|bool|len|range|min|max|sum|abs|round|sorted|slice)"
    r"|functools\.partial|operator\.(?:add|sub|mul|neg|itemgetter)|pathlib\.(?:Pure)?(?:Posix|Windows)?Path"
)


def passes(target: str) -> bool:
    """Whether a dotted name is known to run programs or code, or passes through a module that does behind its first part."""
    parts = target.strip().replace(":", ".").split(".")
    return bool(DANGEROUS.fullmatch(".".join(parts))) or not _INNER.isdisjoint(parts[1:])


def is_hostile(target: str) -> bool:
    """Whether a dotted name ends at, or passes through, something that runs programs or code, or reads pickles."""
    target = target.strip().replace(":", ".")
    return not _HARMLESS.fullmatch(target) and bool(
        _CALLS.match(target) or DANGEROUS.fullmatch(target) or not _INNER.isdisjoint(target.split(".")))  # fmt: skip


# -- names in libraries of models: what is called decides, not where it lies ------------------------------------

#: modules of the interpreter and of other libraries that a library's module holds because it imports them
_HELD = frozenset({
    "sys", "pty", "pydoc", "pkgutil", "zipimport", "distutils", "setuptools", "pip", "cloudpickle", "dill", "joblib", "webbrowser",
    "timeit", "asyncio", "urllib", "requests", "tempfile", "shlex", "glob", "zipfile", "tarfile", "urlopen", "functools", "inspect",
    "huggingface_hub", "np", "pd", "th",
})  # fmt: skip
_SHORT = {"np": "numpy", "pd": "pandas", "th": "torch"}
#: what the names of functions say that run programs or code, or import or install some
_RUNS = re.compile(
    r"(?:\w*_)?(?:run|shell|exec|execute|popen|spawn|import|install|subprocess|command)(?:_\w*)?|foreign_class"
    r"|load_(?:library|extension|inline|module)\w*", re.ASCII)  # fmt: skip
#: what the names of functions say that fetch, unpack, unpickle or write files
_FETCHES = re.compile(
    r"(?:\w*_)?(?:download|untar|unzip|unpack|fetch|urlretrieve|wget|curl|url|hub|unpickle|pickle|pkl|joblib)(?:_\w*)?"
    r"|(?:\w*_)?extract(?:all|_(?!\w*(?:feature|embed))\w*)?|load|load_(?:from_)?(?:checkpoint|model|weights|state|file|snapshot)\w*"
    r"|restore\w*|from_hparams|from_checkpoint|git_\w+|clone_\w+|save|savez\w*|dump|tofile|fromfile", re.ASCII)  # fmt: skip
_CLASS = re.compile(r"_*[A-Z]\w*", re.ASCII)
_MADE_BY = re.compile(
    r"from_(?:pretrained|config|csv|json|\w*dict\w*|arrays|list|yaml|opt|sequential)|create|build\w*|default\w*|of|apply", re.ASCII)
_WITH_TRUST = re.compile(r"(?:\w*_)?from_(?:pretrained|config)|pipeline", re.ASCII)
#: functions of any library that configurations name in good faith
_COMMON = re.compile(
    r"(?:set_|manual_)seed\w*|seed_everything|set_determinism|get_\w*schedule\w*|\w*_(?:scheduler|schedule|loss|metric|collate|fn)"
    r"|(?:pad|list_data|default)_collate|pipeline|get_(?:original_cwd|class|method|object|config|config_file|peft_model)|to_absolute_path"
    r"|instantiate|call|create_model|create_\w*(?:transform|optimizer|scheduler|dataset|loader)\w*|undo_padding|length_to_mask"
    r"|average_checkpoints|torch_recovery|torch_parameter_transfer|torch_lazy_recovery|accumulatable_wer_stats|apply_quirks|eval_mode"
    r"|lengths_arg_exists|decollate_batch|from_engine|stopping_fn_from_\w+|copy_model_state|get_default_optimizer_params|minDCF|EER",
    re.ASCII)  # fmt: skip
#: plain functions of torch and NumPy themselves
_ARITHMETIC = re.compile(
    r"(?:torch|numpy)\.(?:random\.\w+|tensor|array|as_tensor|from_numpy|asarray|zeros|ones|full|empty|eye|arange|linspace|logspace|rand\w*"
    r"|device|relu|tanh|sigmoid|softmax|log_softmax|gelu|sum|mean|median|max|min|abs|exp|log|log1p|log10|log2|sqrt|square|clamp|clip"
    r"|argmax|argmin|cat|stack|concatenate|squeeze|unsqueeze|transpose|reshape|flatten|div|mul|add|sub|matmul|einsum|norm|std|var|round"
    r"|floor|ceil|sin|cos|sign|pow|bool|dtype|b?float\d*|double|half|u?int\d*|long|complex\d*|is_tensor|numel|compile"
    r"|set_default_dtype|set_float32_matmul_precision|set_num_threads|get_default_dtype|hann_window|hamming_window|bartlett_window)"
    r"|torch\.(?:linalg|fft|special)\.\w+|numpy\.(?:linalg|fft|char|ma)\.\w+", re.ASCII)  # fmt: skip
#: parts of libraries whose functions build layers or work on tensors, and parts whose functions do anything else
_BUILDS = frozenset({
    "models", "modules", "nn", "layers", "losses", "loss", "functional", "transforms", "data", "dataio", "datasets", "optim",
    "optimizers", "schedulers", "scheduler", "lr_scheduler", "metrics", "collections", "processing", "nnet", "lobes", "decoders",
    "augment", "augmentations", "init", "ops", "handlers", "networks", "solver", "modeling", "activations", "tokenizers",
    "training", "rlhf", "inferers", "backbones", "components", "image",
    "filters", "geometry", "color", "compliance", "samplers", "callbacks",
    "evaluation", "blocks", "encoders", "heads", "configs", "pipelines", "regression", "classification", "distributions",
})  # fmt: skip
_APART = frozenset({
    "utils", "util", "tools", "scripts", "cli", "commands", "hub", "testing", "apps", "bundle", "experimental", "distributed",
    "package", "jit", "_dynamo", "_inductor", "cpp_extension", "superpowers", "fetching", "interfaces", "inference", "io",
    "dynamic_module_utils",
})  # fmt: skip
#: functions whose names, or places, say too little of them
_OWN = re.compile(r"torchaudio\.load|einops\.\w+|torch\.utils\.data\.\w+|torch\.nn\.utils\.[\w.]+", re.ASCII)


def judge_known(target: str, *, trusting: bool = False) -> str:
    """What a dotted name in a library of models leads to: ``"malicious"``, ``"suspicious"``, or ``""`` for classes and for the
    functions that configurations call in good faith. ``trusting`` is true where the same file lets code of repositories run."""
    parts = target.strip().replace(":", ".").split(".")
    for n, part in enumerate(parts[1:-1], 1):
        rest = ".".join([_SHORT.get(part, part), *parts[n + 1 :]])
        if (part in _HELD or part == "torch") and (DANGEROUS.fullmatch(rest) or _CALLS.match(rest)):
            return "malicious"
        if part in _HELD or (part == "torch" and parts[0] == "torch"):
            return "suspicious"
    last = parts[-1]
    if trusting and _WITH_TRUST.fullmatch(last):
        return "suspicious"
    if _CLASS.fullmatch(last) or _OWN.fullmatch(".".join(parts)):
        return ""
    if _RUNS.fullmatch(last):
        return "malicious"
    if _FETCHES.fullmatch(last):
        return "suspicious"
    if len(parts) > 2 and _CLASS.fullmatch(parts[-2]):
        return "" if _MADE_BY.fullmatch(last) else "suspicious"
    if _COMMON.fullmatch(last) or _ARITHMETIC.fullmatch(".".join(parts)):
        return ""
    inner = frozenset(parts[1:-1])
    return "" if not inner.isdisjoint(_BUILDS) and inner.isdisjoint(_APART) else "suspicious"
