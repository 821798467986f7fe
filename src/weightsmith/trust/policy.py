"""What a team accepts: a strict YAML file that says which rules fail, which kinds of file and which licences are allowed.

::

    schema: weightsmith/policy/1
    rules:
      remote-code: malicious        # or suspicious, note, ignore
      special-file: ignore
    formats: [safetensors, json, text, template, image]
    licences: [apache-2.0, mit]

Only severities that a person may consent to can be lowered: what is malicious, broken or could not be analysed stays so
unless the rule is named here, and then the record says by which policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..errors import RecipeError
from ..found import Finding, ScannedFile
from ..records import Strict, parse
from .rules import Rule

POLICY = "weightsmith/policy/1"
MOST = 1 << 16
_LISTED = 50  # files of formats that are not allowed; the rest is counted

FORMAT = Rule(
    "format-not-allowed", "suspicious", "A kind of file that your policy does not allow",
    "The policy lists the kinds of file that a model may hold, and this is none of them.",
    "Remove the file, or add its kind to `formats` in the policy.",
)  # fmt: skip
LICENCE = Rule(
    "licence-not-allowed", "suspicious", "A licence that your policy does not allow, or none that could be found",
    "The policy lists the licences that you accept; the model's card names another, or names none.",
    "Ask whoever decides on licences, or add this one to `licences` in the policy.",
)  # fmt: skip
RULES = (FORMAT, LICENCE)


class Policy(Strict):
    """A policy file; an empty list of formats or licences allows every one."""

    schema_id: str = Field(POLICY, alias="schema")
    rules: dict[str, Literal["ignore", "note", "suspicious", "unknown", "broken", "malicious"]] = Field(default_factory=dict)
    formats: list[str] = Field(default_factory=list)
    licences: list[str] = Field(default_factory=list)


def read_policy(path: Path, known: Iterable[str]) -> tuple[Policy, str]:
    """A policy and the SHA-256 of its file.

    Raises:
        RecipeError: not YAML, a key twice, an unknown field, or a rule that does not exist.
        OSError: it can't be read.
    """
    import yaml

    raw = path.read_bytes()
    if len(raw) > MOST:
        raise RecipeError(f"longer than {MOST} bytes", where=path)
    try:
        node = yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
        if doubled := _doubled(node):
            raise RecipeError(f"the key {doubled!r} stands there twice", where=path)
        data = yaml.safe_load(raw.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"not valid YAML ({' '.join(str(error).split())[:200]})", where=path) from error
    policy: Policy = parse(Policy, data, path, POLICY, "docs/scan.md")
    from .scan import SCANNERS

    kinds = {kind for name in SCANNERS.names() for kind in SCANNERS.load(name).kinds} | {"binary"}
    if odd := sorted(set(policy.formats) - kinds):
        raise RecipeError(f"no kind of file is called {odd[0]!r}", where=path, hint=f"known: {', '.join(sorted(kinds))}")
    names = set(known)
    if unknown := sorted(set(policy.rules) - names):
        raise RecipeError(f"no rule is called {unknown[0]!r}", where=path, hint="`weightsmith scan --explain all` lists them")
    return policy, hashlib.sha256(raw).hexdigest()


def _doubled(node: object) -> str:
    """The first key that a mapping of the document holds twice."""
    import yaml

    pending = [node]
    while pending:
        here = pending.pop()
        if isinstance(here, yaml.MappingNode):
            keys = [k.value for k, _ in here.value if isinstance(k, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    return str(key)
            pending += [child for _, child in here.value]
        elif isinstance(here, yaml.SequenceNode):
            pending += here.value
    return ""


def apply(policy: Policy, findings: Iterable[Finding], files: Iterable[ScannedFile], licence: str | None) -> Iterator[Finding]:
    """The findings as the policy sees them, and what it adds; ignored rules are left out."""
    allowed = {f.casefold() for f in policy.formats}
    for finding in findings:
        wish = policy.rules.get(finding.rule)
        if wish is None:
            yield finding
        elif wish != "ignore":
            yield finding.model_copy(update={"severity": wish})
    others = [f for f in files if not {*f.kind.split("+")} <= allowed] if allowed else []
    for file in others[:_LISTED]:
        yield FORMAT.found(f"its content is {file.kind}", file=file.name, severity=_wish(policy.rules, FORMAT))
    if len(others) > _LISTED:
        more = f"{len(others) - _LISTED} more findings of this rule are not listed"
        yield FORMAT.found(more, severity=_wish(policy.rules, FORMAT))
    if policy.licences and (licence or "").casefold() not in {x.casefold() for x in policy.licences}:
        said = f"the card says {licence!r}" if licence else "no licence was found in the card"
        yield LICENCE.found(said, severity=_wish(policy.rules, LICENCE))


def _wish(rules: Mapping[str, str], rule: Rule) -> Literal["note", "suspicious", "unknown", "broken", "malicious"]:
    wish = rules.get(rule.name, rule.severity)
    return "note" if wish == "ignore" else wish  # type: ignore[return-value]
