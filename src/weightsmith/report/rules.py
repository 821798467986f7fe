"""Pages about the rules of a scan: one for each, and their list."""

from __future__ import annotations

from collections.abc import Iterable

from ..trust.rules import Rule

_WORDS = {"unknown": "could not tell"}


def rule_page(rule: Rule) -> str:
    """The Markdown page of one rule."""
    lines = [f"# {rule.name}", "", f"**{_WORDS.get(rule.severity, rule.severity)}**: {rule.title}.", "",
             "## Why it matters", "", rule.why, "", "## What to do", "", rule.action, ""]  # fmt: skip
    if rule.see:
        lines += ["## See", "", *(f"- {_linked(s)}" for s in rule.see), ""]
    return "\n".join(lines)


def rule_list(rules: Iterable[Rule]) -> str:
    """The Markdown page that lists all rules by what they make of a verdict."""
    lines = ["# Rules of the scan", "", "Made from the rules themselves; `weightsmith scan --explain NAME` prints the same.", "",
             "| rule | verdict | what it found |", "| --- | --- | --- |"]  # fmt: skip
    order = ("malicious", "broken", "unknown", "suspicious", "note")
    for rule in sorted(rules, key=lambda r: (order.index(r.severity), r.name)):
        lines.append(f"| [{rule.name}]({rule.name}.md) | {_WORDS.get(rule.severity, rule.severity)} | {rule.title} |")
    return "\n".join([*lines, ""])


def pages(rules: Iterable[Rule]) -> dict[str, str]:
    """Every page of ``docs/rules/`` by file name."""
    many = list(rules)
    return {"README.md": rule_list(many), **{f"{r.name}.md": rule_page(r) for r in many}}


def _linked(text: str) -> str:
    if text.startswith("CVE-"):
        return f"[{text}](https://nvd.nist.gov/vuln/detail/{text})"
    if text.startswith("GHSA-"):
        return f"[{text}](https://github.com/advisories/{text})"
    return f"<{text}>" if text.startswith("https://") else text
