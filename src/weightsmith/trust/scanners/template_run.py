"""Chat templates rendered as a loader would, but watched: bounded work, and a record of what the text depends on.

A template is a program. It runs here in Jinja's immutable sandbox with the extensions and functions of transformers,
with three additions. Every loop, call, filter and operator is charged to a budget *before* it allocates anything, so no
template can take long or much. What messages hold is marked, the marks follow the values through filters and methods,
and every string that marked text is compared with, searched for or looked up by is noted (however it was computed). And
the outcome of every condition is noted and can be forced. There is no clock and no chance: ``strftime_now`` says the
date that the run was given.
"""

from __future__ import annotations

import itertools
import json
import operator
import re
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import jinja2
import jinja2.debug  # Jinja imports it when a template fails, when files may be out of reach
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from .template_marks import (
    BIGGEST,
    LONGEST,
    NESTED,
    PRODUCT,
    SECONDS,
    Doubt,
    Marked,
    MarkedInt,
    OverBudget,
    Run,
    Span,
    Turns,
    check_size,
    kind_of,
    kind_within,
    mark,
    size_of,
)
from .template_text import asked_for

SOURCE = 1 << 17  # characters of a template that is rendered
NODES = 12_000  # of its syntax tree; the largest real ones have a quarter of it
_SPEC = re.compile(r"[0-9]{4,}")  # a width in a format
_CLOCK = re.compile(r"%[-_0#^]?[aAbBcdDeFgGHIjklmMnpPrRsStTuUVwWxXyYZz%]|[^%]+")
_SPELLING = ("list", "map", "select", "reject", "batch", "slice", "first", "last")
_WRITTEN = ("string", "tojson", "join", "pprint", "xmlattr", "list", "format")
_ESCAPES = ("encode",)  # what a text is turned into can't be followed
_SEPARATES = ("split", "rsplit", "partition", "rpartition", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix")
_CHOOSES = ("selectattr", "rejectattr", "select", "reject", "list", "reverse", "sort", "unique")
_GATHERS = ("sum", "min", "max", "sort", "unique", "first", "last")
_ODD = ("urlize", "striptags", "wordwrap", "xmlattr", "pprint", "forceescape")


class Watched(ImmutableSandboxedEnvironment):
    """The environment; ``run`` is the rendering under way."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, cache_size=0, finalize=_finalize,
                         extensions=[_Generation, "jinja2.ext.loopcontrols"])  # fmt: skip
        self.run = Run()
        self.binop_table["%"] = _modulo
        plain: dict[str, Any] = dict(self.filters)
        plain.update(tojson=_tojson, random=self._random)
        self.filters.update({name: self._filter(name, function) for name, function in plain.items()})
        self.filters.update(_cmp=self._compare, _cat=self._concat, _loop=self._loop, _test=self._test, _not=self._not,
                            _made=self._made, _cut=self._cut, _gate=self._gate)  # fmt: skip
        checks: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._filter(f"is {name}", function) for name, function in checks.items()}
        self.globals.update(raise_exception=self._raise, strftime_now=self._now, lipsum=self._lipsum)
        self.concat = self._join  # type: ignore[method-assign]

    def _settle(self, value: Any, kind: str) -> Any:
        if isinstance(value, str):
            if len(value) > LONGEST:
                raise OverBudget("a text longer than any honest one")
            self.run.charge(len(value) >> 8)
        elif isinstance(value, int) and value.bit_length() > 4096:
            raise OverBudget("a number longer than any honest one")
        elif isinstance(value, list | tuple | dict | set):
            check_size(value)
        elif kind and isinstance(value, Iterator):
            return (mark(inner, kind) for inner in value)
        return mark(value, kind) if kind and not isinstance(value, Marked | MarkedInt | Doubt) else value

    def _before(self, name: str, values: tuple[Any, ...], named: dict[str, Any]) -> str:
        """Charge an operation, note what marked values meet, and give the kind of its result."""
        every = (*values, *named.values())
        first, most = max(size_of(values[0]) if values else 1, 1), max([1, *map(size_of, every[1:])])
        if (first * most > PRODUCT and name != "truncate") or (name in _ODD and first > 10_000):
            raise OverBudget(f"{name} on more than any honest template gives it")
        if name in ("format", "%", "format_map") and values and isinstance(values[0], str) and _SPEC.search(values[0]):
            raise OverBudget("a format that is wider than any honest one")
        self.run.charge(1 + (first * most >> 12))
        for value in every:
            if isinstance(value, list | tuple | dict | set | Namespace):
                check_size(value)
        kind = kind_of(*every)
        if kind:
            for value in every:
                self.run.note(kind, value)
        return kind

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        given = 1 if hasattr(function, "jinja_pass_arg") else 0
        silent = name in ("is string", "is mapping", "is iterable", "is sequence", "is defined", "is none", "is undefined",
                          "default", "d", "tojson", "is boolean", "is number")  # fmt: skip

        @wraps(function)
        def watched(*args: Any, **named: Any) -> Any:
            if name in _GATHERS and len(args) > given and isinstance(args[given], Iterator):  # gone through, its marks are seen
                gathered = list(itertools.islice(args[given], BIGGEST + 1))
                check_size(gathered)
                args = (*args[:given], gathered, *args[given + 1 :])
            values = args[given:]
            if name == "attr" and len(values) > 1:
                self.run.reached(values[1])
            kind = self._before(name, values, named)
            if kind and kind != "given" and name in _SPELLING and isinstance(values[0], str):
                self.run.apart = True
            self._spelled(*values[:1])
            if name in ("length", "count") and isinstance(values[0], Turns):
                kind = "count"
            found = function(*args, **named)
            if values and isinstance(values[0], Turns) and name in _CHOOSES:
                return Turns(list(found)[:BIGGEST])  # how many are left is a count of messages too
            if not kind and name in _WRITTEN and isinstance(found, str) and values:
                kind = kind_within(values[0])  # a whole message as one text
            return self._settle(found, "" if silent and name.startswith("is ") else kind)

        return watched

    def call(self, context: Any, obj: Any, /, *args: Any, **named: Any) -> Any:
        """A call from the template: methods of marked text keep the mark."""
        self.run.charge(2)
        if isinstance(obj, Macro | type) or obj in (self.globals["raise_exception"], self.globals["namespace"]):
            return super().call(context, obj, *args, **named)
        if isinstance(obj, LoopContext):  # a recursive loop
            self.run.charge(size_of(args[0]) if args else 1)
            return super().call(context, obj, *args, **named)
        subject = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        bound = isinstance(subject, str | int | dict | list | tuple)
        kind = self._before(name := getattr(obj, "__name__", ""), (subject, *args) if bound else (0, *args), named)
        if kind:
            self._chosen(name, subject, args, kind == "given")
        return self._settle(super().call(context, obj, *args, **named), kind)

    def _chosen(self, name: str, subject: Any, args: tuple[Any, ...], given: bool) -> None:
        """Texts of the template that a method picks, or takes apart, by what a message says; and what can't be followed."""
        if isinstance(subject, dict) and args and kind_of(subject, args[0]):
            if given:  # what a tool is called may decide how it is written down
                return
            self.run.chose([*subject.values(), *args[1:]])
        elif isinstance(subject, str) and not isinstance(subject, Marked) and name in _SEPARATES:
            self.run.chose(subject)
        elif isinstance(subject, Marked) and name in _ESCAPES and not given:
            self.run.escaped.append(name)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator."""
        if operator == "**" and (size_of(right) > 64 or (isinstance(left, int) and left.bit_length() > 64)):
            raise OverBudget("a power larger than any honest one")
        if isinstance(left, int | float) and isinstance(right, int | float):
            self.run.charge(1)
            return self._settle(super().call_binop(context, operator, left, right), kind_of(left, right))
        if operator == "*" and kind_of(left, right) not in ("", "given"):
            self.run.chose([left, right])
        joined = operator == "+"
        kind = kind_of(left, right) if joined else self._before(operator, (left, right), {})
        if joined and size_of(left) + size_of(right) > PRODUCT:
            raise OverBudget("a text longer than any honest one")
        return self._settle(super().call_binop(context, operator, left, right), kind)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``."""
        self.run.reached(attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``."""
        self.run.reached(argument)
        if isinstance(obj, dict) and (kind := kind_of(obj, argument)):
            self.run.note(kind, obj)
            self.run.note(kind, argument)
        if (kind_of(argument) or isinstance(obj, dict)) and kind_of(obj, argument) not in ("", "given"):
            self.run.chose(obj)
        found = super().getitem(obj, argument)
        kind = kind_of(obj if isinstance(obj, str) else None, argument)
        return mark(found, kind) if kind else found

    # -- what the syntax tree was rewritten to --------------------------------------------------------------

    def _compare(self, left: Any, op: str, right: Any) -> Any:
        self.run.charge(1 + (min(size_of(left), size_of(right)) >> 12 if not isinstance(left, int) else 0))
        result = _OPERATORS[op](left, right)
        kind = kind_of(left, right)
        if not kind:
            return result
        for value in (left, right):
            self.run.note(kind, value)
        self._spelled(left, right)
        return mark(bool(result), kind)

    def _spelled(self, *values: Any) -> None:
        if self.run.apart and any(isinstance(value, Marked) and len(value) == 1 for value in values):
            self.run.spelled = True

    def _concat(self, *parts: Any) -> Any:
        for part in parts:
            check_size(part)
        return self._settle("".join(map(str, parts)), kind_of(*parts))

    def _join(self, parts: Any) -> str:
        whole = list(parts)
        if sum(map(len, whole)) > LONGEST:
            raise OverBudget("a text longer than any honest one")
        self.run.charge(len(whole) >> 3)
        text = "".join(whole)
        kind = kind_of(*whole)
        return mark(text, kind) if kind else text

    def _loop(self, values: Any, weight: int, number: int) -> Any:
        """What a loop goes over. Over what a message says, or as often as it says, that there is anything is a condition."""
        if isinstance(values, Undefined):
            return values
        kind = values.kind if isinstance(values, Marked | Span) else ""
        self.run.apart = self.run.apart or (isinstance(values, Marked) and kind != "given")
        found = []
        for value in values if not isinstance(values, str) else str.__str__(values):
            self.run.charge(weight)
            found.append(mark(value, kind) if kind else value)
        check_size(found)
        if kind and self._test(mark(bool(found), kind), number) != bool(found):
            return [] if found else [mark("" if isinstance(values, str) else 0, kind)]
        return found

    def _test(self, value: Any, number: int) -> bool:
        self.run.charge(1)
        truth = self.run.forced.get(number)
        truth = bool(value) if truth is None else truth
        self.run.tests.setdefault(number, set()).add(truth)
        if (kind := kind_of(value)) and kind != "given":
            self.run.doubtful[number] = kind
        return truth

    def _gate(self, value: Any, text: str) -> Any:
        if kind_of(value) not in ("", "given"):
            self.run.chose(text)
        return value

    def _not(self, value: Any) -> Any:
        kind = kind_of(value)
        return mark(not value, kind) if kind else not value

    def _made(self, value: Any) -> Any:
        check_size(value)
        return value

    def _cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        kind = kind_of(value if isinstance(value, str) else None)
        if isinstance(value, Undefined):
            return value
        if isinstance(value, str) and kind_of(start, stop, step) not in ("", "given"):
            self.run.chose(value)
        if kind:
            for bound in (start, stop):
                if isinstance(bound, int):
                    self.run.note(kind, bound)
        part = value[start:stop:step]
        return Turns(part) if isinstance(value, Turns) else self._settle(part, kind)

    # -- functions ------------------------------------------------------------------------------------------

    def _raise(self, message: Any = "") -> str:
        if self.run.quiet:
            return ""
        raise jinja2.TemplateError(str(message)[:300])

    def _now(self, form: Any = "%Y-%m-%d") -> Any:
        text = "".join(_CLOCK.findall(str(form)[:100]))
        return mark(self.run.clock.strftime(text), "clock")

    @pass_context
    def _random(self, context: Any, values: Any) -> Any:
        self.run.chance.append("random")
        found = list(values)[:BIGGEST]
        return mark(found[0], "chance") if found else ""

    def _lipsum(self, *args: Any, **named: Any) -> str:
        self.run.chance.append("lipsum")
        return ""


def _within(left: Any, right: Any) -> bool:
    return bool(left in right)


def _without(left: Any, right: Any) -> bool:
    return left not in right


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt, "gteq": operator.ge,
    "in": _within, "notin": _without,
}  # fmt: skip


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str) and _SPEC.search(left):
        raise OverBudget("a format that is wider than any honest one")
    return left % right


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    if isinstance(indent, int) and indent > 16:
        raise OverBudget("an indent that is wider than any honest one")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_context
def _finalize(context: Any, value: Any) -> Any:
    """What is written out; that it takes the context keeps Jinja from computing constants while it compiles."""
    if not isinstance(value, str):
        check_size(value)
    return value


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant said; for the text it does nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Program:
    """One compiled template: ``tests`` are the source lines of its conditions and loops, ``free`` the variables that it takes,
    ``numbers`` the whole numbers that are written in it, ``names`` and ``roles`` what it asks for beyond the usual.

    Raises:
        jinja2.TemplateError: a syntax error.
        OverBudget: larger than any honest template.
    """

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE:
            raise OverBudget(f"{len(source)} characters")
        self.env = Watched()
        self.source = source
        try:
            tree = self.env.parse(source)
            if sum(1 for _ in tree.find_all(nodes.Node)) > NODES:
                raise OverBudget("a syntax tree larger than any honest one")
            names = list(tree.find_all(nodes.Name))
            given = {n.name for n in names if n.ctx != "load"} | set(self.env.globals)
            self.free = {n.name for n in names if n.ctx == "load"} - given
            self.tests: list[int] = []
            constants = {n.value for n in tree.find_all(nodes.Const) if type(n.value) is int}
            self.numbers = sorted(n for n in constants if n > 0)
            self.names, self.roles = asked_for(tree)
            self._rewrite(tree)
            code = self.env.compile(tree)
            self.template = jinja2.Template.from_code(self.env, code, self.env.make_globals(None))
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise OverBudget(f"{NESTED} ({type(error).__name__})") from error

    def _rewrite(self, node: Any) -> None:
        """Put the watching filters where Jinja would compute on its own."""
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                self._rewrite(value)
                setattr(node, name, self._watched(value))
            elif isinstance(value, list):
                for inner in value:
                    if isinstance(inner, nodes.Node):
                        self._rewrite(inner)
                value[:] = [self._watched(v) if isinstance(v, nodes.Node) else v for v in value]
        if isinstance(node, nodes.If | nodes.CondExpr) or (isinstance(node, nodes.For) and node.test is not None):
            assert node.test is not None
            self.tests.append(node.lineno)
            node.test = _applied("_test", node.test, nodes.Const(len(self.tests) - 1))
        if isinstance(node, nodes.For):
            weight = 1 + sum(1 for inner in node.body for _ in inner.find_all(nodes.Node)) // 16
            self.tests.append(node.lineno)
            node.iter = _applied("_loop", node.iter, nodes.Const(weight), nodes.Const(len(self.tests) - 1))

    def _watched(self, node: Any) -> Any:
        if isinstance(node, nodes.Compare):
            left, terms = node.expr, []
            for op in node.ops:
                terms.append(_applied("_cmp", left, nodes.Const(op.op), op.expr))
                left = op.expr
            whole: nodes.Expr = terms[0]
            for term in terms[1:]:
                whole = nodes.And(whole, term, lineno=node.lineno)
            return whole
        if isinstance(node, nodes.Concat):
            return _applied("_cat", *node.nodes)
        if isinstance(node, nodes.Not):
            return _applied("_not", node.node)
        if isinstance(node, nodes.And | nodes.Or):
            for text in (n.value for n in node.right.find_all(nodes.Const) if isinstance(n.value, str)):
                node.left = _applied("_gate", node.left, nodes.Const(text))
            if isinstance(node.right, nodes.Const) and isinstance(node.right.value, str):
                node.left = _applied("_gate", node.left, nodes.Const(node.right.value))
            return node
        if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            return _applied("_made", node)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            ends = (node.arg.start, node.arg.stop, node.arg.step)
            return _applied("_cut", node.node, *(end or nodes.Const(None) for end in ends))
        return node

    def render(self, run: Run, variables: dict[str, Any]) -> str:
        """The text for these variables; ``run`` remembers what was seen.

        Raises:
            jinja2.TemplateError: the template refused, or reached for something that is not there.
            OverBudget: too much work.
        """
        self.env.run = run
        run.end = time.perf_counter() + SECONDS
        try:
            pieces = self.template.root_render_func(self.template.new_context(variables))
            return "".join(self._pieces(pieces, run))
        except (RecursionError, MemoryError) as error:
            raise OverBudget(f"{NESTED} ({type(error).__name__})") from error
        except (OverBudget, jinja2.TemplateError):
            raise
        except Exception as error:  # filters and methods raise anything on values they were not made for
            raise jinja2.TemplateError(f"{type(error).__name__}: {str(error)[:200]}") from error

    @staticmethod
    def _pieces(pieces: Iterator[str], run: Run) -> Iterator[str]:
        total = 0
        for piece in pieces:
            total += len(piece)
            run.charge(1)
            if total > LONGEST:
                raise OverBudget("a text longer than any honest one")
            yield piece


def _applied(name: str, first: Any, *rest: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(first, name, list(rest), [], None, None, lineno=first.lineno)
