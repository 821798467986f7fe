"""Code that comes with a model: what makes a loader run it, and what it would do. It is shown, never run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import ClassVar

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import Folder, Item, Scanner
from ..listing import shown
from . import remote_rules as rules
from .python_code import LARGEST, MOST_ALL, Code, notebook_code, read_code
from .remote_keys import Ask, Pairs, asks, parsed, yaml_asks

LARGEST_JSON = 1 << 20
MOST_CELLS = 10_000  # of a notebook
LARGEST_CONFIG = 1 << 24  # bytes of a file that loaders read as a configuration
_CONFIGS = re.compile(r".*config(?:_\w+)?\.json|modules\.json|(?:modular_)?model_index\.json|params\.json|adapter_model\.json")
_NOT_CONFIGS = re.compile(r"tokenizer\.json|vocab\.json|added_tokens\.json|.*\.index\.json|trainer_state\.json"
                          r"|special_tokens_map\.json")  # fmt: skip
#: imported or run by name without being asked for
_ENTRY = {
    "sitecustomize.py": "Python imports it at every start", "usercustomize.py": "Python imports it at every start",
}  # fmt: skip
_SERVED = {"hubconf.py": "torch.hub runs it", "handler.py": "inference services run it", "setup.py": "an installation runs it",
           "conftest.py": "pytest runs it", "app.py": "a Space runs it"}
#: the same by where they lie; elsewhere a script of this name is somebody's example
_PLACED = ((re.compile(r"(?:^|/)\d+/model\.py$"), "Triton runs it"),
           (re.compile(r"(?:^|/)code/inference\.py$"), "SageMaker runs it"))
_LIBRARIES = frozenset((
    "torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub", "json", "os", "sys", "re",
    "typing", "logging", "random", "math", "time", "collections", "dataclasses", "pathlib", "subprocess", "tqdm",
    "requests", "yaml", "datasets", "peft", "accelerate", "diffusers", "sentence_transformers", "scipy", "tensorflow",
    "jax", "flax", "einops", "pandas", "PIL", "regex",
))  # fmt: skip


_PYTHON = re.compile(rb"#![^\n]{0,200}\bpython")


class RemoteCode(Scanner):
    """Finds what asks for code, and reads the code."""

    name = "remote-code"
    rules = rules.RULES
    kinds: ClassVar[frozenset[str]] = frozenset(["python", "notebook", "yaml", "json", "text", "script"])
    needs_bytes = False
    about = "Code: what in the configurations makes a loader import or download code, and what the Python files would do"

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Code inside archives; that of the folder is seen together with what asks for it."""
        if item.outer is not None:
            if _is_python(item):
                yield from _python(item, "")
            elif "notebook" in item.kinds:
                yield from _notebook(item)
            else:
                yield from _asked(item, {}, frozenset())
                yield from _beside_code(item)

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Every configuration, every Python file, and what goes with them."""
        wanted: dict[str, str] = {}
        # loaders look for a file of a module's name beside the configuration before they import a library of that name
        python = [item.name.removesuffix(".py").split("/") for item in folder.items.values() if _is_python(item)]
        local = frozenset(part for parts in python for part in parts[-2:])  # a package is a folder
        for item in folder.items.values():
            yield from _asked(item, wanted, local)
        left = [MOST_ALL]
        codes = {item.name: read_code(_bytes(item), left)
                 for item in folder.items.values() if _is_python(item)}  # fmt: skip
        _follow(wanted, codes)
        for item in folder.items.values():
            if item.name in codes:
                yield from _python(item, wanted.get(item.name, ""), codes[item.name])
            elif "notebook" in item.kinds:
                yield from _notebook(item)
            yield from _beside_code(item)


def _bytes(item: Item) -> bytes:
    """The file, or as much of it as says that it is too large."""
    with item.open() as file:
        return file.read(LARGEST + 1)


def _is_python(item: Item) -> bool:
    if "script" in item.kinds and _PYTHON.match(item.head):
        return True
    return "python" in item.kinds or item.basename.endswith((".py", ".pyw", ".pyi"))


def _beside(item: Item, file: str) -> str:
    folder = item.name.rsplit("/", 1)[0] + "/" if "/" in item.name else ""
    return folder + file


def _asked(item: Item, wanted: dict[str, str], local: frozenset[str]) -> Iterator[Finding]:
    """What one configuration asks for; the files that it names are added to ``wanted``."""
    try:
        for ask in _asks(item, local):
            for file in ask.files:
                wanted.setdefault(_beside(item, file), item.name)
            finding = ask.rule.found(ask.message, file=shown(item.name), place=ask.place, evidence=ask.evidence)
            yield finding.model_copy(update={"severity": ask.severity}) if ask.severity else finding
    except LimitExceeded as error:
        yield rules.TOO_LARGE.found(f"it holds {error.message}", file=shown(item.name))


def _asks(item: Item, local: frozenset[str]) -> Iterator[Ask]:
    """Raises :class:`LimitExceeded` for a configuration that is too large to be read."""
    base = item.basename
    if base.lower().endswith((".yaml", ".yml")):
        if item.size > LARGEST_CONFIG:
            raise LimitExceeded(f"{item.size} bytes")
        with contextlib.suppress(FormatError):  # said by what reads settings
            yield from yaml_asks(item.text(LARGEST_CONFIG), local)
        return
    config = _CONFIGS.fullmatch(base) is not None
    if not (config or ("json" in item.kinds and not _NOT_CONFIGS.fullmatch(base))):
        return
    if item.size > (LARGEST_CONFIG if config else LARGEST_JSON):
        if config:
            raise LimitExceeded(f"{item.size} bytes")
        return
    value = parsed(item.read(LARGEST_CONFIG))
    if isinstance(value, Pairs | list):
        yield from asks(item.name, value, local)


def _follow(wanted: dict[str, str], codes: dict[str, Code]) -> None:
    """Add the files that wanted files import from beside them."""
    pending = list(wanted)
    while pending:
        name = pending.pop()
        code = codes.get(name)
        folder = name.rsplit("/", 1)[0] + "/" if "/" in name else ""
        for module in [*code.relative, *code.imports] if code else ():
            other = f"{folder}{module}.py"
            if other in codes and other not in wanted:
                wanted[other] = name
                pending.append(other)
    for name in codes:
        if name.endswith("custom_generate/generate.py"):
            wanted.setdefault(name, "custom_generate")


def _python(item: Item, asked_by: str, code: Code | None = None) -> Iterator[Finding]:
    """What one Python file would do."""
    code = code or read_code(_bytes(item))
    name, base = shown(item.name), item.basename
    served = next((who for where, who in _PLACED if where.search(item.name)), _SERVED.get(base, ""))
    asked = f"{shown(asked_by)} asks for it; " if asked_by else ""
    if asked_by == "custom_generate":
        yield rules.REMOTE.found("generate() runs it when the caller consents to remote code", file=name)
    if base in _ENTRY:
        yield rules.SHADOWS.found(_ENTRY[base], file=name, evidence=code.summary)
    elif base.removesuffix(".py") in _LIBRARIES or item.name in ("__init__.py", "__main__.py"):
        rule = rules.PLAIN if base.startswith("__") else rules.SHADOWS
        yield rule.found("it is imported in place of a library by a program that is started in this folder", file=name,
                         evidence=code.summary)  # fmt: skip
    if code.error and not code.odd:
        rule = rules.UNREAD if asked_by or "bytes" in code.error or "more syntax" in code.error else rules.SYNTAX
        yield rule.found(f"{asked}{code.error}", file=name, evidence=item.head[:300].decode("utf-8", "replace"))
        return
    if code.hostile:
        yield rules.HOSTILE.found(asked + code.hostile, file=name, evidence=_lines(item, code))
    elif code.risky and (asked_by or served or _hides(code)):
        yield rules.RISKY.found(asked + code.risky, file=name, evidence=_lines(item, code))
    elif asked_by:
        yield rules.PLAIN.found(f"{asked}{code.summary}", file=name)
    else:
        yield rules.PLAIN.found((f"{served}; " if served else "") + code.summary, file=name)


def _hides(code: Code) -> bool:
    """Whether a file that nothing asks for shows signs of hiding what it does."""
    signs = ("calls something", "is written", "reaches", "runs decoded", "hides")
    return any(what.startswith(signs) for _, what in code.odd) or bool(code.error)


def _lines(item: Item, code: Code) -> str:
    """The lines that act."""
    numbers = sorted({line for line, _ in code.odd} | {call.line for call in code.calls if call.group in _ACTING})
    text = item.read().decode("utf-8", "replace").split("\n")
    return "\n".join(f"{n}: {text[n - 1].strip()[:160]}" for n in numbers[:8] if 0 < n <= len(text))


_ACTING = frozenset(("starts programs", "runs code made from data", "loads native code", "uses the network", "reads pickles",
                               "changes files", "reaches into the interpreter", "downloads"))  # fmt: skip


_PIPED = re.compile(r"(?:curl|wget)\b.*\|\s*(?:ba|z|da)?sh\b|base64\s+-d|/dev/tcp/|\bnc\s+-e")
_ELSEWHERE = re.compile(r"^\s*(?:-i\b|--(?:extra-)?index|-f\b|--find|--trusted)|git\+|https?://"
                        r"|file:|\.\./|^\s*-e\b(?!\s+\.(?:\[[\w, -]*\])?\s*$)|(?:^|@)\s*\./|\.whl\b")
_PACKAGES = re.compile(r"(?:.*[-_])?(?:requirements|constraints)(?:[-_].*)?\.(?:txt|in)")
#: other files that list packages: addresses are honest in them, installing from one is not usual
_PROJECTS = re.compile(r"pyproject\.toml|setup\.cfg|pipfile|(?:conda[-_]?)?env(?:ironment)?[-\w]*\.ya?ml|"
                       r"(?:bentofile|cog)\.ya?ml")
_INSTALLS = re.compile(r"git\+(?!https://github\.com/)\w|@\s*(?:https?|file):|--(?:extra-)?index-url|index-url\s*=|\b(?:curl|wget)\b.*\|\s*\w*sh\b")
#: a whole address, with the option before it; not one that only stands in another one
_HONEST_PLACES = re.compile(
    r"(?:(?:-i|-f|--(?:extra-)?index-url|--find-links|index-url)\s*[= ]\s*)?(?<![\w/:.@-])(?:git\+)?https?://(?!\S*/\.\.)"
    r"(?:download\.pytorch\.org(?![\w.@:-])|pypi\.org/simple(?![\w.-])|"
    r"github\.com/(?:huggingface|pytorch|NVIDIA|Dao-AILab|openai|explosion|facebookresearch)/[\w.-]+)[^\s\"',;]*")


def _notebook(item: Item) -> Iterator[Finding]:
    try:
        value = parsed(item.read(LARGEST_CONFIG))
    except LimitExceeded:
        value = None
    cells = dict(value).get("cells") if isinstance(value, Pairs) else None
    if not isinstance(cells, list):
        yield rules.UNREAD.found("no notebook that can be read", file=shown(item.name))
        return
    count, size, said = 0, 0, ""
    for source, shell in notebook_code([dict(c) if isinstance(c, Pairs) else c for c in cells]):
        count, size = count + 1, size + len(source)
        if count > MOST_CELLS or size > LARGEST:
            yield rules.UNREAD.found(f"more than {MOST_CELLS} cells or {LARGEST} letters of code", file=shown(item.name))
            break
        code = read_code(source.encode())
        piped = [line for line in shell if _PIPED.search(line)]
        decoded = [what for _, what in code.odd if what.startswith("runs decoded")]
        said = said or (piped or decoded or [""])[0]
    if said:
        yield rules.RISKY.found(f"a cell: {said[:200]}", file=shown(item.name))
    elif count:
        yield rules.NOTEBOOK.found(f"{count} cells of code", file=shown(item.name))


def _beside_code(item: Item) -> Iterator[Finding]:
    """Path files and lists of packages."""
    base = item.basename.lower()
    if base.endswith(".pth") and "text" in item.kinds and item.size <= LARGEST_CONFIG:  # a larger one is told of as plain text
        lines = [line for line in item.read().decode("utf-8", "replace").split("\n") if re.match(r"import[ \t]", line)]
        if lines:
            yield rules.PATH_FILE.found("a line that Python runs", file=shown(item.name), evidence=lines[0][:300])
    listed = _PACKAGES.fullmatch(base)
    if listed or _PROJECTS.fullmatch(base):
        if item.size > LARGEST_CONFIG:
            yield rules.TOO_LARGE.found(f"it holds {item.size} bytes", file=shown(item.name))
            return
        text = item.read().decode("utf-8", "replace")
        lines = [line.strip() for line in text.split("\n")]
        unusual = _ELSEWHERE if listed else _INSTALLS
        lines = [re.split(r"(?:^|\s)#", line)[0] for line in lines]
        odd = [line for line in lines if unusual.search(_HONEST_PLACES.sub("", line))]
        usual = [] if listed else [line for line in lines if "git+https://github.com/" in line and line not in odd]
        if odd or usual:
            told = odd or usual
            yield rules.REQUIREMENTS_ELSEWHERE.found(told[0][:200], file=shown(item.name), evidence="\n".join(told),
                                                     severity=None if odd else "note")  # fmt: skip
        elif listed:
            yield rules.REQUIREMENTS.found(f"{len([line for line in lines if line])} entries", file=shown(item.name),
                                           evidence=text[:300])  # fmt: skip
