"""``diff``, ``rebuild`` and ``undo``: what differs, whether it can be made again bit for bit, and the way back."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from clirun import assert_one_error, cli, edit_json, flip, refused, tree
from weightsmith import jobs
from weightsmith.checkpoint import INDEX, KEPT, RECORD, open_checkpoint, runnable
from weightsmith.direction import Direction
from weightsmith.errors import DigestMismatch, UsageError, WeightsmithError
from weightsmith.execute import FITS
from weightsmith.formats.gguf_export import export_gguf
from weightsmith.jobs import derive
from weightsmith.jobs.edit import edit
from weightsmith.records import Derivation, EditSpec, EditStep, RebuildRecord

Models = Callable[..., Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Pico models by family, dtype and shard size, each built once."""
    root, built = tmp_path_factory.mktemp("pico"), {}

    def get(family: str, dtype: torch.dtype = torch.float32, shard: str | None = None) -> Path:
        key = f"{family}-{dtype}-{shard}"
        if key not in built:
            built[key] = pico.build(family, root / f"{family}{len(built)}", dtype, shard=shard)
        return built[key]

    return get


def direction_of(base: Path, seed: int = 0) -> Direction:
    """A direction with readers, as LEACE needs them."""
    known = pico.a_direction(base, seed)
    return Direction(known.vectors, known.resid_norm, known.mean_shows, known.mean_lacks, known.meta,
                     (known.vectors * np.float32(1.5) + np.float32(0.1)).astype(np.float32))  # fmt: skip


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def tick() -> None:
    """A digest is remembered by the file's times, which tick every few milliseconds."""
    time.sleep(0.02)


# -- rebuild -----------------------------------------------------------------------------------------------

ADD = {"add": 0.8}
PLAIN: dict[str, dict[str, Any]] = {
    "remove": {"remove": 1.0}, "a part": {"remove": 0.3}, "amplify": {"amplify": 2.5}, "projected": {"how": {"kind": "projected"}},
    "biprojected": {"how": {"kind": "biprojected"}}, "input norms": {"remove": 1.0, "how": {"norms": "input"}},
    "each": {"remove": 1.0, "source": "each"}, "also": {"remove": 1.0, "others": "also"},
    "protect": {"amplify": 2.0, "others": "protect"}, "embed": {"remove": 1.0, "roles": ["+embed"], "source": 1},
    "strengths": {"remove": 1.0, "how": {"strengths": {"*": [0.5, 1.0]}}, "layers": [0, 1]}, "nothing": {"remove": 0.0},
}  # fmt: skip
FORMS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "llama": [*PLAIN.items(), ("add", ADD), ("affine", {"how": {"kind": "affine"}}), ("leace", {"how": {"kind": "leace"}}),
              ("fitted", {**ADD, "constant": "fitted"}), ("output norms", {"remove": 1.0, "how": {"norms": "output"}})],
    "llama_bias": [*PLAIN.items(), ("add", ADD), ("affine", {"how": {"kind": "affine"}})],
    "gemma2": [*PLAIN.items()],
    "gpt2": [*PLAIN.items(), ("add", ADD), ("fitted", {**ADD, "constant": "fitted"}), ("leace", {"how": {"kind": "leace"}})],
    "mixtral": [*PLAIN.items()],
    "mistral": [("fitted", ADD), ("fitted twice", {**ADD, "layers": [0, 1]}), ("affine", {"how": {"kind": "affine"}})],
    "qwen2": [("as-llama", {**ADD, "constant": "as-llama"}), ("fitted", ADD)],
}  # fmt: skip


def make(base: Path, out: Path, wishes: dict[str, Any]) -> Derivation:
    wishes = {"options": pico.CPU, **wishes}
    if "kind" in wishes.get("how", {}):
        wishes.setdefault("remove", 1.0)
    if name := wishes.pop("others", None):
        (other := out.parent / "other.safetensors").unlink(missing_ok=True)
        direction_of(base, 7).save(other)
        wishes["how"] = {name: [other]}
    if wishes.get("source") is None and "layers" not in wishes:
        wishes["layers"] = [1]
    try:
        return edit(base, direction_of(base), out, **wishes)
    finally:
        (out.parent / "other.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FORMS)
def test_every_kind_and_form_is_rebuilt_bit_for_bit_and_undone(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype
) -> None:
    """With nothing at hand but the derivative and its base: the cache is another one."""
    base = models(family, dtype)
    for name, wishes in FORMS[family]:
        out = tmp_path / name
        record = make(base, out, wishes)
        assert bool(record.tensors) == (name != "nothing"), name
        assert bool(record.fitted) == (name.startswith("fitted") or (name, family) == ("affine", "mistral")), name
        for place in ("cache", "elsewhere"):
            with monkeypatch.context() as patch:
                if place == "elsewhere":
                    patch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "elsewhere"))
                again = jobs.rebuild(out, base=base)
            assert again.same, f"{family} {name}: {again}"
            assert (again.tensors, again.files, again.notes) == ([], [], [])
            assert again.rebuilt_digest == again.found_digest == again.record_digest == record.digest
        jobs.undo(out, tmp_path / "back")
        assert tree(tmp_path / "back") == tree(base), name
        shutil.rmtree(tmp_path / "back")
        shutil.rmtree(out)


def test_an_edit_of_several_steps_is_rebuilt(models: Models, tmp_path: Path) -> None:
    base = models("llama", torch.bfloat16, "30KB")
    a, b = direction_of(base), direction_of(base, 3)
    spec = EditSpec(name="both", steps=[
        EditStep(kind="remove", direction=a.digest(), source=0, layers=[0, 1], amount=1.0, also=[b.digest()]),
        EditStep(kind="add", direction=b.digest(), source="each", layers=[0, 1], amount=0.4),
        EditStep(kind="amplify", direction=b.digest(), source=1, layers=[1], amount=1.5),
    ])  # fmt: skip
    for number, direction in enumerate((a, b)):
        direction.save(tmp_path / f"{number}.safetensors")
    edit(base, spec, tmp_path / "out", directions=[tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    for number in (0, 1):
        (tmp_path / f"{number}.safetensors").unlink()
    assert jobs.rebuild(tmp_path / "out", base=base).same
    jobs.undo(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(base)


@pytest.fixture(scope="module")
def made(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and its derivative with a fitted constant, which has every kind of file."""
    base = models("mistral", torch.float32, "30KB")
    out = tmp_path_factory.mktemp("made") / "out"
    record = make(base, out, {"add": 0.8, "layers": [0, 1]})
    assert len(record.tensors) == 2
    assert (out / KEPT / FITS).is_file()
    assert (out / INDEX).is_file()
    return base, out


def byte_of(folder: Path, name: str, offset: int = 0) -> tuple[Path, int]:
    spec = open_checkpoint(str(folder)).tensors[name]
    return spec.file, spec.start + offset


TOUCHED, UNTOUCHED = "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("name", [TOUCHED, UNTOUCHED, "lm_head.weight"])
@pytest.mark.parametrize("stealthy", [False, True], ids=["", "stealthy"])
def test_one_flipped_byte_names_its_tensor(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stealthy: bool
) -> None:
    """Also when the digests that are remembered say that all is well, as after a disk went bad."""
    base, good = made
    out = copied(good, tmp_path / "out")
    known = open_checkpoint(str(out)).tensor_digests()
    tick()
    flip(*byte_of(out, name, 6))
    if stealthy:
        monkeypatch.setattr("weightsmith.checkpoint.Checkpoint.tensor_digests",
                            lambda self, progress=None: known if self.path == out else open_checkpoint(str(base))
                            ._read_all(None) and {n: r[0] for n, r in self._read_all(None).items()})  # fmt: skip
    again = jobs.rebuild(out, base=base)
    assert not again.same
    assert (again.first_tensor, again.tensors) == (name, [name])
    assert again.files == [byte_of(out, name)[0].name]
    if not stealthy:
        done = cli("rebuild", out, "--base", base)
        assert done.code == 1
        assert f"differs first at {name}" in done.words


def test_the_first_of_several_is_named_in_file_order(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, good = made
    out = copied(good, tmp_path / "out")
    order = [*open_checkpoint(str(out)).tensors]
    tick()
    for name in (order[-1], order[3], order[9]):
        flip(*byte_of(out, name, 4))
    again = jobs.rebuild(out, base=base)
    assert again.tensors == [order[3], order[9], order[-1]]
    assert again.first_tensor == order[3]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", INDEX, "kept", "fits", "gone"])
def test_one_flipped_byte_names_its_file(made: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    base, good = made
    out = copied(good, tmp_path / "out")
    kept = next((out / KEPT).glob("direction-*"))
    file = {"kept": kept, "fits": out / KEPT / FITS, "gone": out / "tokenizer.json"}.get(name, out / name)
    if name == "gone":
        file.unlink()
    elif name == INDEX:  # white space, so that it still says the same
        file.write_text(file.read_text() + " ")
    elif name == "config.json":  # a letter that says nothing
        flip(file, file.read_bytes().index(b"transformers_version"))
    else:
        flip(file, file.stat().st_size - (1 if name == "fits" else 3))
    done = cli("rebuild", out, "--base", base, "--json")
    assert done.code in (1, 2), done.out
    if name not in ("kept", "fits"):
        record = json.loads(done.out)
        assert record["files"] == [file.name]
        assert record["tensors"] == []
    elif name == "fits":
        record = json.loads(done.out)
        assert record["first_tensor"] == "model.layers.1.mlp.down_proj.weight"
        assert RECORD in record["files"]
        assert any("outputs" in note for note in record["notes"])
    else:
        kept_is_named(done.words if done.code == 2 else done.out, kept.name)


def kept_is_named(words: str, name: str) -> None:
    """Another direction is at hand in the cache, or none is."""
    assert f"{KEPT}/{name}" in words or "not at hand" in words


@pytest.mark.parametrize("place", ["fits", "kept"])
def test_every_kept_byte_counts(made: tuple[Path, Path], tmp_path: Path, place: str) -> None:
    """Also one that comes to nothing in the weights, such as the last bit of a fitted vector."""
    base, good = made
    out = copied(good, tmp_path / "out")
    file = out / KEPT / FITS if place == "fits" else next((out / KEPT).glob("direction-*"))
    size = file.stat().st_size
    for byte in sorted({*range(0, size, max(1, size // 40)), size - 8, size - 1}):
        shutil.copy(good / KEPT / file.name, file)
        flip(file, byte)
        try:
            again = jobs.rebuild(out, base=base)
        except WeightsmithError:
            continue
        assert not again.same, f"byte {byte} of {size}"
        assert again.files, f"byte {byte} of {size}"


#: what no file can tell: names, where the base was, and how well a fit did on prompts
UNCHECKED = ("base.ref", "base_source.", "edit.name", "edit.description", "fitted.", "versions.", "edit.steps.0.gate")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all plain values; of a list the first and the last item."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else set()):
            yield from leaves(value[index], (*path, index))
    else:
        yield path


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value * 1.0000001 + 1e-9
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return value


def test_every_claim_of_the_record_is_checked(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, good = made
    out = copied(good, tmp_path / "out")
    record = json.loads((good / RECORD).read_text())
    seen: set[str] = set()
    for path in leaves(record):
        wrong = json.loads((good / RECORD).read_text())
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = changed(inner[path[-1]])
        name = ".".join(map(str, path))
        if wrong == record or name.startswith(UNCHECKED):
            continue
        seen.add(str(path[0]))
        (out / RECORD).write_text(json.dumps(wrong))
        try:
            again = jobs.rebuild(out, base=base)
        except WeightsmithError:
            continue
        assert not again.same, f"{name} may say anything"
        assert RECORD in again.files or again.tensors, name
    assert {"base", "edit", "directions", "tensors", "outputs", "digest", "compute", "base_tensors", "transferred"} <= seen
    for field, less in (("tensors", record["tensors"][:1]), ("outputs", dict([*record["outputs"].items()][1:])),
                        ("notes", ["all is well"]), ("config_changes", {"x": 1}), ("fitted", [])):  # fmt: skip
        (out / RECORD).write_text(json.dumps(record | {field: less}))
        try:
            assert not jobs.rebuild(out, base=base).same, field
        except WeightsmithError:
            assert field == "fitted"


def test_a_record_of_another_version_may_word_it_otherwise(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, good = made
    out = copied(good, tmp_path / "out")

    def older(record: dict[str, Any]) -> None:
        record["versions"]["weightsmith"] = "0.0.9"
        record["compute"] = {"edit": "as it was then"}
        record["tensors"][0]["operations"] = ["in other words"]

    edit_json(out / RECORD, older)
    again = jobs.rebuild(out, base=base)
    assert again.same
    assert again.made_with["weightsmith"] == "0.0.9"


def test_files_that_nobody_recorded_are_mentioned(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, good = made
    out = copied(good, tmp_path / "out")
    (out / "modeling_x.py").write_text("raise SystemExit")
    (out / ".gitattributes").write_text("x")
    (out / "README.md").write_text("# A card")
    again = jobs.rebuild(out, base=base)
    assert again.same, "a card may be added"
    assert any("2 files are there that the record does not name: README.md, modeling_x.py" in n for n in again.notes)
    assert "modeling_x.py" in cli("rebuild", out, "--base", base).words


def test_an_extra_or_missing_tensor_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "one"
    make(pico.build("llama", tmp_path / "base"), plain, {"remove": 1.0})
    pico.rename(plain, {"model.norm.weight": "model.norm.weights"})
    again = jobs.rebuild(plain, base=tmp_path / "base")
    assert again.tensors == ["model.norm.weight", "model.norm.weights"]
    assert again.files == ["model.safetensors"]


# -- the base ----------------------------------------------------------------------------------------------


def test_the_wrong_base_and_none(
    made: tuple[Path, Path], models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = made
    other = copied(base, tmp_path / "other")
    flip(*byte_of(other, UNTOUCHED, 5))
    for argv in (("rebuild", out), ("undo", out, "-o", tmp_path / "back")):
        refused(tmp_path, *argv, "--base", other, code=1, says=("this is not the base", str(other)))
        refused(tmp_path, *argv, "--base", models("gpt2"), code=1, says=("this is not the base",))
        refused(tmp_path, *argv, "--base", tmp_path / "gone", code=2, says=("no such model",))
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    for argv in (("rebuild", out), ("undo", out, "-o", tmp_path / "back")):
        done = cli(*argv)
        assert done.code == 2
        assert_one_error(done.err)
        assert "is not known on this machine" in done.words
        assert "--base" in done.words
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("verb", ["rebuild", "undo"])
def test_what_has_no_record(models: Models, tmp_path: Path, verb: str) -> None:
    more = ("-o", tmp_path / "back") if verb == "undo" else ()
    refused(tmp_path, verb, models("llama"), *more, says=("no record of how this model was made",))
    (broken := copied(models("llama"), tmp_path / "broken")).joinpath(RECORD).write_text("{")
    refused(tmp_path, verb, broken, *more, says=("not valid JSON",))
    (broken / RECORD).write_text('{"schema": "weightsmith/derivation/99"}')
    refused(tmp_path, verb, broken, *more, says=("newer Weightsmith",))


def test_a_direction_that_is_nowhere(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, good = made
    out = copied(good, tmp_path / "out")
    kept = next((out / KEPT).glob("direction-*"))
    kept.rename(tmp_path / "d.safetensors")
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    done = cli("rebuild", out, "--base", base)
    assert done.code == 2
    assert "not at hand" in done.words
    done = cli("rebuild", out, "--base", base, "--direction", tmp_path / "d.safetensors")
    assert done.code == 1
    assert kept.name in done.words, "the weights are the same, and the file is missing"
    assert "tensor" not in done.words.replace("tensors", "")
    shutil.rmtree(out / KEPT)
    done = cli("rebuild", out, "--base", base, "--direction", tmp_path / "d.safetensors")
    assert done.code == 2
    assert f"{KEPT}/{FITS} is missing" in done.words


def test_the_base_is_found_where_it_was_seen_even_when_something_else_stands_there(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several places the one that still has the digest; never the derivative itself; best the one whose other files
    are those that came along."""
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    base = copied(models("llama"), tmp_path / "base")
    make(base, tmp_path / "out", {"remove": 1.0})
    twin = copied(base, tmp_path / "twin")
    edit_json(twin / "config.json", lambda c: c.update(use_cache=False))
    open_checkpoint(str(twin)).digest()  # seen last
    jobs.undo(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(base)
    assert jobs.rebuild(tmp_path / "out").same
    shutil.rmtree(tmp_path / "back")
    tick()
    flip(*byte_of(base, UNTOUCHED, 1))
    (tmp_path / "back").mkdir()
    jobs.undo(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(twin), "the weights are the base's; no better place is left"
    shutil.rmtree(tmp_path / "back")
    (twin / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not known on this machine"):
        jobs.undo(tmp_path / "out", tmp_path / "back")
    with pytest.raises(DigestMismatch, match="this is not the base"):
        jobs.undo(tmp_path / "out", tmp_path / "back", base=base)
    same = make(copied(models("llama"), tmp_path / "base2"), tmp_path / "nothing", {"remove": 0.0})
    assert same.digest == same.base.digest
    shutil.rmtree(tmp_path / "base2")
    with pytest.raises(UsageError, match="not known"):
        jobs.undo(tmp_path / "nothing", tmp_path / "back")


# -- undo --------------------------------------------------------------------------------------------------


def test_undo_of_a_base_in_other_shards(models: Models, tmp_path: Path) -> None:
    whole, split = models("llama"), models("llama", torch.float32, "30KB")
    make(whole, tmp_path / "out", {"add": 0.5})
    jobs.undo(tmp_path / "out", tmp_path / "back", base=split)
    assert tree(tmp_path / "back") == tree(split)
    found = jobs.diff(whole, tmp_path / "back")
    assert found.same
    assert found.a_digest == found.b_digest


def test_undo_of_an_undone_and_of_a_chain(models: Models, tmp_path: Path) -> None:
    base = models("llama_bias")
    make(base, tmp_path / "one", {"remove": 1.0})
    edit(tmp_path / "one", direction_of(base), tmp_path / "two", amplify=2.0, layers=[0], source=0, transfer=True)
    assert jobs.rebuild(tmp_path / "two").same
    jobs.undo(tmp_path / "two", tmp_path / "one again")
    assert tree(tmp_path / "one again") == tree(tmp_path / "one"), "with its record and what stands beside it"
    assert jobs.rebuild(tmp_path / "one again").same
    jobs.undo(tmp_path / "one again", tmp_path / "base again")
    assert tree(tmp_path / "base again") == tree(base)
    with pytest.raises(UsageError, match="no record"):
        jobs.undo(tmp_path / "base again", tmp_path / "x")
    record = json.loads((tmp_path / "two" / RECORD).read_text())
    assert record["base_record"] == json.loads((tmp_path / "one" / RECORD).read_text())
    edit_json(tmp_path / "two" / RECORD, lambda r: r["base_record"].update(base_tensors=1))
    assert not jobs.rebuild(tmp_path / "two", base=tmp_path / "one").same


@pytest.mark.parametrize("taken", ["a file", "a folder", "a link", "an empty folder"])
def test_undo_leaves_what_is_there_alone(made: tuple[Path, Path], tmp_path: Path, taken: str) -> None:
    base, out = made
    back = tmp_path / "back"
    if "folder" in taken:
        back.mkdir()
        if taken == "a folder":
            (back / "own.txt").write_text("mine")
    elif taken == "a file":
        back.write_text("mine")
    else:
        back.symlink_to("nowhere")
    if taken == "an empty folder":
        assert cli("undo", out, "--base", base, "-o", back).code == 0
        assert tree(back) == tree(base)
    else:
        refused(tmp_path, "undo", out, "--base", base, "-o", back, says=("exists already",))


def test_a_base_that_changes_while_it_is_copied(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = copied(made[0], tmp_path / "base"), made[1]
    real = derive.Lane.write

    def write(lane: Any, plan: Any) -> Any:
        if plan.base == byte_of(base, UNTOUCHED)[0]:
            flip(*byte_of(base, UNTOUCHED, 2))
        return real(lane, plan)

    monkeypatch.setattr(derive.Lane, "write", write)
    with pytest.raises(DigestMismatch, match="changed while it was copied"):
        jobs.undo(out, tmp_path / "back", base=base)
    assert os.listdir(tmp_path) == ["base"]


# -- diff --------------------------------------------------------------------------------------------------


def test_diff_names_exactly_what_differs(models: Models, tmp_path: Path) -> None:
    base = models("llama")
    record = make(base, tmp_path / "out", {"remove": 1.0})
    found = jobs.diff(base, tmp_path / "out")
    assert [t.tensor for t in found.tensors] == [t.tensor for t in record.tensors]
    assert {t.what for t in found.tensors} == {"changed"}
    assert found.identical_tensors == len(pico.tensors(base)) - len(record.tensors)
    assert [f.what for f in found.files] == ["only in B"] * len(found.files)
    assert all(f.file.startswith(f"{KEPT}/") for f in found.files)
    old, new = pico.tensors(base), pico.tensors(tmp_path / "out")
    for t in found.tensors:
        a, b = (np.frombuffer(x[t.tensor], "<f4").astype(np.float64) for x in (old, new))
        assert t.elements == a.size
        assert t.elements_changed == int((a != b).sum())
        assert t.largest == pytest.approx(np.abs(b - a).max(), rel=1e-12)
        assert t.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9)
    back = jobs.diff(tmp_path / "out", base)
    assert [t.tensor for t in back.tensors] == [t.tensor for t in found.tensors]
    assert {f.what for f in back.files} == {"only in A"}


def test_diff_of_a_created_bias_and_a_changed_config(models: Models, tmp_path: Path) -> None:
    base = models("llama")
    make(base, tmp_path / "out", {"add": 0.8})
    found = jobs.diff(base, tmp_path / "out")
    assert {t.what for t in found.tensors} == {"only in B"}
    assert all(t.tensor.endswith("bias") for t in found.tensors)
    assert [(f.file, f.keys) for f in found.files if not f.file.startswith(KEPT)] == [("config.json", ["mlp_bias"])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_one_flipped_bit_is_one_element_of_one_tensor(models: Models, tmp_path: Path, dtype: torch.dtype) -> None:
    base = models("gpt2", dtype)
    other = copied(base, tmp_path / "other")
    name = [*open_checkpoint(str(base)).tensors][5]
    flip(*byte_of(other, name, 0))
    found = jobs.diff(base, other)
    assert [(t.tensor, t.elements_changed) for t in found.tensors] == [(name, 1)]
    assert found.files == []
    done = cli("diff", base, other)
    assert done.code == 1
    assert name in done.words


def test_diff_after_resharding_is_nothing(models: Models, tmp_path: Path) -> None:
    whole, split = models("llama"), models("llama", torch.float32, "30KB")
    found = jobs.diff(whole, split)
    assert found.same
    assert found.identical_tensors == len(pico.tensors(whole))
    assert cli("diff", split, whole).code == 0
    other = copied(split, tmp_path / "other")
    flip(*byte_of(other, UNTOUCHED, 3))
    (other / "tokenizer.json").unlink()
    found = jobs.diff(whole, other)
    assert [t.tensor for t in found.tensors] == [UNTOUCHED]
    assert [(f.file, f.what) for f in found.files] == [("tokenizer.json", "only in A")]


def test_diff_of_dtypes_shapes_and_strangers(models: Models, tmp_path: Path) -> None:
    a, b = models("llama"), models("llama", torch.bfloat16)
    found = jobs.diff(a, b)
    assert {t.what for t in found.tensors} == {"another type or shape"}
    assert len(found.tensors) == len(pico.tensors(a))
    assert [f.file for f in found.files] == ["config.json"]
    found = jobs.diff(a, models("gpt2"))
    assert {t.what for t in found.tensors} == {"only in A", "only in B"}
    assert found.identical_tensors == 0


def test_diff_of_values_that_are_no_numbers(models: Models, tmp_path: Path) -> None:
    """A NaN that turns up is a change; one that is in both is none; neither spoils the figures."""
    base = copied(models("llama"), tmp_path / "a")
    file, start = byte_of(base, UNTOUCHED)
    with file.open("r+b") as out:
        out.seek(start)
        out.write(np.array([np.nan, np.inf], "<f4").tobytes())
    other = copied(base, tmp_path / "b")
    file, start = byte_of(other, UNTOUCHED)
    with file.open("r+b") as out:
        out.seek(start + 8)
        out.write(np.array([np.nan, 2.0], "<f4").tobytes())
    (found,) = jobs.diff(base, other).tensors
    assert found.tensor == UNTOUCHED
    assert found.elements_changed == 2
    assert json.dumps(found.model_dump(), allow_nan=False)
    done = cli("diff", base, other, "--json")
    assert done.code == 1
    assert isinstance(json.loads(done.out), dict)


def test_a_rebuild_of_a_resharded_derivative_says_that_the_files_are_others(models: Models, tmp_path: Path) -> None:
    base, split = models("llama"), models("llama", torch.float32, "30KB")
    make(base, tmp_path / "out", {"remove": 1.0})
    make(split, tmp_path / "split", {"remove": 1.0})
    shutil.copy(tmp_path / "out" / RECORD, tmp_path / "split" / RECORD)
    shutil.rmtree(tmp_path / "split" / KEPT)
    shutil.copytree(tmp_path / "out" / KEPT, tmp_path / "split" / KEPT)
    again: RebuildRecord = jobs.rebuild(tmp_path / "split", base=base)
    assert again.tensors == [], "the tensors are the same however they are sharded"
    assert again.files == ["model.safetensors"]
    assert again.rebuilt_digest == again.found_digest


def test_a_gguf_is_compared_as_the_folder_that_it_stands_for(models: Models, tmp_path: Path) -> None:
    """As its types have nothing in common with a folder's, every tensor would differ from every edit of it."""
    export_gguf(open_checkpoint(str(models("llama"))), file := tmp_path / "m.gguf", "Q8_0")
    folder = runnable(open_checkpoint(str(file))).path
    for pair in ((file, folder), (folder, file)):
        found = jobs.diff(*pair)
        assert found.same
        assert found.identical_tensors == len(pico.tensors(folder))
        assert found.notes == ["m.gguf is a GGUF file: compared is the bf16 folder that it stands for"]
    other = copied(folder, tmp_path / "other")
    flip(*byte_of(other, UNTOUCHED, 3))
    (changed,) = jobs.diff(file, other).tensors
    assert (changed.tensor, changed.what, changed.elements_changed) == (UNTOUCHED, "changed", 1)
    done = cli("diff", file, other)
    assert done.code == 1
    assert "is a GGUF file" in done.words
    assert jobs.diff(file, file).notes == []


def test_metadata_of_two_ggufs_are_compared(tmp_path: Path) -> None:
    """A template that was exchanged is a difference, though every weight is the same."""
    folder = pico.build("llama", tmp_path / "folder")
    base = open_checkpoint(str(folder))
    for name, said in (("a", "one"), ("b", "one"), ("c", "two")):
        export_gguf(base, tmp_path / f"{name}.gguf", "F32", metadata={"general.description": said})
    assert jobs.diff(tmp_path / "a.gguf", tmp_path / "b.gguf").same
    found = jobs.diff(tmp_path / "a.gguf", tmp_path / "c.gguf")
    assert not found.same
    assert not found.tensors
    assert [(f.file, f.keys) for f in found.files] == [("(metadata)", ["general.description"])]
