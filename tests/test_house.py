"""The rules of the house, read off the source: floors, what prints, sizes, and everything that ships with the package."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import pkgutil
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

import weightsmith
from weightsmith import architecture, claimed, compared, errors, found, measured, pinned, records, searched
from weightsmith.features.prompts import NEAR, PARTS, prompt_sets, read_prompts, similarity
from weightsmith.features.recipe import PromptSource, TwoSources, load_feature, shipped_features
from weightsmith.measure import sets
from weightsmith.measure.prepare import make_scorers
from weightsmith.measure.scorers import SCORERS
from weightsmith.registry import Registry

SOURCE = Path(weightsmith.__file__).parent
FLOORS: dict[str, int] = {
    **dict.fromkeys(("errors", "records", "measured", "claimed", "compared", "searched", "found", "pinned", "storage", "held",
                     "registry", "options"), 0),
    **dict.fromkeys(("formats", "checkpoint", "hub", "architecture", "cards", "trust"), 1),
    **dict.fromkeys(("direction", "edits", "forms", "compare", "rewrite", "lanes", "plan", "execute"), 2),
    **dict.fromkeys(("runtime", "features", "measure", "search"), 3),
    **dict.fromkeys(("jobs", "report", "release"), 4),
    **dict.fromkeys(("cli", "web", "start", "__main__"), 5),
}
HEAVY = {"torch", "transformers", "tokenizers", "accelerate", "vaderSentiment"}


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(p for p in ("weightsmith", *parts) if p != "__init__")] = path
    return found


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def floor(name: str) -> int | None:
    """Floor of a module; ``None`` for the package itself, whose ``__version__`` all may read."""
    parts = name.split(".")
    return FLOORS[parts[1]] if len(parts) > 1 else None


def imports(name: str) -> set[str]:
    """Modules that ``name`` imports anywhere in it, functions and type-checking blocks included."""
    package = name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in modules() else base)
    return found


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_only_go_down(name: str) -> None:
    mine = floor(name)
    for other in imports(name):
        if other.split(".")[0] != "weightsmith" or mine is None:
            continue
        theirs = floor(other)
        assert theirs is None or theirs <= mine, f"{name} (floor {mine}) imports {other} (floor {theirs})"


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    assert not [n for n in imports("weightsmith") if n.startswith("weightsmith")]


def test_every_module_has_a_floor() -> None:
    assert {n.split(".")[1] for n in modules() if "." in n} <= FLOORS.keys()


@pytest.mark.parametrize("name", [n for n in sorted(modules()) if (floor(n) or 0) <= 1])
def test_floors_0_and_1_never_name_a_model_library(name: str) -> None:
    assert not {n.split(".")[0] for n in imports(name)} & HEAVY


def test_faces_do_not_know_each_other() -> None:
    for name in modules():
        face = name.split(".")[1] if "." in name else ""
        if face in ("cli", "web"):
            other = {"cli": "web", "web": "cli"}[face]
            assert not [n for n in imports(name) if n.startswith(f"weightsmith.{other}")]


BLOCKED = """
import importlib, json, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ImportError(name + " is not installed here", name=name)

sys.meta_path.insert(0, Wall())
for name in {names!r}:
    importlib.import_module(name)
from weightsmith.cli.main import run
codes = [run([*words, "-h"]) for words in ((), ("show",), ("convert",), ("find",), ("edit",), ("measure",), ("chat",))]
codes += [run(["show", "features"]), run(["edit", "nowhere", "x", "--remove", "1", "-o", "y"])]
sys.stdout.flush()
print(json.dumps([codes, sorted(set(sys.modules) & {heavy!r})]))
"""


def test_without_torch_floors_0_to_2_and_the_command_line_import_and_help() -> None:
    names = [n for n in modules() if floor(n) in (0, 1, 2) or (floor(n) == 5 and "demo" not in n and "chat_s" not in n)]
    names = ["weightsmith", *(n for n in names if not n.endswith("__main__"))]
    script = BLOCKED.format(heavy=HEAVY, names=names)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes, loaded = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * 8 + [2]
    assert loaded == []


MISSING = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Wall())
from weightsmith.cli.main import main
main(sys.argv[2:])
"""


def test_a_missing_extra_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    import pico

    model = pico.build("qwen2", tmp_path / "m")  # no output bias can exist here: an addition has to be fitted
    pico.a_direction(model).save(tmp_path / "d.safetensors")
    before = sorted(tmp_path.rglob("*"))
    verbs = {
        "find": ("torch", [model, "melancholy", "-o", tmp_path / "out"]),
        "edit": ("torch", [model, tmp_path / "d.safetensors", "--add", "0.5", "-o", tmp_path / "out"]),
        "measure": ("transformers", [model, "--against", model, "--feature", "melancholy", "-o", tmp_path / "out"]),
        "chat": ("torch", [model]),
    }

    def one(verb: str) -> tuple[int, str]:
        extra, argv = verbs[verb]
        words = [sys.executable, "-c", MISSING, extra, verb, *map(str, argv)]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        return done.returncode, done.stderr

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, verbs))
    for verb, (code, err) in zip(verbs, results, strict=True):
        assert code == 2, f"{verb}: {err}"
        assert f"running a model needs {verbs[verb][0]}" in err
        assert "pip install 'weightsmith[model]'" in err
        assert len([line for line in err.strip().splitlines() if not line.startswith(("shield: ", "🛡 "))]) <= 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bare_import_stays_light() -> None:
    script = "import sys, weightsmith; weightsmith.open_checkpoint; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, "scipy", "sklearn", "matplotlib", "huggingface_hub", "pyarrow"}


# -- public names, printing, sizes -------------------------------------------------------------------------


def test_public_names_are_what_resolves() -> None:
    assert sorted(weightsmith.__all__, key=str.lower) == sorted(set(weightsmith.__all__), key=str.lower)
    assert set(dir(weightsmith)) == set(weightsmith.__all__)
    assert set(weightsmith._LAZY) | {"__version__"} == set(weightsmith.__all__)
    for name in weightsmith.__all__:
        found = getattr(weightsmith, name)
        assert name == "__version__" or found.__name__ == name
    importlib.import_module("weightsmith.measure.stats")  # a folder of the same name takes nothing over
    assert weightsmith.measure is weightsmith.jobs.measure  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        weightsmith.nothing  # noqa: B018
    scope: dict[str, object] = {}
    exec("from weightsmith import *", scope)
    assert set(weightsmith.__all__) <= scope.keys()


@pytest.mark.parametrize("name", [n for n in sorted(modules()) if not n.endswith("__main__")])
def test_all_of_a_module_resolves(name: str) -> None:
    module = importlib.import_module(name)
    assert not [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)]
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"


def test_modules_on_disk_are_the_modules_of_the_package() -> None:
    walked = {m.name for m in pkgutil.walk_packages([str(SOURCE)], "weightsmith.")}
    assert walked | {"weightsmith"} == set(modules())


@pytest.mark.parametrize("name", [n for n in sorted(modules()) if floor(n) != 5])
def test_only_the_command_line_prints(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "input", "exit", "quit", "sys.exit", "breakpoint"), f"{name}:{node.lineno}"
            assert not re.match(r"sys\.std(out|err)\.", called), f"{name}:{node.lineno}"


def test_nothing_runs_what_a_file_says() -> None:
    bad = {
        "eval",
        "exec",
        "compile",
        "pickle.load",
        "pickle.loads",
        "torch.load",
        "yaml.load",
        "os.system",
        "__import__",
    }
    for name in modules():
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in bad:
                called = ast.unparse(node.func)
                if called == "torch.load":  # after the scan, in the sandbox
                    assert name == "weightsmith.runtime.pickled", f"{name}:{node.lineno}"
                    assert "weights_only=True" in ast.unparse(node)
                    continue
                assert called == "yaml.load", f"{name}:{node.lineno}"
                assert name == "weightsmith.features.recipe", f"{name}:{node.lineno}"  # with a loader that takes less
            assert not (isinstance(node, ast.keyword) and node.arg == "shell"), f"{name}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{name}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_files_and_functions_stay_short(name: str) -> None:
    lines = modules()[name].read_text(encoding="utf-8").count("\n")
    assert lines <= 500, f"{name} has {lines} lines"
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= 70, f"{name}.{node.name} has {size} lines"


def test_errors_are_one_tree_and_only_bad_verdicts_exit_with_1() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(e, errors.WeightsmithError) for e in found)
    drawn = errors.__doc__ or ""
    for error in found:
        assert error.__name__ in drawn, f"{error.__name__} is not in the tree of the docstring"
        assert error.exit_code == (1 if issubclass(error, errors.IntegrityError) else 2)
        assert (error.__doc__ or "").strip()
    codes = [error("x").code for error in found]
    assert len(set(codes)) == len(codes)
    record = errors.DigestMismatch("no", where=Path("a"), hint="b", n=1, path=Path("c")).as_record()
    assert json.loads(json.dumps(record)) == record
    assert record["error"] == "digest-mismatch"


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_error_says_what_to_do(name: str) -> None:
    kinds = {n: e for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.WeightsmithError)}
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
            given = any(k.arg in ("hint", None) for k in node.keywords)
            said = given or kinds[node.func.id].usual or name == "weightsmith.cli.main"  # there it wraps an OSError
            assert said, f"{name}:{node.lineno}: {node.func.id} without a hint"


def test_a_better_advice_takes_the_place_of_the_usual_one() -> None:
    assert str(errors.Truncated("5 bytes", where="a")) == f"a: 5 bytes\n  {errors.Truncated.usual}"
    assert str(errors.Truncated("5 bytes", hint="b")) == "5 bytes\n  b"
    assert errors.stated(errors.LimitExceeded("5 bytes", where="a")) == "5 bytes"
    assert errors.stated(ValueError("two\nlines")) == "two lines"
    assert errors.stated(ValueError()) == "ValueError"


def test_every_written_schema_has_a_name_and_a_version() -> None:
    ids = [records.DIRECTION, records.EDIT, records.DERIVATION, measured.MEASUREMENTS, claimed.CLAIMS, compared.COMPARISON,
           searched.SEARCH, found.SCAN, pinned.LOCK, pinned.VERIFICATION, sets.SCENARIOS, sets.ASKED_REFUSALS]  # fmt: skip
    assert all(re.fullmatch(r"weightsmith/[a-z-]+/\d+", i) for i in ids)
    assert len(set(ids)) == len(ids)


# -- what ships --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_features())
def test_every_shipped_feature_parses_and_has_its_prompts(name: str) -> None:
    spec, folder = load_feature(name)
    assert folder is None
    assert spec.name == name
    assert spec.description.strip()
    assert re.fullmatch(r"[A-Za-z0-9.+-]+", spec.licence), "an SPDX identifier"
    assert spec.scorers
    sets = prompt_sets(spec, folder)
    for part, least in zip(PARTS, (96, 48, 48), strict=True):
        split = sets.part(part)
        assert len(split.shows) >= least
        assert len(split.lacks) >= least
    for side in ("shows", "lacks"):
        seen = [p for part in PARTS for p in getattr(sets.part(part), side)]
        assert len(set(seen)) == len(seen)
    kinds = [s.kind for s in spec.scorers]
    assert len(set(kinds)) == len(kinds)
    assert make_scorers(spec, None, None)


@cache
def shipped_sources() -> dict[str, list[str]]:
    """Every shipped prompt set that some recipe uses."""
    found: dict[str, list[str]] = {}
    for name in shipped_features():
        prompts = load_feature(name)[0].prompts
        sources: list[PromptSource] = [prompts.shows, prompts.lacks] if isinstance(prompts, TwoSources) else [prompts]
        for source in sources:
            if source.shipped is not None:
                found[source.shipped] = read_prompts(source, None)
    return found


def test_no_shipped_prompt_is_idle_or_nearly_another() -> None:
    files = {p.stem for p in (SOURCE / "features/shipped/prompts").iterdir()}
    assert files == set(shipped_sources())
    for name, prompts in shipped_sources().items():
        assert len({p.casefold() for p in prompts}) == len(prompts), name
        grams = [frozenset(f" {p.casefold()} "[i : i + 4] for i in range(len(p) - 1)) for p in prompts]
        for (i, a), (j, b) in itertools.combinations(enumerate(grams), 2):
            if len(a & b) > 0.5 * len(a | b):  # a coarse sieve before the real measure
                assert similarity(prompts[i], prompts[j]) < NEAR, f"{name}: {prompts[i]!r} and {prompts[j]!r}"


def test_shipped_text_is_plain() -> None:
    for path in sorted((SOURCE / "features/shipped").rglob("*")):
        if path.is_file():
            text = path.read_bytes().decode("utf-8")
            assert "\r" not in text
            assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffd\x00-\x08]", text), path


def test_families_all_parse_and_name_roles_that_exist() -> None:
    found = architecture.families()
    files = {p.stem for p in (SOURCE / "families").glob("*.yaml")}
    assert {f.name for f in found.values()} == files
    for kind, family in found.items():
        assert kind in family.model_types
        assert "{i}" in family.block
        assert family.embed
        assert family.unembed
        for writer in family.writers:
            assert writer["role"] in architecture.ROLES
            assert writer.get("weight") or writer.get("fused")
            assert writer["module"]
        if family.constant is not None:
            assert family.constant["role"] in {w["role"] for w in family.writers}


@pytest.mark.parametrize("where", ["weightsmith.edits:KINDS", "weightsmith.features.methods:EXTRACTORS"])
def test_every_built_in_plug_in_loads(where: str) -> None:
    module, _, name = where.partition(":")
    registry: Registry = getattr(importlib.import_module(module), name)
    assert registry.names()
    for plug in [*registry.names()]:
        assert callable(registry.load(plug))
    for plug in SCORERS.names():
        assert SCORERS.load(plug).__doc__
    with pytest.raises(errors.UnknownPlugin, match="known: "):
        registry.load("nothing")
