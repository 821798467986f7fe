"""Strategies for templates: grammar-made ones that mean something to Jinja, and noise around its delimiters.

Run as a program (``python tests/fuzz/templates.py MINUTES``) it tries new ones until the time is over.
"""

from __future__ import annotations

import resource
import sys
import time

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from weightsmith.trust.scanners.templates import Carrier, _tried

LIMIT = 1.0  # seconds of one rendering
NAMES = st.sampled_from(("messages", "message", "m", "tools", "x", "ns", "loop", "cycler", "lipsum", "self", "range",
      "namespace", "dict"))
FIELDS = st.sampled_from(("content", "role", "x", "split", "format", "upper", "__class__", "first", "items", "join",
      "replace", "center"))
FILTERS = st.sampled_from(("length", "trim", "list", "join", "upper", "tojson", "center", "indent", "replace('a', 'bb')",
      "reverse", "first",
                           "batch(3)", "slice(2)", "map('upper')", "select", "sort", "unique", "sum", "urlize",
                           "wordwrap(3)", "string",
                           "int", "format(7)", "items", "dictsort", "groupby('role')", "attr('x')", "default('x')",
                           "striptags", "xmlattr",
                           "pprint", "truncate(9)", "random", "filesizeformat", "max"))  # fmt: skip
CONSTANTS = st.sampled_from(("1", "0", "'a'", "'%s'", "'{0}'", "10**9", "99999", "''", "[]", "{}", "true", "none", "'x' * "
      "9999", "2.5"))


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(("+", "-", "*", "/", "//", "%", "**", "~", "in", "==", "<", "and", "or", "not in"))
    return st.one_of(
        st.tuples(inner, operators, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, FILTERS).map(lambda t: f"{t[0]}|{t[1]}"),
        st.tuples(inner, FIELDS).map(lambda t: f"{t[0]}.{t[1]}"),
        st.tuples(inner, inner).map(lambda t: f"{t[0]}[{t[1]}]"),
        st.tuples(inner, inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
        st.tuples(inner, inner).map(lambda t: f"[{t[0]}, {t[1]}]"),
        st.tuples(inner, inner).map(lambda t: f"{t[0]}[:{t[1]}]"),
        inner.map(lambda t: f"{{'k': {t}}}"),
    )  # fmt: skip


EXPRESSIONS = st.recursive(st.one_of(NAMES, CONSTANTS), _combined, max_leaves=8)


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(EXPRESSIONS, inner).map(lambda t: f"{{% for m in {t[0]} %}}{t[1]}{{% endfor %}}"),
        st.tuples(inner,).map(lambda t: f"{{% for message in messages %}}{t[0]}{{% endfor %}}"),
        st.tuples(inner,).map(lambda t: f"{{% for i in range(99999) %}}{t[0]}{{% endfor %}}"),
        st.tuples(EXPRESSIONS, inner, inner).map(lambda t: f"{{% if {t[0]} %}}{t[1]}{{% else %}}{t[2]}{{% endif %}}"),
        st.tuples(inner, inner).map(lambda t:
              f"{{% macro f(x) %}}{t[0]}{{{{ f(x ~ x) }}}}{{% endmacro %}}{{{{ f('a') }}}}{t[1]}"),
        st.tuples(inner, inner).map(lambda t: f"{{% set x %}}{t[0]}{{{{ x }}}}{{% endset %}}{t[1]}"),
        st.tuples(EXPRESSIONS, inner).map(lambda t:
              f"{{% set ns = namespace(x={t[0]}) %}}{{% set ns.x = [ns.x, ns.x] %}}{t[1]}{{{{ ns.x }}}}"),
        st.lists(inner, min_size=2, max_size=3).map("".join),
    )  # fmt: skip


TEMPLATES = st.recursive(st.one_of(EXPRESSIONS.map("{{{{ {} }}}}".format), st.sampled_from(("text", "<|x|>", "\n", ""))),
      _nested, max_leaves=6)
NOISE = st.lists(st.one_of(st.sampled_from(("{{", "}}", "{%", "%}", "{#", "#}", "for", "if", "endif", "(", ")", "[", "|",
      "'", "messages")),
                           st.text(max_size=4)), max_size=40).map(" ".join)  # fmt: skip


def try_one(text: str) -> float:
    """Try one template as a scan does; the seconds of processor time that it took."""
    begin = time.process_time()
    _tried(Carrier("chat_template.jinja", "", "default", text, "file", ""), {})
    return time.process_time() - begin


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
    end, worst, count = time.monotonic() + 60 * float(sys.argv[1]), (0.0, ""), 0

    @settings(max_examples=2000, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.one_of(TEMPLATES, NOISE))
    def _run(text: str) -> None:
        global worst, count
        if time.monotonic() < end:
            worst, count = max(worst, (try_one(text), text)), count + 1

    while time.monotonic() < end:
        _run()
    print(f"{count} templates; the slowest trial {worst[0]:.2f} s: {worst[1][:300]!r}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
