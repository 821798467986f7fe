"""Python in configurations: what MONAI evaluates, strings that begin with ``$``. They are parsed, never run."""

from __future__ import annotations

import ast
import re
import warnings

#: keys by which a configuration is known to be one that MONAI evaluates
EVALUATING = frozenset({"imports", "bundle_root", "_requires_", "_mode_", "_target_", "run", "initialize", "evaluating", "training",
                        "network_def", "network"})  # fmt: skip
LONGEST = 20_000  # characters of an expression
#: functions that start programs, or run data as code, by their whole names; none of them is the name of a file
RUNS = re.compile(
    r"(?:os|posix|nt)\.(?:system|popen|exec[lv]\w{0,2}|spawn[lv]\w{0,2}|posix_spawnp?|startfile|remove|unlink|rename|rmdir)|"
    r"subprocess\.(?:run|Popen|call|check_call|check_output|getoutput|getstatusoutput)|pty\.spawn|runpy\.run_(?:path|module)|"
    r"(?:builtins|__builtin__)\.(?:exec|eval|compile|__import__)|marshal\.loads|shutil\.rmtree|ctypes\.(?:CDLL|PyDLL|cdll\.\w+)|"
    r"urllib\.request\.url\w+|requests\.(?:get|post|put|request)|socket\.(?:socket|create_connection)"
)
_ROOTS = frozenset({"os", "posix", "nt", "subprocess", "builtins", "pty", "runpy", "marshal", "ctypes"})
_WRITES = frozenset({"write_text", "write_bytes", "symlink_to", "chmod"})
_BUILT_IN = frozenset({"exec", "eval", "__import__"})


def hostile_expression(text: str) -> str:
    """What a ``$`` expression reaches for to start a program, run data as code, write or send something; nothing where there
    is nothing of the kind."""
    if not text.startswith("$"):
        return ""
    source = text[1:].strip()
    try:
        if len(source) > LONGEST:
            raise ValueError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(re.sub(r"@(?=[\w:])[\w:]+", "x", source))  # a reference to another part of the configuration
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""  # MONAI can't evaluate it either
    return next((what for node in ast.walk(tree) if (what := _hostile(node))), "")


def runs(text: str) -> bool:
    """Whether a text is Python that does anything: a call or an import stands in it."""
    try:
        if len(text) > LONGEST:
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.Call | ast.Import | ast.ImportFrom) for node in ast.walk(tree))


def _hostile(node: ast.AST) -> str:
    if isinstance(node, ast.Name) and node.id in {"__builtins__", *_BUILT_IN}:
        return node.id
    if isinstance(node, ast.Attribute):  # called or handed on: both lead to the call
        name = _dotted(node)
        return name if RUNS.fullmatch(name) or node.attr in _WRITES else ""
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return next((name for name in names if RUNS.fullmatch(name)), "")
    if isinstance(node, ast.Call):
        name, first = _dotted(node.func), node.args[0] if node.args else None
        if name == "getattr" and first is not None and _dotted(first).split(".")[0] in _ROOTS:
            return f"getattr of {_dotted(first)}"
        if "import" in name and isinstance(first, ast.Constant) and str(first.value).split(".")[0] in _ROOTS:
            return f"{name} of {first.value!r}"
    return ""


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
