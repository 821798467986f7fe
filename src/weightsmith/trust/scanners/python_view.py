"""Which modules and functions the names of a Python file can stand for, by whatever way they got there. Nothing is run.

A name stands for everything that any line of the file gives it: order, scopes and conditions are not followed, since an attack
chooses them. A value is one of

- ``os.system``: something imported, or found in it; ``~os.system`` when the way there was a roundabout one,
- ``'text``: a short text,
- ``+``: a text that is put together from constants in a way that is not worked out,
- ``*.name``: something found in a module that was looked up by a name which is not known,
- ``?os``: something of that name, found in what is not known.

Lists, tuples and dicts stand for all that they hold. Work is bounded: each expression is looked at a few times, and has few values;
a file that is not through by then is said to hide something.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator

from .python_tables import DISTINCT, HOSTILE, IMPORTING, STRONG, TELLTALE, canonical, group
from .python_values import (
    DICT,
    LONGEST,
    MADE,
    MOST_VALUES,
    TAKING,
    Values,
    best,
    counts,
    is_dict,
    member,
    quiet,
    textual,
    worded,
)

MOST_ROUNDS = 12  # over all expressions, when names are used before they are given something
_MOST_TOLD = 4  # values of one name that are a reason for another round, those that act apart: texts and paths grow in loops
_MOST_ALIKE = 4  # functions of one name
_BUILTINS = frozenset(("eval", "exec", "compile", "__import__", "getattr", "globals", "locals", "vars", "__builtins__", "open",
                       "object"))  # fmt: skip
#: modules whose objects act by their methods
_MAKERS = frozenset(("cProfile", "profile", "pdb", "trace", "bdb", "doctest", "code", "ctypes", "asyncio"))
_PURE = frozenset(("chr", "str", "bytes", "bytearray", "reversed", "list", "tuple", "map", "int", "format", "sorted", "ord"))
_GLOBALS = "globals.__dict__"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_HOLDING = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.IfExp, ast.BoolOp, ast.Starred, ast.Await, ast.ListComp, ast.SetComp,
            ast.GeneratorExp, ast.DictComp)  # fmt: skip
_CLOSING = frozenset((ast.Tuple, ast.List, ast.Set, ast.Dict, ast.BinOp, ast.UnaryOp, ast.JoinedStr, ast.FormattedValue, ast.Slice,
                      ast.Subscript, ast.Starred, ast.IfExp, ast.GeneratorExp, ast.ListComp, ast.comprehension))  # fmt: skip

class View:
    """What the expressions of one file stand for; ``odd`` names the lines that hide what they do."""

    def __init__(self, nodes: list[ast.AST], children: dict[int, list[ast.AST]]) -> None:
        self.children = children
        self.values: dict[int, Values] = {}
        self.closed: set[int] = set()
        self.names: dict[str, dict[str, None]] = {}
        self.attributes: dict[str, dict[str, None]] = {}
        self.returned: dict[int, dict[str, None]] = {}
        self.functions: dict[str, list[ast.AST]] = {}
        self.constant: set[str] = set()  # names that are given something made of constants
        self.varying: set[str] = set()  # and those that are given something else
        self.missed: set[object] = set()
        self.again = False
        self.odd: list[tuple[int, str]] = []
        self.places: set[tuple[int, str]] = set()
        self.owner: dict[int, ast.AST] = {}
        self.in_class: set[int] = set()
        self.comments: set[int] = set()
        self._prepare(nodes)
        self.order = order = self._order(nodes[0])
        if quiet(nodes):
            return
        steps = [(node, how, type(node) in _CLOSING) for node in order if (how := _HOW.get(type(node))) or type(node) in _CLOSING]
        for _ in range(MOST_ROUNDS):
            self.again = False
            self._round(steps)
            if not self.again:
                return
        self.hides(nodes[-1], "passes names on through more steps than are followed")

    def capability(self, node: ast.AST) -> str:
        """What acts among the values of an expression: its dotted name, ``~`` in front where it is reached in a roundabout way."""
        found = ""
        for value in self.values.get(id(node), ()):
            plain = value.removeprefix("~")
            if "()" in plain and group(plain.split("()")[0]) in HOSTILE:
                continue  # what a call gave, which was itself looked at
            said = group(plain)
            if said in HOSTILE:
                return value
            if said and value[0] == "~":
                found = found or value
        return found

    def _prepare(self, nodes: list[ast.AST]) -> None:
        for node in nodes:
            if isinstance(node, _FUNCTIONS):
                name = f"<{id(node)}>" if isinstance(node, ast.Lambda) else node.name
                alike = self.functions.setdefault(name, [])
                if len(alike) < _MOST_ALIKE:
                    alike.append(node)
                for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                    self.varying.add(arg.arg)
            elif isinstance(node, ast.ClassDef):
                self.in_class.update(id(inner) for inner in node.body)
                first = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"]
                self.functions.setdefault(node.name, []).extend(first[:1])
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                self.comments.add(id(node.value))

    def _order(self, tree: ast.AST) -> list[ast.AST]:
        """Every node after those below it, in the order of the text; ``return`` and ``yield`` learn whose they are."""
        order: list[ast.AST] = []
        pending: list[tuple[ast.AST, ast.AST | None, bool]] = [(tree, None, False)]
        while pending:
            node, owner, done = pending.pop()
            if done:
                order.append(node)
                continue
            if owner is not None and isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)):
                self.owner[id(node)] = owner
            below = node if isinstance(node, _FUNCTIONS) else owner
            pending.append((node, owner, True))
            inner = self.children[id(node)]
            made = isinstance(node, (ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp))  # what is gone through comes first
            pending += [(child, below, False) for child in (inner if made else reversed(inner))]
        return order

    # -- names ------------------------------------------------------------------------------------------------------------------

    def _give(self, store: dict[str, dict[str, None]], name: str, values: Iterable[str]) -> None:
        """Add values of a name; one that was asked for before makes another round needed."""
        held = store.setdefault(name, {})
        for value in values:
            if value in held or (len(held) >= MOST_VALUES and not counts(value)) or len(held) > 2 * MOST_VALUES:
                continue
            held[value] = None
            if name in self.missed and (counts(value) or (len(held) < _MOST_TOLD and (value[0] != "'" or worded(value)))):
                self.again = True

    def _bind(self, target: ast.AST, node: ast.AST | None, values: Values, *, closed: bool = False) -> None:
        """Give ``values`` to a target; to the parts of a tuple those of the parts of ``node``."""
        if isinstance(target, ast.Name):
            (self.constant if closed else self.varying).add(target.id)
            self._give(self.names, target.id, values)
            if id(node) in self.in_class:
                self._give(self.attributes, target.id, values)
        elif isinstance(target, ast.Attribute):
            self._give(self.attributes, target.attr, values)
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = node.elts if isinstance(node, (ast.Tuple, ast.List)) and len(node.elts) == len(target.elts) else None
            for at, part in enumerate(target.elts):
                given = self.values.get(id(parts[at]), ()) if parts else values
                self._bind(part, parts[at] if parts else None, given, closed=id(parts[at]) in self.closed if parts else closed)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, None, values, closed=closed)
        elif isinstance(target, ast.Subscript) and any(map(counts, values)):
            self._bind(target.value, None, values)

    def _named(self, name: str) -> Values:
        if name not in self.names or not self.names[name]:
            self.missed.add(name)
            if name in _BUILTINS and name not in self.varying and name not in self.constant:
                return ("builtins",) if name == "__builtins__" else (f"builtins.{name}",)
            return ()
        self.missed.add(name)
        return tuple(self.names[name])

    # -- expressions ------------------------------------------------------------------------------------------------------------

    def _round(self, steps: list[tuple[ast.AST, Callable[[View, ast.AST], Values] | None, bool]]) -> None:
        values, closed, children = self.values, self.closed, self.children
        for node, how, closing in steps:
            if how is not None and (found := how(self, node)):
                values[id(node)] = best(found)
            if closing and id(node) not in closed and children[id(node)] and all(id(c) in closed for c in children[id(node)]):
                closed.add(id(node))

    def _of(self, node: ast.AST | None) -> Values:
        return self.values.get(id(node), ())

    def _constant(self, node: ast.AST) -> Values:
        assert isinstance(node, ast.Constant)
        self.closed.add(id(node))
        if isinstance(node.value, str) and len(node.value) <= 64:
            return (f"'{node.value}",)
        return ()

    def _name(self, node: ast.AST) -> Values:
        assert isinstance(node, ast.Name)
        if not isinstance(node.ctx, ast.Load):
            self.closed.add(id(node))
            return ()
        if node.id in self.constant and node.id not in self.varying:
            self.closed.add(id(node))
        return self._named(node.id)

    def _attribute(self, node: ast.AST) -> Values:
        assert isinstance(node, ast.Attribute)
        found = [v for base in self._of(node.value) for v in member(base, node.attr)]
        if found and not (node.attr in DISTINCT and all("()" in v for v in found)):
            return tuple(found)
        self.missed.add(node.attr)
        known = tuple(self.attributes.get(node.attr, ()))
        if node.attr.lstrip("_") in STRONG:  # whatever it is asked of, a module that acts has this name
            return (*known, "?" + node.attr.lstrip("_"))
        if node.attr in DISTINCT and isinstance(node.value, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)):
            return (*known, f"subprocess.{node.attr}")
        return known

    def _held(self, node: ast.AST) -> Values:
        return tuple(v for child in self.children[id(node)] for v in self._of(child))

    def _text(self, node: ast.AST) -> Values:
        """A text that is put together: worked out where that is simple."""
        parts = [node.left, node.right] if isinstance(node, ast.BinOp) else self.children[id(node)]
        if isinstance(node, ast.FormattedValue):
            return self._of(node.value) if node.conversion == -1 and node.format_spec is None else ()
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
            made = [""]
            for part in parts:
                texts = [v[1:].removeprefix("~") for v in self._of(part) if v[0] == "'"]
                texts = texts[: max(1, MOST_VALUES // max(1, len(made)))]
                made = [one + text for one in made for text in texts if len(one) + len(text) < LONGEST]
            if made:
                mark = "~" if len(parts) > 1 else ""
                return tuple(f"'{mark}{text}" for text in made)
        closed = all(id(part) in self.closed for part in parts)
        return (MADE,) if closed and any(textual(self._of(part)) for part in parts) else ()

    def _subscript(self, node: ast.AST) -> Values:
        assert isinstance(node, ast.Subscript)
        base = self._of(node.value)
        if isinstance(node.slice, ast.Slice):
            step = node.slice.step
            if isinstance(step, ast.UnaryOp) and isinstance(step.op, ast.USub) and not node.slice.lower and not node.slice.upper:
                return tuple("'~" + v[1:].removeprefix("~")[::-1] if v[0] == "'" else v for v in base)
            texts = [v for v in base if v[0] == "'" and len(v) > 2]
            return (*(v for v in base if v[0] != "'"), *([MADE] if texts and id(node.value) in self.closed else []))
        base = tuple(v + DICT if v.removeprefix("~") == "builtins" else v for v in base)  # a dict, in most modules
        looked = [v for v in base if is_dict(v)]
        found = [v for v in base if v[0] in "'+*" or counts(v)] if len(looked) < len(base) else []
        return (*found, *(v for one in looked for v in self._member_by(node, one, node.slice)))

    def _member_by(self, node: ast.AST, table: str, key: ast.AST | None) -> Iterator[str]:
        """What a module's own dict, ``globals()`` or ``sys.modules`` holds under a key."""
        module = table.removesuffix(DICT)
        for text in self._of(key):
            if text[0] == "'" and text[1:].strip("~"):
                said, mark = text[1:].removeprefix("~"), "~" if text.startswith("'~") else ""
                if table.endswith("sys.modules"):
                    yield canonical(mark + said)
                elif module == "globals":
                    yield from (mark + v.removeprefix("~") for v in self._named(said) if v[0] not in "'+*")
                else:
                    yield canonical(f"{mark}{module.removeprefix('~')}.{said}")
        if not self._of(key) or MADE in self._of(key):
            yield from self._unknown(node, module, id(key) in self.closed)

    def _unknown(self, node: ast.AST, module: str, closed: bool) -> Iterator[str]:
        """Something of a module by a name that is not known."""
        base = module.removeprefix("~")
        if base in STRONG:
            self.hides(node, f"takes something from {base} by a name that is put together")
        elif closed and base in ("sys.modules", "~"):
            self.hides(node, "takes a module by a name that is put together")
        elif base == "~*":
            self.hides(node, "takes something from a module by names that are put together")
        yield "~*" if closed else "*"

    def _call(self, node: ast.AST) -> Values:
        assert isinstance(node, ast.Call)
        found: list[str] = []
        first = node.args[0] if node.args else None
        for name in self._of(node.func):
            plain = name.removeprefix("~")
            if plain == "builtins.getattr" and len(node.args) > 1:
                found += self._got(node, self._of(first), node.args[1])
            elif plain in IMPORTING and (node.args or node.keywords):
                found += self._imported(node, first or node.keywords[0].value)
            elif plain in ("builtins.globals", "builtins.locals") or (plain == "builtins.vars" and not node.args):
                found.append(_GLOBALS)
            elif plain == "builtins.vars":
                found += [v + DICT for v in self._of(first) if v[0] not in "'+?"]
            elif plain.rsplit(".", 1)[-1] in TAKING and "." in plain:
                found += self._taken(node, name)
            elif plain in ("operator.attrgetter", "operator.methodcaller"):
                self._getter(node)
            elif plain.split(".", 1)[0] in _MAKERS and len(name) < LONGEST:
                found.append(f"{name}()")
        found += self._of_own(node)
        if self._is_pure(node):
            self.closed.add(id(node))
            if not found:
                found.append(MADE)
        return tuple(found)

    def _got(self, node: ast.Call, bases: Values, key: ast.AST) -> Iterator[str]:
        texts = [v[1:] for v in self._of(key) if v[0] == "'"]
        for base in bases:
            if base[0] in "'+?":
                continue
            for text in filter(None, texts):
                for value in member(base, text.removeprefix("~")):
                    yield "~" + value.removeprefix("~") if text.startswith("~") and value[0] != "*" else value
            if not texts or MADE in self._of(key):
                yield from self._unknown(node, base, id(key) in self.closed)

    def _imported(self, node: ast.Call, key: ast.AST) -> Iterator[str]:
        texts = [v[1:] for v in self._of(key) if v[0] == "'" and v[1:].strip("~.")]
        for text in texts:
            yield canonical(("~" if text.startswith("~") else "") + text.removeprefix("~").replace(":", "."))
        if id(key) in self.closed and MADE in self._of(key):
            self.hides(node, "imports a module by a name that is put together")
            yield "~*"
        elif not texts:
            yield "~*" if id(key) in self.closed else "*"

    def _taken(self, node: ast.Call, name: str) -> Iterator[str]:
        """What ``get`` and the like give: of a module's dict, or of a dict that holds modules."""
        base, how = name.rsplit(".", 1)
        key = node.args[-1] if how.startswith("__getattr") and node.args else node.args[0] if node.args else None
        if how.startswith("__getattr"):
            owners = self._of(node.args[0]) if len(node.args) > 1 else (base,)
            yield from self._got(node, owners, key) if key is not None else ()
        elif is_dict(base):
            yield from self._member_by(node, base, key)
        elif base.removeprefix("~") in STRONG or base.startswith(("*", "~*")):
            yield base

    def _getter(self, node: ast.Call) -> None:
        for arg in node.args[:3]:
            for value in self._of(arg):
                parts = value[1:].removeprefix("~").split(".") if value[0] == "'" else []
                if value == MADE or any(p in TELLTALE or p.lstrip("_") in STRONG for p in parts):
                    self.hides(node, f"looks up {value[1:].removeprefix('~') or 'a name that is put together'} by way of operator")
                    return

    def _of_own(self, node: ast.Call) -> Iterator[str]:
        """What functions of the file return; their parameters are given what the call gives."""
        func = node.func
        if isinstance(func, ast.Lambda):
            name, method = f"<{id(func)}>", False
        elif isinstance(func, ast.Name):
            name, method = func.id, False
        elif isinstance(func, ast.Attribute):
            name, method = func.attr, True
        else:
            return
        for function in self.functions.get(name, ()):
            assert isinstance(function, _FUNCTIONS)
            arguments = function.args
            names = [arg.arg for arg in [*arguments.posonlyargs, *arguments.args]]
            skipped = 1 if names[:1] in (["self"], ["cls"]) and (method or getattr(function, "name", name) != name) else 0
            for parameter, given in zip(names[skipped:], node.args, strict=False):
                self._give(self.names, parameter, self._of(given))
            if arguments.vararg is not None:
                for given in node.args:
                    self._give(self.names, arguments.vararg.arg, self._of(given))
            for keyword in node.keywords:
                if keyword.arg:
                    self._give(self.names, keyword.arg, self._of(keyword.value))
            self.missed.add(function)
            yield from (v for v in self.returned.get(id(function), ()) if v[0] not in "'+")

    def _is_pure(self, node: ast.Call) -> bool:
        """Whether a call only makes one constant of others."""
        given = [*node.args, *(k.value for k in node.keywords)]
        if not all(id(arg) in self.closed for arg in given):
            return False
        func = node.func
        if isinstance(func, ast.Attribute):
            return id(func.value) in self.closed or group(next(iter(self._of(func)), "")) == "decodes data"
        return isinstance(func, ast.Name) and bool(given) and (func.id in _PURE or func.id in self.functions)

    # -- statements -------------------------------------------------------------------------------------------------------------

    def _assign(self, node: ast.AST) -> Values:
        assert isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.AugAssign))
        if node.value is None:
            return ()
        values, closed = self._of(node.value), id(node.value) in self.closed
        if isinstance(node, ast.AugAssign):
            values = (*values, MADE) if closed and textual(values) else values
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            self._bind(target, node.value, values, closed=closed)
            if id(node) in self.in_class and isinstance(target, ast.Name):
                self._give(self.attributes, target.id, values)
        return values if isinstance(node, ast.NamedExpr) else ()

    def _loop(self, node: ast.AST) -> Values:
        assert isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension))
        items = node.iter.elts if isinstance(node.iter, (ast.Tuple, ast.List, ast.Set)) else []
        if items and isinstance(node.target, ast.Tuple) and len(items) <= 64:
            for item in items:
                self._bind(node.target, item, self._of(item), closed=id(item) in self.closed)
        else:
            self._bind(node.target, None, self._of(node.iter), closed=id(node.iter) in self.closed)
        return ()

    def _with(self, node: ast.AST) -> Values:
        assert isinstance(node, ast.withitem)
        if node.optional_vars is not None:
            self._bind(node.optional_vars, None, self._of(node.context_expr))
        return ()

    def _function(self, node: ast.AST) -> Values:
        """Defaults; a lambda returns its body."""
        assert isinstance(node, _FUNCTIONS)
        names = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args]]
        for name, default in zip(reversed(names), reversed(node.args.defaults), strict=False):
            self._give(self.names, name, self._of(default))
        for arg, given in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=False):
            self._give(self.names, arg.arg, self._of(given))
        if isinstance(node, ast.Lambda):
            self._returns(node, self._of(node.body))
        return ()

    def _returns(self, function: ast.AST, values: Values) -> None:
        held = self.returned.setdefault(id(function), {})
        for value in values:
            if value not in held and len(held) < MOST_VALUES:
                held[value] = None
                told = counts(value) or (len(held) < _MOST_TOLD and (value[0] != "'" or worded(value)))
                self.again = self.again or (told and function in self.missed)

    def _return(self, node: ast.AST) -> Values:
        assert isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom))
        if id(node) in self.owner:
            self._returns(self.owner[id(node)], self._of(node.value))
        return ()

    def _import(self, node: ast.AST) -> Values:
        assert isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names:
            if isinstance(node, ast.Import):
                name = alias.asname or alias.name.split(".")[0]
                full = alias.name if alias.asname else name
            else:
                name, full = alias.asname or alias.name, f"{'.' * bool(node.level)}{node.module or ''}.{alias.name}"
            self._give(self.names, name, (canonical(full),))
        return ()

    def hides(self, node: ast.AST, what: str) -> None:
        """Keep that a line hides what it does."""
        place = (getattr(node, "lineno", 0), f"hides what it does: {what}")
        if place not in self.places:
            self.places.add(place)
            self.odd.append(place)


_HOW: dict[type, Callable[[View, ast.AST], Values]] = {
    ast.Constant: View._constant, ast.Name: View._name, ast.Attribute: View._attribute, ast.Call: View._call,
    ast.Subscript: View._subscript, ast.BinOp: View._text, ast.JoinedStr: View._text, ast.FormattedValue: View._text,
    ast.Assign: View._assign, ast.AnnAssign: View._assign, ast.NamedExpr: View._assign, ast.AugAssign: View._assign,
    ast.For: View._loop, ast.AsyncFor: View._loop, ast.comprehension: View._loop, ast.withitem: View._with,
    ast.FunctionDef: View._function, ast.AsyncFunctionDef: View._function, ast.Lambda: View._function,
    ast.Return: View._return, ast.Yield: View._return, ast.YieldFrom: View._return, ast.Import: View._import,
    ast.ImportFrom: View._import,
    **dict.fromkeys(_HOLDING, View._held),
}  # fmt: skip
