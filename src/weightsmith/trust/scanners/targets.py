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
