"""Rules: what each finding means, why it matters and what to do; the pages of ``docs/rules/`` are made from this."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UsageError
from ..found import Finding, RuleText, Severity


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of finding.

    ``name`` is kebab-case and never reused; ``severity`` what one finding of it does to the verdict; ``title`` one line,
    ``why`` what an attacker or an accident does with it, ``action`` what the reader does now; ``see`` advisories (CVE,
    GHSA) and specifications.
    """

    name: str
    severity: Severity
    title: str
    why: str
    action: str
    see: tuple[str, ...] = ()

    def found(
        self, message: str, *, file: str = "", place: str = "", evidence: str = "", severity: Severity | None = None
    ) -> Finding:
        """A finding of this rule; long evidence is cut to 400 characters."""
        if len(evidence) > EVIDENCE:
            evidence = evidence[: EVIDENCE - 1] + "…"
        return Finding(rule=self.name, severity=severity or self.severity, file=file, place=place, message=message,
                       evidence=evidence)  # fmt: skip

    @property
    def text(self) -> RuleText:
        """The rule as a record."""
        return RuleText(title=self.title, severity=self.severity, why=self.why, action=self.action, see=list(self.see))


EVIDENCE = 400


def by_name(rules: Iterable[Rule]) -> dict[str, Rule]:
    """Rules by name.

    Raises:
        UsageError: two rules have one name.
    """
    found: dict[str, Rule] = {}
    for rule in rules:
        if rule.name in found and found[rule.name] != rule:
            raise UsageError(f"two scanners have a rule called {rule.name!r}", hint="rename the plug-in's")
        found[rule.name] = rule
    return found
