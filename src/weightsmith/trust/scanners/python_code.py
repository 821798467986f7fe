"""What a Python file would do, read from its syntax tree: what it imports, what it calls, and what of that happens as soon
as it is imported. The code is never run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .python_hidden import hidden
from .python_tables import GROUPS, HOSTILE, RISKY
from .python_tables import group as _group
from .python_view import View

LARGEST = 600_000  # bytes of a file that is parsed
MOST_NODES = 200_000  # of the syntax of one file
MOST_ALL = 500_000  # of all files of a model
_MOST_LINKS = 8  # calls of a chain whose names are put together

_CAPABLE = ("os", "sys", "subprocess", "builtins", "importlib", "pty", "runpy", "shutil", "socket", "posix", "ctypes")
_BUILTINS = frozenset(("eval", "exec", "compile", "__import__", "open", "getattr"))
#: methods that Python calls while classes are made
_MAKING = ("__init_subclass__", "__set_name__", "__prepare__", "__class_getitem__", "__mro_entries__")
#: functions that call what they are given
_RUNNING = frozenset(("map", "filter", "sorted", "min", "max", "reduce", "partial", "Thread", "Timer", "Process", "submit", "apply",
                      "apply_async", "starmap", "imap", "call_soon", "call_later", "finalize", "start_new_thread"))  # fmt: skip
_BY_PATH = ("SourceFileLoader", "spec_from_file_location", "SourcelessFileLoader", "ExtensionFileLoader")
_WRITES = ("write_text", "write_bytes", "touch", "unlink", "symlink_to", "rename", "rmdir", "mkdir", "hardlink_to")
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.MULTILINE)
_PLAIN = ("utf-8", "utf8", "utf-8-sig", "latin-1", "iso-8859-1", "ascii", "us-ascii", "latin1", "utf_8")
#: imported names that a file's own names may stand for without an import
_GADGETS = re.compile(r"__(?:subclasses|globals|builtins|reduce_ex)__|f_(?:globals|builtins)|gi_frame|tb_frame")


@dataclass(frozen=True)
class Call:
    """One call: ``line``, the dotted ``name``, what it does, and whether importing the file is enough for it."""

    line: int
    name: str
    group: str
    at_import: bool


@dataclass
class Code:
    """What was read from one file; ``error`` says why it could not be, ``odd`` names what no honest file has."""

    imports: list[str] = field(default_factory=list)
    relative: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    odd: list[tuple[int, str]] = field(default_factory=list)
    error: str = ""

    def groups(self, *, at_import: bool = False) -> dict[str, Call]:
        """The first call of each group."""
        found: dict[str, Call] = {}
        for call in self.calls:
            if call.at_import or not at_import:
                found.setdefault(call.group, call)
        return found

    @property
    def hostile(self) -> str:
        """Why the file is plainly hostile, or ``""``."""
        first = self.groups(at_import=True)
        for group in HOSTILE:
            if group in first and not _installs(first[group]):
                return f"line {first[group].line}: {first[group].name} {group} as soon as the file is imported"
        network = [c for c in self.calls if c.at_import and c.group == "uses the network"]
        if any(c.name.startswith(("socket.", "smtplib.", "ftplib.")) or c.name.endswith((".post", ".put")) for c in network):
            return f"line {network[0].line}: {network[0].name} sends data as soon as the file is imported"
        if network and {"reads the environment", "decodes data"} & set(first):
            return f"line {network[0].line}: {network[0].name} is used with data of this machine as soon as the file is imported"
        for line, what in self.odd:
            if what.startswith("runs decoded"):
                return f"line {line}: {what}"
        return ""

    @property
    def risky(self) -> str:
        """What of it could hurt, in words, or ``""``."""
        said = [f"{c.name} {g} (line {c.line})" for g, c in self.groups().items() if g in RISKY]
        changes = [c for c in self.calls if c.group == "changes files" and c.at_import]
        said += [f"{c.name} changes files as soon as it is imported (line {c.line})" for c in changes[:1]]
        return "; ".join([*said, *(f"{what} (line {line})" for line, what in self.odd)])

    @property
    def summary(self) -> str:
        """What it imports and calls, for the reader."""
        said = [f"imports {', '.join(self.imports[:12])}" if self.imports else "imports nothing"]
        said += [f"{g}: {c.name} (line {c.line}{', at import' if c.at_import else ''})" for g, c in self.groups().items()]
        return "; ".join(said)


def _installs(call: Call) -> bool:
    return call.name.endswith(" pip")


def read_code(data: bytes, left: list[int] | None = None) -> Code:
    """Read one file's bytes; ``left[0]`` counts down the nodes of syntax that are read of several files together."""
    code = Code()
    left = [MOST_NODES] if left is None else left
    cookie = _COOKIE.search(b"\n".join(data.split(b"\n", 2)[:2]))
    if cookie is not None and cookie.group(1).decode("ascii", "replace").lower() not in _PLAIN:
        said = cookie.group(1).decode("ascii", "replace")
        code.odd.append((1, f"is written in the encoding {said!r}, so that it reads as something else"))
    if len(data) > LARGEST:
        code.error = f"{len(data)} bytes; at most {LARGEST} are parsed"
        return code
    if left[0] <= 0:
        code.error = f"more syntax than is read: the files before it have {MOST_ALL} nodes"
        return code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError, LookupError) as error:
        code.error = f"{type(error).__name__}: {str(error)[:160]}"
        return code
    _Reader(code, left).read(tree)
    return code


_NO_NODES = frozenset(("ctx", "op", "ops", "id", "attr", "kind", "type_comment"))  # fields without a node that does anything


#: types of nodes, apart, since there are hundreds of thousands of nodes to be told apart
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BODIES = (*_FUNCTIONS, ast.Lambda)
_DECORATED = (*_FUNCTIONS, ast.ClassDef)
_NAMING = (ast.Attribute, ast.Name, ast.Subscript)
_BINDING = frozenset((ast.Import, ast.ImportFrom, ast.Assign))
_LOOKED_AT = frozenset((ast.Call, *_NAMING, ast.Constant))


_FIELDS: dict[str, tuple[str, ...]] = {}  # of each type of node, those that may hold nodes


def _children(node: ast.AST) -> list[ast.AST]:
    """The nodes right below one, without those that only say how it is meant."""
    found: list[ast.AST] = []
    kind = type(node).__name__
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(name for name in node._fields if name not in _NO_NODES)
    for name in _FIELDS[kind]:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            found.append(value)
        elif isinstance(value, list):
            found += [inner for inner in value if isinstance(inner, ast.AST)]
    return found


class _Reader:
    """Walks one tree without recursion."""

    def __init__(self, code: Code, left: list[int]) -> None:
        self.code, self.left = code, left
        self.children: dict[int, list[ast.AST]] = {}
        self.names: dict[str, str] = {}
        self.stars: dict[str, None] = {}  # modules all of whose names are imported, and could be ones that a group lists
        self.starred: dict[str, str] = {}
        self.depth = 0
        self.walked = 0
        self.called: set[int] = set()

    def read(self, tree: ast.Module) -> None:
        """Fill the code's lists."""
        nodes: list[ast.AST] = [tree]
        for node in nodes:  # which grows meanwhile: breadth first
            below = self.children[id(node)] = _children(node)
            nodes += below
            if len(nodes) > min(MOST_NODES, self.left[0]):
                self.code.error = "more syntax than is read"
                self.left[0] -= len(nodes)
                return
        self.left[0] -= len(nodes)
        for node in nodes:
            if type(node) in _BINDING:
                self._bind(node)
            elif isinstance(node, ast.Call):
                self.called.add(id(node.func))
        self.view = View(nodes, self.children)
        self.code.odd += hidden(self.view)
        first = self._at_import(tree, nodes)
        for node in nodes:
            if type(node) in _LOOKED_AT:
                self._look(node, id(node) in first)
        self.code.imports = sorted(dict.fromkeys(self.code.imports))

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.code.imports.append(alias.name.split(".")[0])
                self.names[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                self.code.relative += [module.split(".")[0]] if module else [alias.name for alias in node.names]
                return
            self.code.imports.append(module.split(".")[0])
            for alias in node.names:
                if alias.name == "*" and _may_list(module):
                    self.stars[module] = None
                self.names[alias.asname or alias.name] = f"{module}.{alias.name}"
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = self.dotted(node.value)
            if name and _group(name):
                self.names.setdefault(node.targets[0].id, name)

    def dotted(self, node: ast.AST) -> str:
        """``a.b.c`` with imported names put in, also through ``getattr``, ``__import__`` and ``import_module``; else ``""``."""
        parts: list[str] = []
        while True:
            if isinstance(node, ast.Attribute):
                parts += [] if node.attr == "__dict__" else [node.attr]
                node = node.value
            elif isinstance(node, ast.Name):
                parts.append(self._name(node.id))
                name = ".".join(reversed(parts))
                return re.sub(r"^sys\.modules\.", "", name)
            elif isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if called == "vars" and node.args:
                    node = node.args[0]
                elif called == "getattr" and len(node.args) >= 2 and (text := _text(node.args[1])):
                    parts.append(text)
                    node = node.args[0]
                elif called in ("__import__", "import_module") and node.args and (text := _text(node.args[0])):
                    return ".".join([text, *reversed(parts)])
                else:
                    return "().".join([self._of_call(node), ".".join(reversed(parts))]) if parts else ""
            elif isinstance(node, ast.Subscript) and (text := _text(node.slice)):
                parts.append(text)
                node = node.value
            else:
                return ""
            if len(parts) > 40:
                return ""

    def _of_call(self, node: ast.Call) -> str:
        """What is called, by name; of a chain of calls the last few, since each of its links is asked for."""
        if self.depth > _MOST_LINKS:
            return ""
        self.depth += 1
        try:
            return self.dotted(node.func)
        finally:
            self.depth -= 1

    def _name(self, name: str) -> str:
        """What a bare name stands for; names that were not imported and are not built in get a mark."""
        if name in self.names:
            return self.names[name]
        if name not in self.starred:
            full = next((f"{module}.{name}" for module in self.stars if _group(f"{module}.{name}")), "")
            self.starred[name] = full or (name if name in _BUILTINS else f"?{name}")
        return self.starred[name]

    def _at_import(self, tree: ast.Module, nodes: list[ast.AST]) -> set[int]:
        """The nodes that run when the file is imported: everything outside functions, and functions called from there."""
        functions: dict[str, list[ast.AST]] = {}
        making: list[ast.AST] = []
        for node in nodes:
            if isinstance(node, _FUNCTIONS):
                functions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.ClassDef):
                meta = any(isinstance(base, ast.Name) and base.id == "type" for base in node.bases)
                for inner in node.body:
                    if not isinstance(inner, ast.FunctionDef) or not inner.name.startswith("__"):
                        continue
                    if inner.name in _MAKING or meta:
                        making.append(inner)
                    else:  # Python calls these itself, once there is an object
                        functions.setdefault(node.name, []).append(inner)
        found: set[int] = set()
        entered: set[int] = {id(method) for method in making}
        pending: list[ast.AST] = [tree, *making]
        while pending:
            node = pending.pop()
            found.add(id(node))
            children = self.children[id(node)]
            if isinstance(node, ast.If) and _main(node.test):
                children = list(node.orelse)
            if isinstance(node, _BODIES) and id(node) not in entered:
                body = {id(child) for child in (node.body if isinstance(node.body, list) else [node.body])}
                children = [child for child in children if id(child) not in body]
            pending += children
            for called in self._called_by(node):
                name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
                targets = [called] if isinstance(called, ast.Lambda) else functions.pop(name, ())
                for target in targets:
                    if id(target) not in entered:
                        entered.add(id(target))
                        pending.append(target)
        return found

    def _called_by(self, node: ast.AST) -> list[ast.AST]:
        """What a node calls: a call what it names, and what it hands to a function that calls it; a definition its decorators."""
        if not isinstance(node, ast.Call):
            return list(node.decorator_list) if isinstance(node, _DECORATED) else []
        func = node.func
        name = func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""
        if name in _RUNNING or (name == "register" and self.dotted(func) == "atexit.register"):
            return [func, *node.args, *(keyword.value for keyword in node.keywords)]
        return [func]

    def _look(self, node: ast.AST, first: bool) -> None:
        if isinstance(node, ast.Call):
            name = self.dotted(node.func)
            self._called(node, name if _group(name) else self.view.capability(node.func).removeprefix("~") or name, first)
            given = "" if id(node) in self.called else self.view.capability(node)
            if given.startswith("~") and _group(given[1:]) in HOSTILE:  # a function that was looked up, and is handed on
                self.code.calls.append(Call(node.lineno, given[1:], _group(given[1:]), first))
        elif isinstance(node, _NAMING) and id(node) not in self.called:
            name = self.dotted(node) if isinstance(node.ctx, ast.Load) else ""
            if name in ("os.environ", "os.environb"):
                self.code.calls.append(Call(node.lineno, "os.environ", "reads the environment", first))
                return
            if not _group(name) and isinstance(node.ctx, ast.Load):
                name = self.view.capability(node).removeprefix("~")
            if (group := _group(name)) in HOSTILE and name.removeprefix("builtins.") not in ("compile", "__import__"):
                self.code.calls.append(Call(node.lineno, name, group, first))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) > 2000:
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if not re.search(r"\s", text[:2000]):
                self.code.odd.append((node.lineno, f"holds a blob of {len(text)} characters"))
        if isinstance(node, (ast.Attribute, ast.Constant, ast.Name)):
            name = getattr(node, "id", getattr(node, "attr", "")) or getattr(node, "value", "")
            name = name if isinstance(name, str) else ""
            if len(name) < 40 and _GADGETS.fullmatch(name):
                self.code.odd.append((getattr(node, "lineno", 0), f"reaches for {name}"))

    def _by_made_name(self, node: ast.Call) -> bool:
        """Whether a call gives a function by a name that is not written down, from a module that can do harm."""
        name = self.dotted(node.func)
        if name in ("__import__", "importlib.import_module"):
            return not (node.args and _text(node.args[0]))
        return name == "getattr" and len(node.args) > 1 and not _text(node.args[1]) and self.dotted(node.args[0]) in _CAPABLE

    def _below(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes of a call, breadth first. Calls lie in calls, so what is looked at again and again is counted."""
        nodes: list[ast.AST] = [node]
        for below in nodes:
            nodes += self.children[id(below)]
            self.walked += 1
            if self.walked > MOST_NODES:
                self.code.error = "more syntax than is read: calls inside calls that run code"
                return
            yield below

    def _called(self, node: ast.Call, name: str, first: bool) -> None:
        group = _group(name) or self._by_arguments(node, name)
        if not group and "." in name and name.rsplit(".", 1)[-1] in _WRITES:
            group = "changes files"
        elif name == "compile" or (name == "eval" and node.args and isinstance(node.args[0], ast.Constant)):
            group = "runs code made from data" if name == "compile" and len(node.args) >= 3 else ""
        elif name == "__import__" and node.args and _text(node.args[0]):
            group = ""
        elif isinstance(node.func, ast.Call) and self._by_made_name(node.func):
            self.code.odd.append((node.lineno, "calls something by a name that is put together"))
        if name.endswith(_BY_PATH):
            self._by_path(node)
        if not group:
            return
        if group == "starts programs" and _pip(self._below(node)):
            name += " pip"
        if group == "reads pickles" and node.args and id(node.args[0]) in self.view.closed:
            self.code.odd.append((node.lineno, f"hides what it does: {name} unpacks what stands in the file itself"))
        if group == "runs code made from data":
            inner = {_group(self.dotted(n.func)) for n in self._below(node) if isinstance(n, ast.Call)}
            if "decodes data" in inner or "uses the network" in inner:
                self.code.odd.append((node.lineno, f"runs decoded or fetched data as code ({name})"))
        self.code.calls.append(Call(node.lineno, name, group, first))

    def _by_path(self, node: ast.Call) -> None:
        """A file that is imported by its path, and is not called what Python's files are called."""
        for given in [*node.args[1:2], *(k.value for k in node.keywords if k.arg in ("path", "location"))]:
            texts = [n.value for n in self._below(given) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            if texts and re.search(r"\.\w{1,12}$", texts[-1]) and not texts[-1].endswith((".py", ".pyi")):
                self.code.odd.append((node.lineno, f"hides what it does: imports the file {texts[-1][-60:]!r} as Python"))

    def _by_arguments(self, node: ast.Call, name: str) -> str:
        """What calls do that are harmless or not by what they are given."""
        first = node.args[0] if node.args else None
        if name in ("open", "io.open", "builtins.open", "codecs.open", "io.FileIO", "_io.FileIO", "os.fdopen"):
            return "changes files" if _mode(node) else ""
        if name == "os.open" and len(node.args) > 1:
            flags = {n.attr for n in self._below(node.args[1]) if isinstance(n, ast.Attribute)}
            return "changes files" if flags & {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC"} else ""
        if name.startswith(("timeit.timeit", "timeit.repeat", "timeit.Timer")) and "()" not in name:
            return "runs code made from data" if isinstance(first, (ast.BinOp, ast.Call, ast.Subscript)) else ""
        if name in ("webbrowser.get", "webbrowser.register") and first is not None and re.search(r"[\s%]", _text(first)):
            return "starts programs"
        return ""


def _main(test: ast.AST) -> bool:
    return (isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"
            and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq) and _text(test.comparators[0]) == "__main__")  # fmt: skip


def _text(node: ast.AST) -> str:
    """The value of an expression of string constants, ``""`` when it is none."""
    parts, pending = [], [node]
    while pending:
        here = pending.pop()
        if isinstance(here, ast.Constant) and isinstance(here.value, str):
            parts.append(here.value)
        elif isinstance(here, ast.BinOp) and isinstance(here.op, ast.Add):
            pending += [here.right, here.left]
        else:
            return ""
    return "".join(parts)


def _mode(node: ast.Call) -> bool:
    modes = [node.args[1]] if len(node.args) > 1 else [k.value for k in node.keywords if k.arg == "mode"]
    return any(set(_text(mode)) & set("wax+") for mode in modes)


def _pip(nodes: Iterable[ast.AST]) -> bool:
    """Whether a program that is started is pip, installing by name; ``nodes`` are those of the call."""
    words = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    text = " ".join(words)
    return bool(re.search(r"\bpip3?\b.*\binstall\b", text)) and not re.search(r"https?:|git\+|[;&|`$]|--(?:extra-)?index", text)


def _may_list(module: str) -> bool:
    """Whether a group could list a name of this module."""
    begin = f"{module}."
    return any(call.startswith(begin) or (call[-1] in ".*" and begin.startswith(call.rstrip("*")))
               for calls in GROUPS.values() for call in calls)  # fmt: skip


def notebook_code(cells: object) -> Iterator[tuple[str, list[str]]]:
    """The Python of a notebook's cells, with its shell lines apart."""
    for cell in cells if isinstance(cells, list) else []:
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        text = "".join(part for part in source if isinstance(part, str)) if isinstance(source, list) else str(source)
        shell = [line.strip() for line in text.split("\n") if line.lstrip().startswith(("!", "%%bash", "%%sh", "%system", "%sx"))]
        yield "\n".join("" if line.lstrip().startswith(("!", "%")) else line for line in text.split("\n")), shell
