"""YAML, read as a stream of events: nothing is built, aliases are not followed, tags and targets are looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError, LimitExceeded
from ...found import Finding, Severity
from ..items import Item
from ..kinds import as_text
from ..listing import shown
from ..rules import Rule
from .expressions import EVALUATING, RUNS, hostile_expression, runs
from .remote_keys import KNOWN
from .targets import DANGEROUS, is_hostile, judge_known

TAG = Rule(
    "yaml-builds-objects", "malicious", "YAML that builds Python objects",
    "A tag such as `!!python/object/apply` calls any function with any arguments in every loader but the safe one.",
    "Don't load it. Configuration needs no such tags.",
    ("CVE-2020-14343", "CVE-2020-1747", "https://cwe.mitre.org/data/definitions/502.html"),
)  # fmt: skip
TARGET = Rule(
    "config-names-code", "suspicious", "A configuration that names a function to call",
    "Libraries that build models from `_target_` import the path that it names and call it with the values beside it. "
    "Classes of model libraries are expected there, and functions that build layers; what is in no known library is somebody's "
    "code, and the same libraries hold functions that run programs, import, fetch or unpickle what they are given.",
    "Read what it names. If it is not part of the library that the model is for, or does more than build, don't load it.",
    ("CVE-2025-23304", "https://cwe.mitre.org/data/definitions/470.html"),
)  # fmt: skip
GROWS = Rule(
    "yaml-bomb", "malicious", "YAML whose aliases grow beyond measure",
    "A few lines that refer to each other expand to billions of values when they are loaded.",
    "Don't load it.",
    ("https://cwe.mitre.org/data/definitions/776.html",),
)  # fmt: skip
MALFORMED = Rule(
    "yaml-malformed", "note", "YAML that can't be read to its end",
    "A program that needs it stops with an error; one that reads only its beginning uses other values than are written there.",
    "Ask the publisher for a valid file if a program needs it.",
)  # fmt: skip
UNREAD = Rule(
    "yaml-too-large", "unknown", "A YAML file too large to be checked",
    "What comes behind the part that was read may hold tags that build objects.",
    "Find out what it is for; configuration is never this large.",
)  # fmt: skip
RULES = (TAG, TARGET, GROWS, MALFORMED, UNREAD)

MOST = 1 << 23  # bytes
_EVALUATED = re.compile(rf"(?:^|[{{,\s])['\"]?(?:{'|'.join(sorted(EVALUATING))})['\"]?:", re.MULTILINE)
MOST_AGAIN = 200_000  # letters that the slower of two parsers reads
EVENTS = 400_000
DEPTH = 200
EXPANDED = 10_000_000  # values after all aliases are followed
_KNOWN = re.compile(
    r"torch\.\w+\Z|(?:nemo|nemo_\w+|megatron|torch\.(?:nn|optim|utils\.data|distributions|amp|linalg)|torchaudio|torchvision|torchmetrics|transformers|lightning"
    r"|pytorch_lightning|omegaconf|diffusers|timm|peft|apex|litgpt|espnet[23]?|speechbrain|fairseq2?|torchtune|hydra_plugins|monai"
    r"|mmengine|mmcv|mmdet|mmseg|mmpose|detectron2|audiocraft|lerobot|pyannote|asteroid|kornia|einops|hydra\.utils)\.",
    re.ASCII,
)


#: HyperPyYAML's tags that import, those that call or keep what they import among them; and the one that reads another file
_NAMING = re.compile(r"!(new|name|apply|applyref|module):(.*)", re.DOTALL)
_INCLUDED = re.compile(r"!include:(.*)", re.DOTALL)
_TRUSTING = re.compile(r"\btrust_remote_code['\"]?\s*[:=]\s*['\"]?(?:true|yes|on|1)\b", re.IGNORECASE)
#: whatever root these have, SpeechBrain's own configurations name them
_PLAIN = re.compile(
    r"(?:builtins\.)?(?:sorted|len|range|min|max|sum|abs|round|str|int|float|bool|list|dict|tuple|set)|collections\.\w+")
#: functions of Hydra that give back what another key names
_GETS = re.compile(r"\bhydra\.utils\.get_(?:class|method|static_method|object)\b")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)
_STARTS = re.compile(r"(?:os|posix|nt|subprocess|pty)\.|__import__ of|getattr of")
_INLINE = re.compile(r"bash\s+(?:-\w+\s+)*-\w*c\b")
_VALUES = frozenset({"none", "bool", "str", "unicode", "bytes", "int", "long", "float", "complex", "list", "tuple", "dict"})
#: what programs that dump their settings without care leave behind: building these runs nothing of an attacker's
_DUMPED = re.compile(
    r"(?:collections\.(?:OrderedDict|defaultdict)|argparse\.Namespace|pathlib\.(?:Pure)?(?:Posix|Windows)?Path|easydict\.EasyDict|"
    r"numpy\.(?:_?core\.multiarray\.scalar|dtype(?:\[\w+\])?|float\d+|int\d+)|torch\.(?:device|dtype|Size)|datetime\.\w+|uuid\.UUID|"
    r"yacs\.config\.CfgNode|omegaconf\.\w+\.\w+)\Z",
    re.ASCII,
)


def judge_tag(tag: str) -> Severity:
    """How bad a tag for a Python value is: plain values are nothing, dumped settings and names unusual, the rest runs code."""
    kind, _, target = tag.partition("python/")[2].partition(":")
    if kind in _VALUES:
        return "note"
    if kind == "name" and judge_target(target) != "malicious":
        return "suspicious"
    return "suspicious" if kind.startswith("object") and _DUMPED.match(target) else "malicious"


def judge_target(target: str, *, trusting: bool = False) -> str:
    """``"malicious"``, ``"suspicious"`` or, for classes and building functions of model libraries, ``""``; ``trusting`` where the
    file lets the code of repositories run."""
    if is_hostile(target):
        return "malicious"
    return judge_known(target, trusting=trusting) if _KNOWN.match(target.strip()) else "suspicious"


def check(item: Item) -> Iterator[Finding]:
    """Findings of one YAML file."""
    import yaml  # which few models need

    name = shown(item.name)
    try:
        raw = item.read(MOST)
    except LimitExceeded:
        yield UNREAD.found(f"{item.size} bytes", file=name)
        raw = item.head
    text = as_text(raw)
    if text is None:
        yield MALFORMED.found("not text", file=name)
        return
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        yield from _events(text, name, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if loader is not yaml.SafeLoader:
            yield from _again(text, name)
        yield MALFORMED.found(f"{str(error)[:200]}", file=name)
        if re.search(r"(?:!!|tag:yaml\.org,2002:)python/(?:object|name|module)", text):
            yield TAG.found("a tag that builds Python objects, in a file that can't be read whole", file=name)
    except FormatError as error:
        yield UNREAD.found(error.message, file=name)


def _again(text: str, name: str) -> Iterator[Finding]:
    """What the parser in Python makes of a file that the one in C refuses: loaders use either."""
    import yaml

    if len(text) > MOST_AGAIN:
        yield UNREAD.found(f"one of two parsers refuses it, and it has more than {MOST_AGAIN} letters", file=name)
        return
    try:
        yield from _events(text, name, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    except FormatError as error:
        yield UNREAD.found(error.message, file=name)


@dataclass(slots=True)
class _Frame:
    """An open list or mapping; ``key`` is the key whose value comes next."""

    mapping: bool
    anchor: str | None
    before: int
    at_key: bool = True
    key: str = ""


@dataclass(frozen=True, slots=True)
class _Means:
    """What a file's words say of all its values: whether MONAI evaluates some, whether code of repositories is to be run, whether
    ``path`` names something to import."""

    evaluated: bool
    trusting: bool
    gets: bool


def _key(frames: list[_Frame], value: str) -> str:
    """The key that a value stands under, ``""`` for keys themselves and for members of lists."""
    if not frames or not frames[-1].mapping:
        return ""
    frame = frames[-1]
    frame.at_key = not frame.at_key
    if frame.at_key:
        return frame.key
    frame.key = value
    return ""


def _events(text: str, name: str, loader: Any) -> Iterator[Finding]:
    import yaml

    sizes: dict[str, int] = {}
    texts: dict[str, str] = {}
    frames: list[_Frame] = []
    total = 1
    means = _Means(_EVALUATED.search(text) is not None, _TRUSTING.search(text) is not None, _GETS.search(text) is not None)
    for count, event in enumerate(yaml.parse(text, Loader=loader)):
        if count > EVENTS:
            raise FormatError(f"more than {EVENTS} values")
        line = event.start_mark.line + 1 if event.start_mark else 0
        tag = getattr(event, "tag", None)
        if tag and "python/" in tag:
            value = getattr(event, "value", "")
            yield TAG.found(f"the tag {tag[:200]!r}", file=name, place=f"line {line}", evidence=f"{tag} {value}",
                            severity=judge_tag(tag))  # fmt: skip
        if tag and (named := _NAMING.match(tag)):
            yield from _named(named[1], named[2], name, line, means.trusting)
        elif tag and (path := _INCLUDED.match(tag)):
            yield from _included(path[1], name, line)
        if isinstance(event, yaml.ScalarEvent):
            key = _key(frames, event.value)
            yield from _target(key, event.value, name, line, means)
            if key == "download" and len(frames) == 1:
                yield from _download(event.value, name, line)
            total += 1
            if event.anchor:
                sizes[event.anchor], texts[event.anchor] = 1, event.value
        elif isinstance(event, yaml.AliasEvent):
            text = texts.get(event.anchor or "", "")  # a key or a target may stand elsewhere in the file
            yield from _target(_key(frames, text), text, name, line, means)
            total += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            _key(frames, "")
            frames.append(_Frame(isinstance(event, yaml.MappingStartEvent), event.anchor, total))
            texts.pop(event.anchor or "", None)
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            frame = frames.pop()
            if frame.anchor:
                sizes[frame.anchor] = total - frame.before
        if len(frames) > DEPTH:  # some parsers take time with the square of it
            raise FormatError(f"more than {DEPTH} levels")
        if total > EXPANDED:
            yield GROWS.found(f"more than {EXPANDED} values once its aliases are followed", file=name, place=f"line {line}")
            return


def _named(kind: str, target: str, name: str, line: int, trusting: bool) -> Iterator[Finding]:
    """A tag of HyperPyYAML, as SpeechBrain loads its models: the loader imports what it names, and calls it."""
    tag = f"!{kind}:{target}"
    if _PLAIN.fullmatch(target):
        return
    if kind == "module":  # which nothing calls by itself: a name of it is looked at where it is used
        level = "malicious" if is_hostile(target) else judge_known(target + ".Any")
    else:
        level = "malicious" if DANGEROUS.fullmatch(target) or is_hostile(target) else judge_known(target, trusting=trusting)
    if level or target.split(".")[0] not in KNOWN:
        yield TARGET.found(f"the tag {tag[:200]}", file=name, place=f"line {line}", evidence=tag,
                           severity="malicious" if level == "malicious" else None)  # fmt: skip


def _included(path: str, name: str, line: int) -> Iterator[Finding]:
    """Another file that is loaded in the same way: only a YAML file of the folder is scanned as one."""
    plain = path.strip().replace("\\", "/")
    if plain.startswith(("/", "~")) or ".." in plain.split("/") or ":" in plain or not plain.lower().endswith((".yaml", ".yml")):
        yield TARGET.found(f"includes {path[:200]}, which is no YAML file of this folder", file=name, place=f"line {line}",
                           evidence=path[:300])  # fmt: skip


def _download(value: str, name: str, line: int) -> Iterator[Finding]:
    """What Ultralytics does to get a dataset that is not there: an archive is fetched, anything else a shell or Python runs."""
    text, bad = value.strip(), hostile_expression("$" + value)
    if text.startswith("bash "):
        how, bad = "a shell", bad or (text if _INLINE.match(text) else "")
    elif not text.startswith("http") and runs(text):
        how = "Python"
    else:
        return
    yield TARGET.found(f"download: {text[:200]}, which Ultralytics has {how} run where the dataset is not there", file=name,
                       place=f"line {line}", evidence=text[:300], severity="malicious" if bad else None)  # fmt: skip


def _target(key: str, value: str, name: str, line: int, means: _Means) -> Iterator[Finding]:
    """A value that names a function, whatever the key, or that MONAI evaluates; and a module that MLflow imports."""
    said, bad = "", False
    if RUNS.fullmatch(value.strip()) and key not in ("_target_", "target", "_component_"):
        said, bad = f"{key or 'a value'}: {value[:200]}", True
    elif means.evaluated and (what := hostile_expression(value)):
        said, bad = f"an expression that MONAI evaluates calls {what}", True
    elif "(" in value and _STARTS.match(what := hostile_expression("$" + value)):
        said, bad = f"{key or 'a value'}: {value[:200]}, which calls {what} where a loader evaluates it, as some of YOLO's do", True
    elif key == "loader_module" and value.split(".")[0] not in {"mlflow", *KNOWN}:
        said = f"loader_module: {value[:200]}, which MLflow imports"
    if said:
        yield TARGET.found(said, file=name, place=f"line {line}", evidence=value[:300], severity="malicious" if bad else None)
    named = key in ("_target_", "target", "_component_") or (key == "path" and means.gets)
    if not named or not ("." in value or "${" in value):
        return
    # one with a reference is put together by the loader from other values
    level = "suspicious" if "${" in value else judge_target(value, trusting=means.trusting)
    certain = key == "_target_" or (_DOTTED.fullmatch(value) and _KNOWN.match(value))  # the other keys have other uses as well
    if level == "malicious" or (level and certain):
        yield TARGET.found(f"{key}: {value[:200]}", file=name, place=f"line {line}", evidence=value,
                           severity="malicious" if level == "malicious" else None)  # fmt: skip
