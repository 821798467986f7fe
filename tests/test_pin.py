"""Pins: what a lock says, who else vouches, what changed; and that the bytes that are checked are the bytes that are used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import pico
from clirun import assert_one_error, cli
from test_gguf_convert import tiny
from weightsmith.checkpoint import open_checkpoint, runnable
from weightsmith.errors import (
    BaseChanged,
    DigestMismatch,
    EditError,
    FormatError,
    ManifestMismatch,
    NonFinite,
    NotPinned,
    UsageError,
    WeightsmithError,
)
from weightsmith.formats.safetensors import digest_and_check
from weightsmith.found import ScannedFile
from weightsmith.jobs.files import as_checkpoint
from weightsmith.jobs.pin import pin
from weightsmith.jobs.scan import scan
from weightsmith.pinned import LOCK, LockRecord
from weightsmith.storage import cache_dir, remember_sha256, stat_key
from weightsmith.trust.pins import guard
from weightsmith.trust.pins.changes import json_changes
from weightsmith.trust.pins.lock import check, find_lock, guarded, held, lock_text, read_lock, require
from weightsmith.trust.pins.sources import Signers
from weightsmith.trust.pins.sums import read_sums
from weightsmith.trust.pins.taken import take

GOLD = Path(__file__).parent / "oms"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that nobody changes."""
    return pico.build("qwen2", tmp_path_factory.mktemp("base") / "m")


@pytest.fixture
def model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in a folder of its own that is the current one."""
    shutil.copytree(base, tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIGHTSMITH_LOCK", raising=False)
    return tmp_path / "m"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def retensor(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the weights of a model anew."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def bump(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"][0] += 1


# -- the lock --------------------------------------------------------------------------------------------------------


def test_a_lock_holds_every_file_and_tensor_on_a_line_of_its_own(model: Path) -> None:
    record = pin(str(model))
    assert record.written
    text = Path("weightsmith.lock").read_text()
    entry = read_lock(Path("weightsmith.lock")).record.models["m"]
    assert {n: f.sha256 for n, f in entry.files.items()} == {p.name: sha(p) for p in model.iterdir()}
    checkpoint = open_checkpoint(str(model))
    assert {n: t.blake3 for n, t in entry.tensors.items()} == checkpoint.tensor_digests()
    assert entry.digest == checkpoint.digest() == record.digest
    for name in (*entry.files, *entry.tensors):
        assert sum(line.startswith(f'    "{name}": {{') for line in text.splitlines()) == 1
    assert text.encode() == lock_text(read_lock(Path("weightsmith.lock")).record), "there is one form of it"
    assert list(json.loads(text)) == sorted(json.loads(text))
    pin(str(model))
    assert Path("weightsmith.lock").read_text() == text, "the same model pins the same bytes"


def test_one_lock_holds_many_models_and_moves_with_them(model: Path, tmp_path: Path) -> None:
    tiny(tmp_path / "x.gguf", "llama", "output")
    pin(str(model))
    pin(str(tmp_path / "x.gguf"))
    lock = find_lock()
    assert lock is not None
    assert set(lock.record.models) == {"m", "x.gguf"}
    assert lock.entry_for(str(model)) is not None
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("m", "x.gguf", "weightsmith.lock"):
        (tmp_path / name).rename(other / name)
    moved = find_lock(other)
    assert moved is not None
    for name in ("m", "x.gguf"):
        checkpoint = open_checkpoint(str(other / name))
        entry = moved.entry_for(checkpoint)
        assert entry is not None
        assert check(checkpoint, entry).good
    assert moved.entry_for(str(tmp_path / "m")) is None


def _duplicate(text: str) -> str:
    return text.replace('"schema"', '"models": {}, "schema"')


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "newer": (lambda t: t.replace(LOCK, "weightsmith/lock/2"), "a newer Weightsmith is needed"),
    "another file": (lambda t: "{}", "not a lock"),
    "a list": (lambda t: "[]", "not a lock"),
    "no JSON": (lambda t: t[:-20], "not valid JSON"),
    "not text": (lambda t: "\ud800", "not valid JSON"),
    "deep": (lambda t: "[" * 100_000, "not valid JSON"),
    "a key twice": (_duplicate, "'models' stands twice"),
    "a file twice": (lambda t: t.replace('"config.json":', '"tokenizer.json":'), "stands twice"),
    "a path upwards": (lambda t: t.replace('"config.json":', '"../config.json":'), "inside the folder"),
    "a path from the root": (lambda t: t.replace('"config.json":', '"/etc/x":'), "inside the folder"),
    "a path of Windows": (lambda t: t.replace('"config.json":', '"C:x":'), "inside the folder"),
    "an empty path": (lambda t: t.replace('"config.json":', '"":'), "inside the folder"),
    "an unknown field": (lambda t: t.replace('"kind": "folder"', '"kind": "folder", "x": 1'), "unknown field"),
    "a short digest": (lambda t: t.replace('"sha256": "', '"sha256": "a', 1), "sha256"),
    "a negative size": (lambda t: t.replace('"size": ', '"size": -', 1), "size"),
    "another kind": (lambda t: t.replace('"kind": "folder"', '"kind": "zip"'), "kind"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_lock_is_one_clear_error(model: Path, what: str) -> None:
    pin(str(model))
    file = Path("weightsmith.lock")
    change, why = BROKEN[what]
    file.write_bytes(change(file.read_text()).encode("utf-8", "surrogatepass"))
    for verb in ("verify", "pin"):
        before = file.read_bytes()
        done = cli(verb, "m")
        assert done.code == 2
        assert_one_error(done.err)
        assert why in done.err
        assert file.read_bytes() == before


def test_a_lock_is_found_where_it_holds(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(str(model))
    deep = tmp_path / "a/b"
    deep.mkdir(parents=True)

    def found(start: Path, explicit: Path | None = None) -> Path | None:
        lock = find_lock(start, explicit)
        return lock.path if lock else None

    assert found(deep) == tmp_path / "weightsmith.lock"
    (tmp_path / "a/.git").mkdir()
    assert found(deep) is None, "another repository's lock is not ours"
    other = tmp_path / "other.lock"
    shutil.copy(tmp_path / "weightsmith.lock", other)
    monkeypatch.setenv("WEIGHTSMITH_LOCK", str(other))
    assert found(tmp_path) == other
    assert found(deep, tmp_path / "weightsmith.lock") == tmp_path / "weightsmith.lock"
    monkeypatch.setenv("WEIGHTSMITH_LOCK", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no lock file"):
        found(tmp_path)
    monkeypatch.delenv("WEIGHTSMITH_LOCK")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "a")
    (tmp_path / "a/.git").rmdir()
    assert found(deep) is None, "what lies above the home folder is not looked at"


def test_another_revision_than_the_pinned_one_is_refused(model: Path) -> None:
    pin(str(model))
    lock = read_lock(Path("weightsmith.lock"))
    lock.record.models["org/name@" + "1" * 40] = lock.record.models["m"]
    fetched = SimpleNamespace(source={"kind": "hub", "repo": "org/name", "revision": "2" * 40})
    with pytest.raises(ManifestMismatch, match="another revision"):
        lock.entry_for(f"{fetched.source['repo']}@{fetched.source['revision']}")
    assert lock.entry_for("org/name@" + "1" * 40) is not None
    assert lock.entry_for("org/other@" + "1" * 40) is None
    assert lock.revision_of("org/name") == "org/name@" + "1" * 40
    assert lock.revision_of("org/name@main") == "org/name@main"
    lock.record.models["org/name@" + "3" * 40] = lock.record.models["m"]
    assert lock.revision_of("org/name") == "org/name", "it can't be told which"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_lock_is_a_bug_of_ours(base: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    file = folder / "x.lock"
    pin(str(base), lock=file)
    value = json.loads(file.read_text())
    entry = next(iter(value["models"].values()))
    values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
    spots = [value, value["models"], entry, entry["files"], entry["files"]["config.json"], entry["tensors"], entry["source"],
             next(iter(entry["tensors"].values()))]  # fmt: skip
    spot = data.draw(st.sampled_from(spots))
    spot[data.draw(st.sampled_from([*spot, "x", "\ud800"]))] = data.draw(values)
    file.write_text(json.dumps(value))
    checkpoint = open_checkpoint(str(base))
    with contextlib.suppress(WeightsmithError):
        lock = read_lock(file)
        assert read_lock(file).record == lock.record
        if (found := lock.entry_for(checkpoint)) is not None:
            check(checkpoint, found)
            with guarded(checkpoint, lock):
                pass


@given(st.binary(max_size=200) | st.text(alphabet="0a\\* ()=SHA256\nMD5./", max_size=200).map(str.encode))
def test_no_list_of_checksums_is_a_bug_of_ours(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "sums"
    file.write_bytes(raw)
    with contextlib.suppress(WeightsmithError):
        read_sums(file)


# -- who else vouches ------------------------------------------------------------------------------------------------


def sums_of(model: Path, file: Path, **changed: str) -> Path:
    lines = [f"{changed.get(p.name.replace('.', '_'), sha(p))}  {p.name}\n" for p in sorted(model.iterdir())]
    file.write_text("".join(lines))
    return file


def test_sources_that_agree_are_named_with_each_file(model: Path, tmp_path: Path) -> None:
    sums_of(model, tmp_path / "SHA256SUMS")
    shutil.copytree(model, tmp_path / "mirror")
    (tmp_path / "mirror/tokenizer.json").unlink()
    done = cli("pin", "m", "--from", "sums:SHA256SUMS", "--from", "mirror")
    assert done.code == 0, done.words
    entry = read_lock(Path("weightsmith.lock")).record.models["m"]
    assert entry.files["config.json"].by == ["sums:SHA256SUMS", "mirror:mirror"]
    assert entry.files["tokenizer.json"].by == ["sums:SHA256SUMS"]
    assert all(s.trusted for s in entry.sources.values())
    assert entry.sources["mirror:mirror"].weights == "same"


def test_a_disagreement_is_shown_and_nothing_is_pinned(model: Path, tmp_path: Path) -> None:
    sums_of(model, tmp_path / "SHA256SUMS", config_json="a" * 64)
    shutil.copytree(model, tmp_path / "mirror")
    argv = ("pin", "m", "--from", "sums:SHA256SUMS", "--from", "mirror")
    done = cli(*argv)
    assert done.code == 1
    assert not Path("weightsmith.lock").exists()
    for word in ("config.json", "sha256:aaaaaaaa", sha(model / "config.json")[:24], "here", "mirror:mirror as here", "--trust"):
        assert word in done.words, word
    assert "tokenizer.json" not in done.words, "only what differs"
    told = json.loads(cli(*argv, "--json").out)
    assert told["disagreements"] == [{"file": "config.json", "says": {
        "here": f"sha256:{sha(model / 'config.json')}", "sums:SHA256SUMS": "sha256:" + "a" * 64,
        "mirror:mirror": "as here"}}]  # fmt: skip
    assert cli(*argv, "--trust", "sums:SHA256SUMS").code == 1, "a trusted source says that these are not the bytes"
    assert cli(*argv, "--trust", "mirror").code == 2, "that is not its name"
    assert not Path("weightsmith.lock").exists()
    assert cli(*argv, "--trust", "mirror:mirror").code == 0
    entry = read_lock(Path("weightsmith.lock")).record.models["m"]
    assert entry.files["config.json"].against == {"sums:SHA256SUMS": "sha256:" + "a" * 64}
    assert [n for n, s in entry.sources.items() if not s.trusted] == ["sums:SHA256SUMS"], "it stays on record"


def test_pinning_the_same_once_more_keeps_who_vouched_and_who_was_overruled(model: Path, tmp_path: Path) -> None:
    sums_of(model, tmp_path / "SHA256SUMS", config_json="a" * 64)
    shutil.copytree(model, tmp_path / "mirror")
    assert cli("pin", "m", "--from", "sums:SHA256SUMS", "--from", "mirror", "--trust", "here").code == 0
    before = Path("weightsmith.lock").read_bytes()
    for argv in ((), ("--update",)):
        done = cli("pin", "m", *argv)
        assert done.code == 0
        assert "pinned as before: m in weightsmith.lock" in done.words
        assert Path("weightsmith.lock").read_bytes() == before
    sums_of(model, tmp_path / "SHA256SUMS")
    assert cli("pin", "m", "--from", "sums:SHA256SUMS").code == 0
    entry = read_lock(Path("weightsmith.lock")).record.models["m"]
    assert entry.files["config.json"].against == {}, "who was asked again is taken at the new word"
    assert entry.files["config.json"].by == ["mirror:mirror", "sums:SHA256SUMS"]
    (model / "config.json").write_text("{}")
    assert cli("pin", "m", "--update", "--yes").code == 0
    entry = read_lock(Path("weightsmith.lock")).record.models["m"]
    assert not entry.sources, "nobody has vouched for the new contents"
    assert not any(f.by for f in entry.files.values())


def test_for_a_machine_an_update_is_a_record_of_what_would_change(model: Path) -> None:
    pin("m")
    before = Path("weightsmith.lock").read_bytes()
    (model / "new.txt").write_text("x")
    done = cli("pin", "m", "--update", "--json")
    assert done.code == 2
    record = json.loads(done.out)
    assert not record["written"]
    assert [f["file"] for f in record["changes"]["files"]] == ["new.txt"]
    assert Path("weightsmith.lock").read_bytes() == before


def test_a_file_that_a_list_promises_and_is_not_there_is_a_disagreement(model: Path, tmp_path: Path) -> None:
    with sums_of(model, tmp_path / "SHA256SUMS").open("a") as file:
        file.write(f"{'b' * 64}  more.safetensors\n")
    record = pin(str(model), sources=["sums:SHA256SUMS"])
    assert not record.written
    assert record.disagreements[0].says["here"] == "not there"


def test_a_mirror_in_other_shards_is_compared_by_its_tensors(model: Path, tmp_path: Path) -> None:
    other = pico.build("qwen2", tmp_path / "shards", shard="40KB")
    record = pin(str(model), sources=[str(other)])
    assert record.written
    assert record.sources[f"mirror:{other}"].weights == "same"
    (tmp_path / "weightsmith.lock").unlink()
    changed = pico.build("qwen2", tmp_path / "changed", shard="40KB", seed=1)
    record = pin(str(model), sources=[str(changed)])
    assert not record.written
    assert [d.file for d in record.disagreements] == ["(all tensors)"]


def test_a_colleagues_lock_is_a_source(model: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copytree(model, theirs / "m")
    pin(str(theirs / "m"), lock=theirs / "x.lock")
    assert pin("m", sources=["lock:theirs/x.lock"]).sources["lock:x.lock"].same == len(list(model.iterdir()))
    retensor(theirs / "m", bump)
    pin(str(theirs / "m"), lock=theirs / "x.lock", update=True)
    record = pin("m", sources=["lock:theirs/x.lock#m"])
    assert not record.written
    assert [d.file for d in record.disagreements] == ["model.safetensors"]
    with pytest.raises(UsageError, match="says nothing"):
        pin("m", sources=["lock:theirs/x.lock#other"])


def test_a_signature_vouches_once_it_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLD / "by-key", tmp_path / "m")
    with pytest.raises(UsageError, match="nobody was named"):
        pin("m", sources=["oms:m/model.sig"])
    record = pin("m", sources=["oms:m/model.sig"], signers=Signers(key=GOLD / "prime256v1.pem"))
    assert record.written
    assert record.sources["oms:model.sig"].signer.startswith("key ")
    assert record.nobody == ["model.sig"]
    (tmp_path / "m/sub/new.txt").write_text("x")
    record = pin("m", sources=["oms:m/model.sig"], signers=Signers(key=GOLD / "prime256v1.pem"), update=True)
    assert not record.written
    assert record.disagreements[0].says["oms:model.sig"] == "not listed"


def test_the_hub_vouches_with_gits_digests_and_its_own(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for path in model.iterdir():
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        large = SimpleNamespace(sha256=sha(path)) if path.suffix == ".safetensors" else None
        rows.append(SimpleNamespace(rfilename=path.name, blob_id=git, lfs=large, size=len(data)))
    rows.append(SimpleNamespace(rfilename="README.md", blob_id="c" * 40, lfs=None, size=1))  # not fetched: no fault
    asked: list[Any] = []

    def info(self: Any, repo: str, **more: Any) -> Any:
        asked.append((repo, more["revision"]))
        return SimpleNamespace(sha="d" * 40, siblings=rows)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    record = pin("m", sources=["hub:org/name@main"])
    assert record.written
    assert asked == [("org/name", "main")]
    assert record.sources["hub"].what == "org/name@" + "d" * 40
    assert record.nobody == []
    rows[0].blob_id, rows[0].lfs = "0" * 40, None
    record = pin("m", sources=["hub:org/name@main"], update=True)
    assert not record.written
    assert record.disagreements[0].says["hub"] == "git:" + "0" * 40
    rows[0].rfilename = "../x"
    with pytest.raises(FormatError, match="inside the folder"):
        pin("m", sources=["hub:org/name@main"])
    with pytest.raises(UsageError, match="not fetched from the hub"):
        pin("m", sources=["hub"])


# -- updates ---------------------------------------------------------------------------------------------------------


def test_a_change_is_refused_then_shown_then_pinned(model: Path) -> None:
    pin("m")
    before = Path("weightsmith.lock").read_bytes()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta_x": 7, "hidden_act": "gelu"}))
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "\n{{ 'hello \x1b[31m' }}")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "NFC"}}))
    (model / "new.txt").write_text("x")
    retensor(model, lambda t: (bump(t), t.update(extra=np.zeros((2, 3), np.float32)), t.pop("lm_head.weight")))
    refused = cli("pin", "m")
    assert refused.code == 1
    assert "other contents (5 files)" in refused.err
    asked = cli("pin", "m", "--update")
    assert asked.code == 2
    assert "--yes" in asked.err
    assert Path("weightsmith.lock").read_bytes() == before
    for word in ("added new.txt", "$.hidden_act", '"gelu"', "$.rope_theta_x: added, 7", "$.normalizer", "+{{ 'hello", "\\x1b[31m",
                 "changed tensor model.norm.weight", "added tensor extra (nothing → F32 2x3)", "removed tensor lm_head.weight",
                 "3 tensors of"):  # fmt: skip
        assert word in asked.words, word
    assert "\x1b" not in asked.out
    assert cli("pin", "m", "--update", "--yes").code == 0
    assert pin("m").changes is not None
    assert pin("m").changes.same  # type: ignore[union-attr]


def test_whoever_says_no_keeps_what_is_pinned(model: Path) -> None:
    pin("m")
    before = Path("weightsmith.lock").read_bytes()
    (model / "config.json").write_text("{}")
    asked: list[Any] = []
    record = pin("m", update=True, consent=lambda r: bool(asked.append(r)))
    assert not record.written
    assert Path("weightsmith.lock").read_bytes() == before
    assert [f.file for f in asked[0].changes.files] == ["config.json"]


def test_a_pin_that_was_written_meanwhile_is_kept(model: Path, tmp_path: Path) -> None:
    tiny(tmp_path / "x.gguf", "llama", "output")
    pin("m")
    (model / "config.json").write_text((model / "config.json").read_text() + " ")

    def meanwhile(_record: Any) -> bool:
        pin("x.gguf")
        return True

    assert pin("m", update=True, consent=meanwhile).written
    assert set(read_lock(Path("weightsmith.lock")).record.models) == {"m", "x.gguf"}
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    with pytest.raises(BaseChanged, match="somebody else"):
        pin("m", update=True, consent=lambda _: pin("m", update=True).written)


def test_without_the_old_text_only_the_change_is_known(model: Path) -> None:
    pin("m")
    shutil.rmtree(cache_dir() / "pinned")
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    record = pin("m", update=True)
    assert record.changes is not None
    assert "not kept on this machine" in record.changes.files[0].details[0]


def test_a_kept_text_that_was_tampered_with_is_not_believed(model: Path) -> None:
    pin("m")
    for kept in (cache_dir() / "pinned").iterdir():
        kept.write_bytes(b"rubbish")
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    record = pin("m", update=True)
    assert record.changes is not None
    assert "not kept" in record.changes.files[0].details[0]


def test_a_broken_lock_is_no_matter_of_a_scan_of_a_folder(model: Path) -> None:
    """Nothing that lies beside a model may keep it from being looked at."""
    Path("weightsmith.lock").write_text("{", encoding="utf-8")
    assert scan(str(model)).verdict == "clean"
    with pytest.raises(FormatError):
        scan("org/name")


def test_with_a_lock_a_hub_name_is_the_revision_that_it_pins(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere but where a new revision is asked for."""
    at = f"org/name@{'1' * 40}"
    asked: list[str] = []

    def hub(ref: str, **_: Any) -> Any:
        asked.append(ref)
        checkpoint = open_checkpoint(str(model))
        object.__setattr__(checkpoint, "source", {"kind": "hub", "repo": "org/name", "revision": "1" * 40})
        return checkpoint

    for module in ("weightsmith.jobs.files", "weightsmith.jobs.pin"):  # by name, since the package gives a function
        monkeypatch.setattr(sys.modules[module], "open_checkpoint", hub)
    pin("org/name")
    assert set(read_lock(Path("weightsmith.lock")).record.models) == {at}
    as_checkpoint("org/name")
    as_checkpoint("org/other")
    pin("org/name")
    pin("org/name", update=True)
    assert asked == ["org/name", at, "org/other", at, "org/name"]


def test_a_new_revision_replaces_the_old_one_and_says_so(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name/snapshots"
    old, new = "1" * 40, "2" * 40
    shutil.copytree(model, cache / old)
    shutil.copytree(model, cache / new)
    (cache / new / "generation_config.json").write_text('{"temperature": 9}')

    def fetched(revision: str) -> Any:
        checkpoint = open_checkpoint(str(cache / revision))
        object.__setattr__(checkpoint, "source", {"kind": "hub", "repo": "org/name", "revision": revision})
        return checkpoint

    pin(fetched(old))
    with pytest.raises(ManifestMismatch, match="another revision"):
        read_lock(Path("weightsmith.lock")).entry_for(fetched(new))
    shutil.rmtree(cache_dir() / "pinned")  # then the old snapshot still has the text
    record = pin(fetched(new), update=True)
    assert record.changes is not None
    assert (record.changes.before, record.changes.after) == (f"org/name@{old}", f"org/name@{new}")
    assert [f.file for f in record.changes.files] == ["generation_config.json"]
    assert "9" in " ".join(record.changes.files[0].details)
    assert set(read_lock(Path("weightsmith.lock")).record.models) == {f"org/name@{new}"}


def test_vocabularies_are_compared_by_number() -> None:
    old = {f"t{i}": i for i in range(2000)}
    new = {**old, "t5": 6, "t6": 5, "new": 2000}
    del new["t7"]
    lines = list(json_changes({"model": {"vocab": old}}, {"model": {"vocab": new}}, "$"))
    assert lines[0] == "$.model.vocab: 1 tokens added, 1 removed, 2 with another id"
    assert "'t5' was 5 and is 6" in " ".join(lines)
    assert list(json_changes({"a": [1, 2]}, {"a": [1, 2]}, "$")) == []
    assert list(json_changes({"a": True}, {"a": 1}, "$")) == ["$.a: true → 1"]
    merges = [f"{i} x" for i in range(1500)]
    assert "in another order" in next(json_changes(merges, merges[::-1], "$.model.merges"))


# -- the bytes that are used -----------------------------------------------------------------------------------------

USED = ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja")


@pytest.fixture(params=["small", "memory", "disk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The three ways in which a file is copied, whatever its size."""
    if request.param != "small":
        monkeypatch.setattr(guard, "LARGE", 1)
    if request.param == "disk":
        monkeypatch.setattr(guard, "free_memory", lambda: 0)
    return str(request.param)


def damage(path: Path, how: str) -> None:
    """Change one byte late in a file: in place, or by putting another file there."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    if how == "in place":
        with path.open("r+b") as file:
            file.write(data)
    else:
        other = path.with_suffix(".other")
        other.write_bytes(data)
        other.replace(path)


@pytest.mark.parametrize("name", USED)
def test_a_file_changed_before_the_check_is_caught(model: Path, name: str, way: str) -> None:
    pin("m")
    checkpoint = open_checkpoint("m")
    stat = (model / name).stat()
    damage(model / name, "in place")
    os.utime(model / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DigestMismatch, match=name), guarded(checkpoint, find_lock()):
        pytest.fail("it was handed out")


@pytest.mark.parametrize("how", ["in place", "another file"])
@pytest.mark.parametrize("name", USED)
def test_a_file_changed_after_the_check_is_not_used(model: Path, base: Path, name: str, how: str, way: str) -> None:
    pin("m")
    with guarded(open_checkpoint("m"), find_lock()) as used:
        assert isinstance(used, guard.Used)
        assert used.sealed == (way != "disk")
        damage(model / name, how)
        for file in USED:
            assert (used.path / file).read_bytes() == (base / file).read_bytes()
        assert {n: digest_and_check(t)[0] for n, t in used.tensors.items()} == used.tensor_digests()
        assert used.chat_template == open_checkpoint(str(base)).chat_template
        assert used.config == json.loads((base / "config.json").read_text())
    assert not used.path.exists()


def test_what_runs_is_what_was_pinned_though_the_folder_is_swapped(model: Path, way: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def run(path: str) -> Any:
        with pico.quiet(), torch.no_grad():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            running = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        return running, tokenizer

    expected, words = run("m")
    pin("m")
    with guarded(open_checkpoint("m"), find_lock()) as used:
        retensor(model, lambda t: [v.fill(9) for v in t.values()])
        for name in USED[1:]:
            (model / name).write_text("{}")
        running, tokenizer = run(str(used.path))
    ids = torch.tensor([tokenizer("the sea")["input_ids"]])
    assert tokenizer.chat_template == words.chat_template
    with torch.no_grad():
        assert torch.equal(running(ids).logits, expected(torch.tensor([words("the sea")["input_ids"]])).logits)


def test_sealed_memory_can_not_be_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("no such memory on this platform")
    monkeypatch.setattr(guard, "LARGE", 1)
    pin("m")
    with guarded(open_checkpoint("m"), find_lock()) as used:
        link = os.readlink(used.path / "model.safetensors")
        handle = os.open(link, os.O_RDWR)
        with pytest.raises(OSError) as error:
            os.pwrite(handle, b"x", 0)
        assert error.value.errno == errno.EPERM
        with pytest.raises(OSError):
            os.ftruncate(handle, 1)
        os.close(handle)


def test_the_copy_is_ours_alone(model: Path) -> None:
    pin("m")
    with guarded(open_checkpoint("m"), find_lock()) as used:
        assert used.path.stat().st_mode & 0o777 == 0o700


def test_only_pinned_files_are_handed_out(model: Path) -> None:
    pin("m")
    (model / "adapter_config.json").write_text("{}")
    (model / "modeling_evil.py").write_text("raise SystemExit")
    with guarded(open_checkpoint("m"), find_lock()) as used:
        assert isinstance(used, guard.Used)
        assert set(used.unpinned) == {"adapter_config.json", "modeling_evil.py"}
        assert not (used.path / "adapter_config.json").exists()
    with pytest.raises(ManifestMismatch, match="not pinned"), guarded(open_checkpoint("m"), find_lock(), frozen=True):
        pass
    (model / "tokenizer.json").unlink()
    with pytest.raises(ManifestMismatch, match="is pinned and not there"), guarded(open_checkpoint("m"), find_lock()):
        pass


def test_frozen_refuses_what_is_not_pinned(model: Path) -> None:
    checkpoint = open_checkpoint("m")
    with guarded(checkpoint, None) as used:
        assert used is checkpoint
    with pytest.raises(NotPinned, match="there is no lock"), guarded(checkpoint, None, frozen=True):
        pass
    pin(str(GOLD / "by-key"), lock="weightsmith.lock")
    with guarded(checkpoint, find_lock()) as used:
        assert used is checkpoint
    with pytest.raises(NotPinned, match="says nothing of m"), guarded(checkpoint, find_lock(), frozen=True):
        pass


def test_no_remembered_digest_is_believed(model: Path) -> None:
    pin("m")
    checkpoint = open_checkpoint("m")
    entry = read_lock(Path("weightsmith.lock")).record.models["m"]
    good = checkpoint.tensor_digests()
    before = stat_key(model / "model.safetensors")
    stat = (model / "model.safetensors").stat()
    damage(model / "model.safetensors", "in place")
    os.utime(model / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert stat_key(model / "model.safetensors") != before
    remember_sha256(model / "model.safetensors", entry.files["model.safetensors"].sha256)  # the cache lies
    checkpoint.remember(good)
    assert checkpoint.digest() == entry.digest
    assert not check(checkpoint, entry).good
    for frozen in (False, True):
        with pytest.raises(DigestMismatch), guarded(checkpoint, find_lock(), frozen=frozen):
            pass
        with pytest.raises(DigestMismatch, match="first tensor that differs"):
            require(checkpoint, entry, frozen=frozen)


def test_a_verdict_on_other_bytes_does_not_hold(model: Path) -> None:
    pin("m")
    entry = read_lock(Path("weightsmith.lock")).record.models["m"]
    seen = [ScannedFile(name=n, kind="x", size=f.size, sha256=f.sha256) for n, f in entry.files.items()]
    with guarded(open_checkpoint("m"), find_lock()) as used:
        assert isinstance(used, guard.Used)
        used.require_scanned(seen)
        for other in (None, "0" * 64):
            changed = [f.model_copy(update={"sha256": other}) if f.name == "config.json" else f for f in seen]
            with pytest.raises(DigestMismatch, match="scanned"):
                used.require_scanned(changed)
        with pytest.raises(DigestMismatch, match="scanned"):
            used.require_scanned(seen[1:])


def test_require_names_what_is_missing_or_more(model: Path) -> None:
    pin("m")
    checkpoint, entry = open_checkpoint("m"), read_lock(Path("weightsmith.lock")).record.models["m"]
    assert require(checkpoint, entry, frozen=True).good
    (model / "more.txt").write_text("x")
    assert require(checkpoint, entry).unpinned == ["more.txt"]
    with pytest.raises(ManifestMismatch, match=r"more\.txt"):
        require(checkpoint, entry, frozen=True)
    (model / "tokenizer.json").unlink()
    with pytest.raises(ManifestMismatch, match=r"tokenizer\.json"):
        require(checkpoint, entry)


def test_a_lock_whose_tensors_were_edited_is_refused(model: Path) -> None:
    pin("m")
    record = read_lock(Path("weightsmith.lock")).record
    entry = record.models["m"]
    name = next(iter(entry.tensors))
    for field, value in (("blake3", "0" * 64), ("dtype", "F16")):
        tensor = entry.tensors[name].model_copy(update={field: value})
        changed = entry.model_copy(update={"tensors": {**entry.tensors, name: tensor}})
        Path("weightsmith.lock").write_bytes(lock_text(LockRecord(models={"m": changed})))
        with pytest.raises(ManifestMismatch, match="lock"), guarded(open_checkpoint("m"), find_lock()):
            pass


def test_weights_that_are_not_finite_are_pinned_as_that(model: Path) -> None:
    retensor(model, lambda t: t["model.norm.weight"].__setitem__(3, np.nan))
    pin("m")
    assert read_lock(Path("weightsmith.lock")).record.models["m"].not_finite == ["model.norm.weight"]
    with guarded(open_checkpoint("m"), find_lock()) as used, pytest.raises(NonFinite, match="norm"):
        used.check_finite()


def test_a_gguf_file_is_guarded_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(tmp_path / "x.gguf", "llama", "output")
    pin("x.gguf")
    whole = (tmp_path / "x.gguf").read_bytes()
    with guarded(open_checkpoint("x.gguf"), find_lock()) as used:
        assert isinstance(used, guard.Used)
        damage(tmp_path / "x.gguf", "in place")
        assert used.path.read_bytes() == whole
        assert used.file_sha256() == hashlib.sha256(whole).hexdigest()
        assert {n: digest_and_check(t)[0] for n, t in used.tensors.items()} == used.tensor_digests()
    with pytest.raises(DigestMismatch), guarded(open_checkpoint("x.gguf"), find_lock()):
        pass


@pytest.mark.parametrize("large", [1, 1 << 40])
def test_a_conversion_is_of_the_pinned_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guard, "LARGE", large)
    tiny(tmp_path / "x.gguf", "llama", "output")
    pin("x.gguf")
    converted = runnable(open_checkpoint("x.gguf"))
    good = converted.digest()
    for file in converted.path.glob("*.safetensors"):  # somebody changes what the cache holds
        damage(file, "in place")
    with guarded(converted, find_lock()) as used:
        assert used.path == converted.path, "the cache is ours"
    with guarded(converted, find_lock(), frozen=True) as used:
        assert used.path != converted.path, "and is not believed when frozen"
        assert used.digest() == good
    assert held(converted, None) is converted
    assert not guard.describe(converted)
    for frozen in (False, True):
        found = held(converted, find_lock(), frozen=frozen)
        assert found.path == converted.path
        assert found.origin is converted.origin
        assert guard.describe(found) == "1 file as pinned, converted from a private copy"
    shutil.rmtree(converted.path)
    with guarded(open_checkpoint("x.gguf"), find_lock(), frozen=True) as used:
        damage(tmp_path / "x.gguf", "in place")
        kept = guard.lasting(runnable(used))
    assert kept.digest() == good, "the cache's conversion is of the bytes that were checked"
    damage(tmp_path / "x.gguf", "in place")  # as it was
    damage(tmp_path / "x.gguf", "in place")
    for frozen in (False, True):
        with pytest.raises(DigestMismatch), guarded(converted, find_lock(), frozen=frozen):
            pass
        with pytest.raises(DigestMismatch):
            held(converted, find_lock(), frozen=frozen)
    shutil.rmtree(converted.path)


def test_what_a_killed_process_left_is_removed(model: Path) -> None:
    pin("m")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = cache_dir() / "used" / f"{gone.pid}-0123"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    with guarded(open_checkpoint("m"), find_lock()) as used:
        assert not left.exists()
        kept = guard.lasting(used)
    assert isinstance(kept, guard.Streamed)
    assert kept.path == model
    assert guard.lasting(kept) is kept
    assert not list((cache_dir() / "used").iterdir())


def test_an_edits_own_record_is_held_against_the_pins(model: Path) -> None:
    outputs = {"model.safetensors": sha(model / "model.safetensors")}
    (model / "weightsmith.json").write_text(json.dumps({"outputs": outputs}))
    pin("m")
    with guarded(open_checkpoint("m"), find_lock()) as used:
        used.check_record()
    outputs["model.safetensors"] = "0" * 64
    (model / "weightsmith.json").write_text(json.dumps({"outputs": outputs}))
    pin("m", update=True)
    with guarded(open_checkpoint("m"), find_lock()) as used, pytest.raises(DigestMismatch):
        used.check_record()


# -- digests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", range(8))
def test_digests_of_one_reading_are_those_of_many(tmp_path: Path, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightsmith.trust.pins.taken.BLOCK", 64)
    monkeypatch.setattr("weightsmith.trust.pins.taken.LARGE", 0)
    dice = np.random.default_rng(padding)
    arrays = {"a": dice.standard_normal(77).astype("<f4"), "b": np.array([], "<f4"), "c": dice.standard_normal(5).astype("<f8"),
              "d": np.array([1, np.inf, 3], "<f4")}  # fmt: skip
    header: dict[str, Any] = {}
    data = b""
    for name, a in arrays.items():
        kind = "F64" if a.dtype == "<f8" else "F32"
        header[name] = {"dtype": kind, "shape": [a.size], "data_offsets": [len(data), len(data) + a.nbytes]}
        data += a.tobytes()
    raw = json.dumps(header).encode() + b" " * padding  # elements then lie across the blocks
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(str(tmp_path))
    file = tmp_path / "model.safetensors"
    taken = take(file, checkpoint.tensors.values())
    assert taken.sha256 == sha(file)
    assert taken.tensors == {n: digest_and_check(t) for n, t in checkpoint.tensors.items()}
    assert [n for n, row in taken.tensors.items() if not row[1]] == ["d"]
    assert taken.git == hashlib.sha1(b"blob %d\0" % taken.size + file.read_bytes()).hexdigest()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x" * 100)

    def meanwhile(_n: int) -> None:
        with file.open("r+b") as other:
            other.write(b"y")

    with pytest.raises(BaseChanged, match="changed while it was read"):
        take(file, (), meanwhile)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a fifo": (lambda m: os.mkfifo(m / "pipe"), "not a plain file"),
    "a link that leaves": (lambda m: (m / "out").symlink_to("/etc/hostname"), "leaves the folder"),
    "a link to a folder": (lambda m: (m / "up").symlink_to("."), "link to a folder"),
    "a loop of links": (lambda m: (m / "loop").symlink_to("loop"), "not a plain file"),
    "a link to nothing": (lambda m: (m / "gone").symlink_to("nothing"), "not a plain file"),
    "a name that is no text": (lambda m: Path(os.fsdecode(os.fsencode(m) + b"/\xff")).write_text("x"), "not UTF-8"),
    "a name with a backslash": (lambda m: (m / "a\\b").write_text("x"), "not a plain path"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_odd_files_are_one_clear_error(model: Path, what: str) -> None:
    make, why = ODD[what]
    make(model)
    for verb in ("pin", "verify"):
        done = cli(verb, "m")
        assert done.code == 2, done.words
        assert_one_error(done.err)
        assert why in done.err
    assert not Path("weightsmith.lock").exists()


def test_a_fifo_that_takes_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a plain file"):
        take(tmp_path / "pipe")


def test_links_inside_the_folder_are_followed(model: Path) -> None:
    (model / "again.json").symlink_to("config.json")
    pin("m")
    assert read_lock(Path("weightsmith.lock")).record.models["m"].files["again.json"].sha256 == sha(model / "config.json")


def test_too_many_files_are_a_stated_limit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightsmith.trust.pins.taken.MAX_FILES", 3)
    done = cli("pin", "m")
    assert done.code == 2
    assert "more than 3 files" in done.err


def test_bookkeeping_of_git_and_of_downloads_is_left_out(model: Path) -> None:
    for name in (".git", ".cache"):
        (model / name).mkdir()
        (model / name / "x").write_text("x")
    pin("m")
    assert not [n for n in read_lock(Path("weightsmith.lock")).record.models["m"].files if n.startswith(".")]


# -- lists of checksums ----------------------------------------------------------------------------------------------

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(("line", "name"), [
    (f"{HEX}  a b.json", "a b.json"), (f"{HEX} *a.json", "a.json"), (f"SHA256 (a.json) = {HEX}", "a.json"),
    (f"\\{HEX}  a\\nb", "a\nb"), (f"{HEX.upper()}  a.json", "a.json"), (f"{HEX}  ./sub/a.json", "sub/a.json"),
    (f"SHA256 (a) = b) = {HEX}", "a) = b"), (f"{HEX}  a.json\r", "a.json"), (f"{HEX}    a", "  a"), (f"# no\n\n{HEX}  a", "a"),
])  # fmt: skip
def test_every_shape_of_a_line_is_read(tmp_path: Path, line: str, name: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(line + "\n", newline="")
    source = read_sums(tmp_path / "SHA256SUMS")
    assert {n: said[0].value for n, said in source.files.items()} == {name: HEX}


@pytest.mark.parametrize(("text", "why"), [
    (f"{HEX[:40]}  a", "another algorithm"), (f"MD5 (a) = {HEX[:32]}", "another algorithm"), (f"SHA512 (a) = {HEX * 2}", "another"),
    ("hello", "not a line"), (f"{HEX} a", "not a line"), (f"{HEX}", "not a line"), (f"{HEX}  ../a", "inside the folder"),
    (f"{HEX}  /etc/a", "inside the folder"), (f"\\{HEX}  a\\t", "unknown escape"), (f"\\{HEX}  a\\", "unknown escape"),
    (f"{HEX}  a\n{'0' * 64}  a", "two digests"), ("", "lists no file"), ("# only this", "lists no file"),
])  # fmt: skip
def test_a_line_that_can_not_be_read_is_an_error_and_not_passed_over(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(FormatError, match=why):
        read_sums(tmp_path / "SHA256SUMS")


def test_what_coreutils_writes_is_read(tmp_path: Path) -> None:
    names = ["a.json", "with space", "new\nline", "paren) = (", "*star", "#hash"]
    for name in names:
        (tmp_path / name).write_text(name)
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no coreutils")
    for options in ([], ["--binary"], ["--tag"]):
        done = subprocess.run([tool, *options, "--", *names], cwd=tmp_path, capture_output=True, check=True)
        (tmp_path / "sums").write_bytes(done.stdout)
        assert {n: s[0].value for n, s in read_sums(tmp_path / "sums").files.items()} == {n: sha(tmp_path / n) for n in names}


# -- jobs that stream ------------------------------------------------------------------------------------------------


def test_a_streamed_checkpoint_is_the_pinned_one_at_its_own_place(model: Path) -> None:
    pin("m")
    checkpoint = open_checkpoint("m")
    found = held(checkpoint, find_lock(), frozen=True)
    assert isinstance(found, guard.Streamed)
    assert found.path == model
    assert found.known_digests() == checkpoint.tensor_digests() == found.tensor_digests()
    assert found.config == checkpoint.config
    retensor(model, bump)
    with pytest.raises(DigestMismatch, match=r"model\.safetensors"):
        held(checkpoint, find_lock())
    assert isinstance(held(checkpoint, find_lock(), weights=False), guard.Streamed)
    assert held(checkpoint, None) is checkpoint
    with pytest.raises(NotPinned):
        held(checkpoint, None, frozen=True)


@pytest.mark.parametrize("name", USED[1:])
def test_a_streamed_checkpoint_was_parsed_from_pinned_bytes(model: Path, name: str) -> None:
    pin("m")
    file = model / name
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"a", b"A", 1))
    seen = open_checkpoint("m")  # of other bytes than those that are checked
    with pytest.raises(DigestMismatch, match=name):
        held(seen, find_lock())
    file.write_bytes(whole)
    found = held(seen, find_lock())
    assert (found.config, found.chat_template) == (open_checkpoint("m").config, open_checkpoint("m").chat_template)


def test_an_edit_of_other_weights_than_the_pinned_ones_is_refused(model: Path, tmp_path: Path) -> None:
    from weightsmith.jobs import edit

    direction = pico.a_direction(model)
    pin("m")
    found = held(open_checkpoint("m"), find_lock())
    assert isinstance(found, guard.Streamed)
    edit(found, direction, remove=1.0, out=tmp_path / "good", options=pico.CPU)
    rows = json.loads((tmp_path / "good/weightsmith.json").read_text())["outputs"]
    copied = {n: d for n, d in rows.items() if n in ("config.json", "tokenizer.json", "chat_template.jinja")}
    found.require_files(copied)
    with pytest.raises(DigestMismatch, match="config"):
        found.require_files(copied | {"config.json": "0" * 64})
    stat = (model / "model.safetensors").stat()
    damage(model / "model.safetensors", "in place")
    os.utime(model / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises((BaseChanged, EditError, DigestMismatch)):
        edit(found, direction, remove=1.0, out=tmp_path / "bad", options=pico.CPU)
    assert not (tmp_path / "bad").exists()
