"""``verify``: what vouches for a model, what could be checked, and the exit code that follows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clirun import assert_one_error, cli
from test_gguf_convert import tiny
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import NetworkError
from weightsmith.jobs.pin import pin
from weightsmith.jobs.verify import verify
from weightsmith.options import RunOptions
from weightsmith.pinned import Check, VerificationRecord
from weightsmith.storage import remember_sha256
from weightsmith.trust.pins.sources import Signers

GOLD = Path(__file__).parent / "oms"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that was signed, without its signature; its parent is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIGHTSMITH_LOCK", raising=False)
    shutil.copytree(GOLD / "by-key", tmp_path / "m")
    (tmp_path / "m/model.sig").rename(tmp_path / "kept.sig")
    return tmp_path / "m"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sums(model: Path, target: Path, *names: str) -> None:
    files = [model / n for n in names] or [p for p in model.rglob("*") if p.is_file()]
    target.write_text("".join(f"{sha(f)}  {f.relative_to(model).as_posix()}\n" for f in files))


def of(record: VerificationRecord, kind: str) -> Check:
    return next(c for c in record.checks if c.kind == kind)


def test_nothing_to_check_against_is_no_verdict(model: Path) -> None:
    done = cli("verify", "m")
    assert done.code == 2
    assert "could not tell: nothing here vouches for it" in done.words
    record = verify("m")
    assert [c.kind for c in record.checks] == ["lock", "sums", "oms", "hub", "record"]
    assert {c.outcome for c in record.checks} == {"absent"}
    assert all(c.why for c in record.checks), "what could not be checked is said, and why"


def test_each_kind_agrees_and_the_record_is_of_one_shape(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    pin("m")
    sums(model, tmp_path / "sums")
    done = cli("verify", "m", "--sums", "sums", "--signature", "kept.sig", "--key", GOLD / "prime256v1.pem", "--json")
    assert done.code == 0, "a signature may lie anywhere"
    (tmp_path / "kept.sig").rename(model / "model.sig")
    done = cli("verify", "m", "--sums", "sums", "--key", GOLD / "prime256v1.pem", "--json")
    assert done.code == 0, done.out
    record = VerificationRecord.model_validate(json.loads(done.out))
    assert {c.kind: c.outcome for c in record.checks} == {
        "lock": "agrees", "sums": "agrees", "oms": "agrees", "hub": "absent", "record": "absent"}  # fmt: skip
    assert record.nobody == []
    assert of(record, "sums").independent
    assert of(record, "oms").signer
    assert record.bytes == sum(p.stat().st_size for p in model.rglob("*") if p.is_file())
    words = cli("verify", "m", "--sums", "sums", "--key", GOLD / "prime256v1.pem").words
    for text in ("✓ agrees lock", "✓ agrees checksums", "✓ agrees signature", "signed by key", "agrees: everything"):
        assert text in words


@pytest.mark.parametrize("kind", ["lock", "sums", "oms"])
def test_one_changed_byte_is_a_bad_verdict(model: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "kept.sig").rename(model / "model.sig")
    argv: list[object] = ["verify", "m"]
    if kind == "lock":
        pin("m")
    elif kind == "sums":
        sums(model, model / "SHA256SUMS")
    else:
        argv += ["--key", GOLD / "prime256v1.pem"]
    assert cli(*argv).code == 0
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    done = cli(*argv)
    assert done.code == 1
    assert "model.safetensors is not what was said" in done.words
    assert sha(model / "model.safetensors") in done.words
    assert ("tensor w changed" in done.words) == (kind == "lock"), "a lock knows the tensors"


def test_a_model_that_can_not_be_opened_is_compared_by_its_files(model: Path) -> None:
    pin("m")
    sums(model, model / "SHA256SUMS")
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:20])
    done = cli("verify", "m")
    assert done.code == 1
    assert "it can't be opened as a model" in done.words
    assert "model.safetensors is not what was said" in done.words
    (model / "model.safetensors").unlink()
    record = verify("m")
    assert record.verdict == "differs"
    assert of(record, "lock").tensors == []
    assert [(f.file, f.what) for f in of(record, "lock").files] == [("model.safetensors", "missing")]
    assert cli("verify", "nowhere").code == 2


def test_a_huge_file_of_holes_is_a_stated_limit(model: Path) -> None:
    with (model / "big.bin").open("wb") as file:
        file.truncate(64 << 30)
    for verb in ("verify", "pin"):
        done = cli(verb, "m")
        assert done.code == 2
        assert_one_error(done.err)
        assert "mostly holes" in done.err


def test_a_remembered_digest_is_not_believed(model: Path, tmp_path: Path) -> None:
    sums(model, tmp_path / "sums")
    good = sha(model / "config.json")
    (model / "config.json").write_text("{}")
    remember_sha256(model / "config.json", good)
    assert verify("m", sums="sums").verdict == "differs"


def test_a_lock_names_what_is_missing_and_what_is_more(model: Path) -> None:
    pin("m")
    (model / "sub-note.txt").unlink()
    (model / "modeling.py").write_text("x")
    record = verify("m")
    assert record.verdict == "differs"
    assert [(f.file, f.what) for f in of(record, "lock").files] == [("modeling.py", "unlisted"), ("sub-note.txt", "missing")]


def test_what_vouches_beside_the_model_may_come_later_than_the_pin(model: Path, tmp_path: Path) -> None:
    pin("m")
    sums(model, tmp_path / "sums")
    (tmp_path / "sums").rename(model / "SHA256SUMS")
    (tmp_path / "kept.sig").rename(model / "model.sig")
    record = verify("m")
    assert record.verdict == "agrees"
    assert of(record, "oms").outcome == "could not tell"
    assert not of(record, "sums").independent, "it lies in the folder that it vouches for"


def test_checksums_may_leave_files_out_and_they_are_named(model: Path) -> None:
    sums(model, model / "SHA256SUMS", "model.safetensors")
    done = cli("verify", "m")
    assert done.code == 0
    assert "nobody vouches for config.json, sub-note.txt, sub/folder/note.txt" in done.words
    assert "config.json is not listed" in done.words


def test_checksums_of_another_model_say_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "sums").write_text(f"{'0' * 64}  other.bin\n")
    record = verify("m", sums="sums")
    assert record.verdict == "differs"
    assert [f.what for f in of(record, "sums").files if f.file == "other.bin"] == ["missing"]


def test_what_was_asked_for_and_can_not_be_checked_is_no_verdict(model: Path, tmp_path: Path) -> None:
    pin("m")
    assert cli("verify", "m").code == 0
    assert cli("verify", "m", "--signature", "kept.sig").code == 2, "no key"
    assert cli("verify", "m", "--key", GOLD / "prime256v1.pem").code == 2, "no signature"
    (tmp_path / "sums").write_text("rubbish")
    done = cli("verify", "m", "--sums", "sums")
    assert done.code == 2
    assert "what was asked for could not be checked" in done.words
    (model / "SHA256SUMS").write_text("rubbish")
    done = cli("verify", "m", "--lock", "weightsmith.lock")
    assert "not a line" in done.words


@pytest.mark.parametrize("argv", [
    ("--sums", "nothing"), ("--signature", "nothing"), ("--lock", "nothing"), ("--key", "nothing"), ("--at", "soon"),
    ("--identity", "a@b.c"), ("--issuer", "https://d"), ("--certificate", "nothing"),
])  # fmt: skip
def test_options_that_can_not_be_meant_are_one_error(model: Path, argv: tuple[str, str]) -> None:
    done = cli("verify", "m", *argv)
    assert done.code == 2
    assert_one_error(done.err)


def test_a_lock_of_another_revision_is_a_bad_verdict(model: Path) -> None:
    pin("m")
    text = Path("weightsmith.lock").read_text().replace('"m":', f'"org/name@{"1" * 40}":')
    Path("weightsmith.lock").write_text(text)
    checkpoint = open_checkpoint("m")
    object.__setattr__(checkpoint, "source", {"kind": "hub", "repo": "org/name", "revision": "2" * 40})
    record = verify(checkpoint, options=RunOptions(offline=True))
    assert record.verdict == "differs"
    assert "another revision" in of(record, "lock").why
    assert of(record, "hub").outcome == "could not tell"


# -- the hub ---------------------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, model: Path, **changed: str) -> None:
    """A hub that has this model."""
    rows = []
    for path in (p for p in model.rglob("*") if p.is_file()):
        data, name = path.read_bytes(), path.relative_to(model).as_posix()
        large = SimpleNamespace(sha256=changed.get("large", sha(path))) if name.endswith(".safetensors") else None
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        rows.append(SimpleNamespace(rfilename=name, lfs=large, blob_id=changed.get("small", git)))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_a, **_k: SimpleNamespace(sha="d" * 40, siblings=rows))


def test_the_hubs_own_digests_are_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, model)
    done = cli("verify", "m", "--hub", "org/name@main")
    assert done.code == 0, done.words
    assert "✓ agrees hub org/name@dddd" in done.words
    hub(monkeypatch, model, large="0" * 64)
    assert "model.safetensors is not what was said" in cli("verify", "m", "--hub", "org/name").words
    hub(monkeypatch, model, small="0" * 40)
    done = cli("verify", "m", "--hub", "org/name")
    assert done.code == 1
    assert "git:0000" in done.words
    hub(monkeypatch, model, small="-")
    assert "gives no digest" in cli("verify", "m", "--hub", "org/name").words


def test_a_hub_that_is_not_asked_says_so(model: Path) -> None:
    done = cli("verify", "m", "--hub", "org/name@main", "--offline")
    assert done.code == 2
    assert "the hub was not asked (--offline)" in done.words
    checkpoint = open_checkpoint("m")
    object.__setattr__(checkpoint, "source", {"kind": "hub", "repo": "org/name", "revision": "2" * 40})
    why = of(verify(checkpoint, options=RunOptions(offline=True)), "hub").why
    assert "the cache of the download is no independent witness" in why


def test_a_hub_that_can_not_be_reached_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_a: Any, **_k: Any) -> Any:
        raise NetworkError("the hub can't be reached")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    assert cli("verify", "m", "--hub", "org/name").code == 2
    monkeypatch.undo()
    monkeypatch.chdir(model.parent)
    done = cli("verify", "m", "--hub", "org/name")  # these tests have no network
    assert done.code == 2
    assert "hub" in done.words


# -- others ----------------------------------------------------------------------------------------------------------


def test_an_edits_own_record_shows_damage_and_is_no_witness(model: Path) -> None:
    rows = {"model.safetensors": sha(model / "model.safetensors")}
    (model / "weightsmith.json").write_text(json.dumps({"outputs": rows}))
    record = verify("m")
    assert of(record, "record").outcome == "agrees"
    assert not of(record, "record").independent
    (model / "weightsmith.json").write_text(json.dumps({"outputs": {"model.safetensors": "0" * 64}}))
    assert verify("m").verdict == "differs"
    (model / "weightsmith.json").write_text("[]")
    assert of(verify("m"), "record").outcome == "could not tell"


def test_a_gguf_file_is_one_of_several_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(tmp_path / "x.gguf", "llama", "output")
    (tmp_path / "SHA256SUMS").write_text(f"{sha(tmp_path / 'x.gguf')}  x.gguf\n{'0' * 64}  y.gguf\n")
    record = verify("x.gguf")
    assert (record.verdict, of(record, "sums").same, record.nobody) == ("agrees", 1, [])
    pin("x.gguf")
    data = bytearray((tmp_path / "x.gguf").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x.gguf").write_bytes(data)
    record = verify("x.gguf")
    assert [of(record, k).outcome for k in ("lock", "sums")] == ["differs", "differs"]


def test_nothing_of_a_model_reaches_the_terminal_as_it_is(model: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;x\x07[red]\u202e.txt"
    (model / evil).write_text("x")
    pin("m")
    sums(model, tmp_path / "sums")
    (model / evil).write_text("y")
    for argv in (("verify", "m", "--sums", "sums"), ("pin", "m", "--from", "sums:sums"), ("pin", "m", "--update")):
        done = cli(*argv)
        assert done.code in (1, 2)
        for text in (done.out, done.err):
            assert "\x1b" not in text
            assert "\x07" not in text
            assert "\u202e" not in text
        assert "[red]" in done.out + done.err, "it is shown, not obeyed"
    (model / evil).unlink()
    os.rename(model, tmp_path / "\x1b[31mm")
    assert "\x1b" not in cli("verify", tmp_path / "\x1b[31mm").out


def test_an_unreadable_file_is_an_error_and_not_passed_over(model: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (model / "sub-note.txt").chmod(0)
    done = cli("verify", "m")
    assert done.code == 2
    assert_one_error(done.err)


@pytest.mark.parametrize("field", ["digest", "tensor"])
def test_a_lock_that_was_edited_by_hand_does_not_agree(model: Path, field: str) -> None:
    pin("m")
    lock = Path("weightsmith.lock")
    data = json.loads(lock.read_text())
    entry = data["models"]["m"]
    if field == "digest":
        entry["digest"] = "0" * 64
    else:
        next(iter(entry["tensors"].values()))["blake3"] = "0" * 64
    lock.write_text(json.dumps(data))
    done = cli("verify", "m")
    assert done.code == 1
    assert of(verify("m"), "lock").outcome == "differs"
    assert ("does not follow from its tensors" if field == "digest" else "changed") in done.words


def test_what_agrees_and_what_does_not_is_named_alike(model: Path) -> None:
    (model.parent / "kept.sig").rename(model / "model.sig")
    for key, outcome in (("prime256v1", "agrees"), ("secp384r1", "differs")):
        found = of(verify("m", signers=Signers(key=GOLD / f"{key}.pem")), "oms")
        assert (found.outcome, found.name) == (outcome, "m/model.sig")


def test_a_folder_in_place_of_a_file_is_named_as_that(model: Path) -> None:
    done = cli("verify", "m", "--lock", "m")
    assert done.code == 2
    assert "not a plain file" in done.err
