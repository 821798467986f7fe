"""Signatures of models: those of the reference command hold, and whatever was changed about one is refused."""

from __future__ import annotations

import base64
import builtins
import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clirun import cli
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import BadSignature, FormatError, MissingExtra, UsageError, WeightsmithError
from weightsmith.jobs.verify import verify
from weightsmith.pinned import Check
from weightsmith.trust.pins.oms import BUNDLE, PAYLOAD, PREDICATE, STATEMENT, read_bundle, source_of
from weightsmith.trust.pins.oms_sigstore import check_identity
from weightsmith.trust.pins.sources import Signers, signed_source

pytest.importorskip("cryptography")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: made by the reference command (see make.sh there)
GOLD = Path(__file__).parent / "oms"
NOW = datetime.now(UTC)


def golden(tmp_path: Path, name: str = "by-key") -> Path:
    """A signed folder of one's own to damage."""
    shutil.copytree(GOLD / name, tmp_path / name)
    return tmp_path / name


def asked(model: Path, signature: Path | None = None, **who: Any) -> Check:
    """What ``verify`` says of the signature."""
    record = verify(str(model), signature=signature, signers=Signers(**who))
    return next(c for c in record.checks if c.kind == "oms")


KEY = {"key": GOLD / "prime256v1.pem"}
ROOT = {"certificates": (GOLD / "root.pem",)}


# -- the reference command's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prime256v1", "secp384r1", "secp521r1"])
def test_a_key_of_each_curve_holds(tmp_path: Path, name: str) -> None:
    model = golden(tmp_path)
    (model / "model.sig").unlink()
    check = asked(model, GOLD / f"{name}.sig", key=GOLD / f"{name}.pem")
    assert (check.outcome, check.same, check.files) == ("agrees", 4, [])
    assert check.signer.startswith("key ")


@pytest.mark.parametrize("name", ["shards", "blake2", "blake3"])
def test_other_serialisations_hold_and_notice_a_changed_byte(tmp_path: Path, name: str) -> None:
    model = golden(tmp_path)
    (model / "model.sig").unlink()
    assert asked(model, GOLD / f"{name}.sig", **KEY).outcome == "agrees"
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    check = asked(model, GOLD / f"{name}.sig", **KEY)
    assert check.outcome == "differs"
    assert [f.file for f in check.files] == ["model.safetensors"]
    if name == "shards":
        assert "at byte 80" in check.files[0].said, "which piece of the file it is is said"


def test_a_signature_in_the_folder_is_found_and_is_not_a_file_of_the_model() -> None:
    assert asked(GOLD / "by-key", **KEY).outcome == "agrees"
    check = asked(GOLD / "by-certificate", **ROOT)
    assert check.outcome == "agrees"
    assert check.signer == "CN=Model Signer,O=Test Lab"


def test_nobody_named_is_not_a_verdict() -> None:
    check = asked(GOLD / "by-key")
    assert check.outcome == "could not tell"
    assert "--key" in check.why
    assert "--certificate" in asked(GOLD / "by-certificate").why


def test_who_signed_in_another_way_is_said() -> None:
    assert "with a certificate" in asked(GOLD / "by-certificate", **KEY).why
    assert "with a key" in asked(GOLD / "by-key", **ROOT).why
    assert "with a key" in asked(GOLD / "by-key", identity="a@b.c", issuer="https://d").why


def test_a_signature_of_another_folder_is_refused(tmp_path: Path) -> None:
    model = golden(tmp_path)
    shutil.copy(GOLD / "by-certificate/model.sig", model / "model.sig")
    check = asked(model, **ROOT)
    assert check.outcome == "differs"
    assert {f.file for f in check.files} == {"config.json", "model.safetensors"}


CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "tampered": (lambda m: (m / "config.json").write_text("{}"), "config.json", "differs"),
    "extra": (lambda m: (m / "adapter_config.json").write_text("{}"), "adapter_config.json", "unlisted"),
    "extra and hidden": (lambda m: (m / "sub/.hidden").write_text("x"), "sub/.hidden", "unlisted"),
    "extra and empty": (lambda m: (m / "empty").touch(), "empty", "unlisted"),
    "removed": (lambda m: (m / "sub/folder/note.txt").unlink(), "sub/folder/note.txt", "missing"),
    "renamed": (lambda m: (m / "sub-note.txt").rename(m / "sub-note.TXT"), "sub-note.txt", "missing"),
    "git's, but not at the top": (lambda m: (m / "sub/.gitignore").write_text("x"), "sub/.gitignore", "unlisted"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_folder_is_refused(tmp_path: Path, what: str) -> None:
    model = golden(tmp_path)
    change, file, verdict = CHANGES[what]
    change(model)
    check = asked(model, **KEY)
    assert check.outcome == "differs"
    assert (file, verdict) in [(f.file, f.what) for f in check.files]


def test_what_git_keeps_at_the_top_is_nobodys_business(tmp_path: Path) -> None:
    model = golden(tmp_path)
    for name in (".gitignore", ".gitattributes"):
        (model / name).write_text("x")
    (model / ".git").mkdir()
    (model / ".git/config").write_text("x")
    assert asked(model, **KEY).outcome == "agrees"


def test_what_a_download_leaves_beside_the_model_is_not_looked_at(mine: tuple[Path, Any, dict[str, Any]]) -> None:
    model, key, who = mine
    note = model / ".cache/huggingface/note"
    note.parent.mkdir(parents=True)
    note.write_text("x")
    assert asked(model, signature=GOLD / "by-key/model.sig", **KEY).outcome == "differs", "two signatures: one is a file more"
    (model / "model.sig").unlink()
    assert asked(model, GOLD / "by-key/model.sig", **KEY).outcome == "agrees"
    sign(model, statement(model), key)
    assert any(".cache" in r["name"] for r in statement(model)["predicate"]["resources"])
    assert asked(model, **who).outcome == "agrees"
    shutil.rmtree(model / ".cache")
    assert asked(model, **who).outcome == "agrees"


# -- who signed ------------------------------------------------------------------------------------------------------


def test_another_key_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(public(ec.generate_private_key(ec.SECP256R1())))
    check = asked(GOLD / "by-key", key=other)
    assert check.outcome == "differs"
    assert "another key" in check.why


def test_another_key_without_a_hint_does_not_verify(tmp_path: Path) -> None:
    model, value = golden(tmp_path), json.loads((GOLD / "by-key/model.sig").read_text())
    value["verificationMaterial"]["publicKey"] = {}
    (model / "model.sig").write_text(json.dumps(value))
    assert asked(model, **KEY).outcome == "agrees", "an older signature without one is as good"
    other = tmp_path / "other.pem"
    other.write_bytes(public(ec.generate_private_key(ec.SECP256R1())))
    check = asked(model, key=other)
    assert check.outcome == "differs"
    assert "does not verify" in check.why


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1())):
        file.write_bytes(public(key))
        assert "P-256" in asked(GOLD / "by-key", key=file).why
    file.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    assert "PEM" in asked(GOLD / "by-key", key=file).why


def public(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return found


class Authority:
    """A certificate and its key, which can make further ones."""

    def __init__(
        self, name: str, by: Authority | None = None, *, ca: bool = True, begin: float = -1, end: float = 1,
        signing: bool = True, curve: Any = None, path_length: int | None = None, certify: bool | None = None,
    ) -> None:  # fmt: skip
        self.key: Any = ec.generate_private_key(curve or ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.by = by
        builder = x509.CertificateBuilder().subject_name(self.name).issuer_name(by.name if by else self.name)
        builder = builder.public_key(self.key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW + timedelta(days=begin)).not_valid_after(NOW + timedelta(days=end))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
        use = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
                             "encipher_only", "decipher_only"), False)  # fmt: skip
        use["key_cert_sign"] = ca if certify is None else certify
        builder = builder.add_extension(x509.KeyUsage(digital_signature=signing and not ca, **use), critical=True)
        if not signing:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        self.certificate = builder.sign(by.key if by else self.key, hashes.SHA256())

    def pem(self, path: Path) -> Path:
        """Write it."""
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def chain(self) -> list[Authority]:
        """Itself and who made it, up to the root."""
        return [self, *(self.by.chain() if self.by else [])]


def statement(model: Path, change: Callable[[dict[str, Any]], object] | None = None) -> dict[str, Any]:
    """What the reference command would sign of a folder, with one thing changed."""
    names = sorted((p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file() and p.name != "model.sig"),
                   key=lambda n: PurePosixPath(n).parts)  # fmt: skip
    rows = [{"name": n, "algorithm": "sha256", "digest": hashlib.sha256((model / n).read_bytes()).hexdigest()} for n in names]
    value: dict[str, Any] = {
        "_type": STATEMENT, "predicateType": PREDICATE, "subject": [{"name": model.name, "digest": {}}],
        "predicate": {"serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False}, "resources": rows},
    }  # fmt: skip
    if change:
        change(value)
    raw = b"".join(bytes.fromhex(r["digest"]) for r in value["predicate"]["resources"])
    value["subject"][0]["digest"].setdefault("sha256", hashlib.sha256(raw).hexdigest())
    return value


def sign(model: Path, value: dict[str, Any], by: Any, change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Write ``model.sig`` over ``value``, by a key or an :class:`Authority`."""
    payload = json.dumps(value).encode()
    key = by.key if isinstance(by, Authority) else by
    signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
    material: dict[str, Any] = {"publicKey": {}, "tlogEntries": []}
    if isinstance(by, Authority):
        der = [a.certificate.public_bytes(serialization.Encoding.DER) for a in by.chain()[: max(1, len(by.chain()) - 1)]]
        material = {"x509CertificateChain": {"certificates": [{"rawBytes": base64.b64encode(d).decode()} for d in der]}}
    bundle = {
        "mediaType": BUNDLE, "verificationMaterial": material,
        "dsseEnvelope": {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD, "signatures": [
            {"sig": base64.b64encode(key.sign(signed, ec.ECDSA(hashes.SHA256()))).decode(), "keyid": ""}]},
    }  # fmt: skip
    if change:
        change(bundle)
    (model / "model.sig").write_text(json.dumps(bundle))


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Path, Any, dict[str, Any]]:
    """A folder to sign, a key, and what checks against it."""
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "mine.pem").write_bytes(public(key))
    return golden(tmp_path), key, {"key": tmp_path / "mine.pem"}


def test_our_own_signer_signs_as_the_reference_does(mine: tuple[Path, Any, dict[str, Any]]) -> None:
    model, key, who = mine
    sign(model, statement(model), key)
    assert asked(model, **who).outcome == "agrees"
    theirs = json.loads(read_bundle(GOLD / "by-key/model.sig").payload)
    assert statement(GOLD / "by-key")["predicate"]["resources"] == theirs["predicate"]["resources"]
    assert statement(GOLD / "by-key")["subject"] == theirs["subject"]


def test_a_chain_to_a_trusted_root_holds_and_no_other(tmp_path: Path) -> None:
    model = golden(tmp_path)
    root = Authority("root")
    leaf = Authority("leaf", Authority("between", root), ca=False)
    sign(model, statement(model), leaf)
    trusted = root.pem(tmp_path / "root.pem")
    assert asked(model, certificates=(trusted,)).outcome == "agrees"
    other = Authority("root").pem(tmp_path / "other.pem")  # of the same name
    check = asked(model, certificates=(other,))
    assert check.outcome == "differs"
    assert "no chain" in check.why
    assert asked(model, certificates=(other, trusted)).outcome == "agrees"


BAD_CHAINS: dict[str, Callable[[Authority], Authority]] = {
    "ended": lambda root: Authority("leaf", root, ca=False, begin=-3, end=-2),
    "begins": lambda root: Authority("leaf", root, ca=False, begin=2, end=3),
    "a certificate of the chain ended": lambda root: Authority("leaf", Authority("b", root, begin=-3, end=-2), ca=False),
    "not meant for signing": lambda root: Authority("leaf", root, ca=False, signing=False),
    "no chain": lambda root: Authority("leaf", Authority("no authority", root, ca=False, certify=True), ca=False),
    "no chain from its": lambda root: Authority("leaf", Authority("may not certify", root, certify=False), ca=False),
    "no chain from": lambda root: Authority("leaf", Authority("b", Authority("a", root, path_length=0)), ca=False),
    "no key on P-256": lambda root: Authority("leaf", root, ca=False, curve=ec.SECP256K1()),
}


@pytest.mark.parametrize("why", BAD_CHAINS)
def test_a_bad_chain_is_refused(tmp_path: Path, why: str) -> None:
    model, root = golden(tmp_path), Authority("root", begin=-10, end=10)
    sign(model, statement(model), BAD_CHAINS[why](root))
    check = asked(model, certificates=(root.pem(tmp_path / "root.pem"),))
    assert check.outcome == "differs"
    assert why in check.why or (why == "no key on P-256" and "no chain" in check.why), check.why


def test_the_day_of_an_expired_certificate_can_be_vouched_for(tmp_path: Path) -> None:
    model, root = golden(tmp_path), Authority("root", begin=-10, end=10)
    sign(model, statement(model), Authority("leaf", root, ca=False, begin=-3, end=-2))
    trusted = (root.pem(tmp_path / "root.pem"),)
    assert asked(model, certificates=trusted, at=NOW - timedelta(days=2.5)).outcome == "agrees"
    assert asked(model, certificates=trusted, at=NOW - timedelta(days=4)).outcome == "differs"
    day = (NOW - timedelta(days=2)).date()
    done = cli("verify", model, "--certificate", trusted[0], "--at", str(day))
    assert done.code == 0, done.words


def test_a_root_that_was_cut_out_of_the_chain_itself_is_not_trusted(tmp_path: Path) -> None:
    model, root = golden(tmp_path), Authority("root")
    sign(model, statement(model), root)  # signs itself
    assert asked(model, certificates=(Authority("x").pem(tmp_path / "x.pem"),)).outcome == "differs"


# -- the statement ---------------------------------------------------------------------------------------------------


def _swap(value: dict[str, Any]) -> None:
    value["predicate"]["resources"].reverse()


def _twice(value: dict[str, Any]) -> None:
    value["predicate"]["resources"].insert(0, dict(value["predicate"]["resources"][0]))


def _name(name: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        value["predicate"]["resources"][0]["name"] = name

    return change


STATEMENTS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "wrong digest of the subject": (lambda v: v["subject"][0]["digest"].update(sha256="0" * 64), "differs", "subject"),
    "another order": (_swap, "differs", "not in order"),
    "a file twice": (_twice, "differs", "twice"),
    "a path upwards": (_name("../config.json"), "differs", "inside the folder"),
    "a path from the root": (_name("/etc/passwd"), "differs", "inside the folder"),
    "a path with a dot": (_name("./config.json"), "differs", "inside the folder"),
    "another statement": (lambda v: v.update(_type="https://in-toto.io/Statement/v0.1"), "could not tell", "another kind"),
    "another predicate": (lambda v: v.update(predicateType="https://slsa.dev/provenance/v1"), "could not tell", "another kind"),
    "two subjects": (lambda v: v["subject"].append(v["subject"][0]), "could not tell", "one subject"),
    "no files": (lambda v: v["predicate"].update(resources=[]), "could not tell", "resources"),
    "another digest": (lambda v: v["predicate"]["resources"][0].update(algorithm="md5"), "could not tell", "can't be read"),
    "a short digest": (lambda v: v["predicate"]["resources"][0].update(digest="ab"), "could not tell", "can't be read"),
    "another method": (lambda v: v["predicate"]["serialization"].update(method="tree"), "could not tell", "method"),
    "links as text": (lambda v: v["predicate"]["serialization"].update(allow_symlinks="true"), "could not tell", "allow_sym"),
}  # fmt: skip


@pytest.mark.parametrize("what", STATEMENTS)
def test_a_statement_that_makes_no_sense_is_refused_though_signed(mine: tuple[Path, Any, dict[str, Any]], what: str) -> None:
    model, key, who = mine
    change, outcome, why = STATEMENTS[what]
    sign(model, statement(model, change), key)
    check = asked(model, **who)
    assert (check.outcome, why in check.why) == (outcome, True), check


def _part(value: dict[str, Any], at: int, name: str) -> None:
    rows = value["predicate"]["resources"]
    value["predicate"]["serialization"]["method"] = "shards"
    for row, file in zip(rows, ("config.json", "model.safetensors", "sub/folder/note.txt", "sub-note.txt"), strict=True):
        size = (GOLD / "by-key" / file).stat().st_size
        row["name"], row["algorithm"] = f"{file}:0:{size}", "sha256-sharded-1000"
    rows[at]["name"] = name


def test_pieces_that_do_not_make_up_a_file_are_refused(mine: tuple[Path, Any, dict[str, Any]]) -> None:
    model, key, who = mine
    for name, why in (("config.json:1:25", "hole"), ("config.json:0:24", "differs"), ("config.json:0:99", "only 25 bytes"),
                      ("config.json", "START"), ("config.json:9:9", "START")):  # fmt: skip
        sign(model, statement(model, lambda v, name=name: _part(v, 0, name)), key)  # type: ignore[misc]
        check = asked(model, **who)
        assert check.outcome in ("differs", "could not tell"), name
        assert why in f"{check.why} {check.files}", name


def test_files_that_the_signer_left_out_are_nobodys(mine: tuple[Path, Any, dict[str, Any]]) -> None:
    model, key, who = mine
    (model / "hook.py").write_text("x")

    def leave(value: dict[str, Any]) -> None:
        value["predicate"]["serialization"]["ignore_paths"] = ["hook.py", ".git", "model.sig"]
        value["predicate"]["resources"] = [r for r in value["predicate"]["resources"] if r["name"] != "hook.py"]

    sign(model, statement(model, leave), key)
    check = asked(model, **who)
    assert check.outcome == "differs"
    assert "'hook.py'" in check.why
    assert asked(model, **who, ignored=("hook.py",)).outcome == "agrees"
    (model / "hook.py").unlink()
    assert asked(model, **who).outcome == "agrees", "what is not there need not be vouched for"


# -- links -----------------------------------------------------------------------------------------------------------


def _links(value: dict[str, Any]) -> None:
    value["predicate"]["serialization"]["allow_symlinks"] = True


def test_links_are_refused_unless_the_signer_allowed_them(mine: tuple[Path, Any, dict[str, Any]]) -> None:
    model, key, who = mine
    (model / "again.json").symlink_to("config.json")
    sign(model, statement(model), key)
    check = asked(model, **who)
    assert check.outcome == "differs"
    assert "is a link" in check.why
    sign(model, statement(model, _links), key)
    assert asked(model, **who).outcome == "agrees"


def test_a_link_that_leaves_the_model_is_refused_even_so(tmp_path: Path, mine: tuple[Path, Any, dict[str, Any]]) -> None:
    model, key, who = mine
    (tmp_path / "outside.txt").write_text("x")
    (model / "out.txt").symlink_to("../outside.txt")
    sign(model, statement(model, _links), key)
    with pytest.raises(WeightsmithError, match="leaves the"):
        asked(model, **who)  # the folder as such is refused
    with pytest.raises(BadSignature, match="leaves the model"):
        signed_source(model / "model.sig", open_checkpoint(str(model)), Signers(**who))


def test_the_hub_clients_own_layout_is_no_link(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    (tmp_path / "models--a--b/blobs").mkdir(parents=True)
    for path in (p for p in (GOLD / "by-key").rglob("*") if p.is_file()):
        blob = tmp_path / "models--a--b/blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(GOLD / "by-key")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    assert asked(snapshot, **KEY).outcome == "agrees"


# -- the envelope ----------------------------------------------------------------------------------------------------


def _type(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["payloadType"] = "text/plain"


ENVELOPES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (lambda b: b.update(mediaType=BUNDLE.replace("0.3", "0.4")), "not a signature that is known"),
    "another payload": (_type, "payload is"),
    "two signatures": (lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]), "exactly one"),
    "no signature": (lambda b: b["dsseEnvelope"].update(signatures=[]), "exactly one"),
    "two materials": (lambda b: b["verificationMaterial"].update(certificate={}), "one of"),
    "no material": (lambda b: b["verificationMaterial"].pop("publicKey"), "one of"),
    "not base64": (lambda b: b["dsseEnvelope"].update(payload="§"), "base64"),
    "a message beside it": (lambda b: b.update(messageSignature={}), "dsseEnvelope"),
}


@pytest.mark.parametrize("what", ENVELOPES)
def test_a_bundle_of_another_shape_is_not_read(mine: tuple[Path, Any, dict[str, Any]], what: str) -> None:
    model, key, who = mine
    change, why = ENVELOPES[what]
    sign(model, statement(model), key, change)
    check = asked(model, **who)
    assert check.outcome == "could not tell"
    assert why in check.why


def test_what_was_signed_can_not_be_exchanged(mine: tuple[Path, Any, dict[str, Any]]) -> None:
    model, key, who = mine
    (model / "config.json").write_text('{"model_type": "evil"}')
    forged = base64.b64encode(json.dumps(statement(model)).encode()).decode()
    (model / "config.json").write_bytes((GOLD / "by-key/config.json").read_bytes())
    sign(model, statement(model), key, lambda b: b["dsseEnvelope"].update(payload=forged))
    assert "does not verify" in asked(model, **who).why


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000, b"x" * 64])
def test_rubbish_is_one_clear_error(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "model.sig"
    file.write_bytes(raw)
    with pytest.raises(FormatError):
        read_bundle(file)


def test_a_signature_cut_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    raw, model = (GOLD / "by-certificate/model.sig").read_bytes(), golden(tmp_path, "by-certificate")
    for cut in range(0, len(raw), 97):
        (model / "model.sig").write_bytes(raw[:cut])
        assert asked(model, **ROOT).outcome == "could not tell"


def test_a_signature_with_any_byte_changed_never_agrees_with_a_changed_folder(tmp_path: Path) -> None:
    raw, model = bytearray((GOLD / "by-key/model.sig").read_bytes()), golden(tmp_path)
    (model / "config.json").write_text("{}")
    for at in range(0, len(raw), 41):
        changed = bytearray(raw)
        changed[at] ^= 1
        (model / "model.sig").write_bytes(changed)
        assert asked(model, **KEY).outcome in ("differs", "could not tell")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_signed_statement_is_a_bug_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever a signer puts into the fields, the outcome is a verdict or one of our errors."""
    model = GOLD / "by-key"
    value = statement(model)
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just([]) | st.just({})
    spots = [value, value["subject"][0], value["subject"][0]["digest"], value["predicate"], value["predicate"]["serialization"],
             *value["predicate"]["resources"]]  # fmt: skip
    for spot in data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=3)):
        key = data.draw(st.sampled_from([*spot, "ignore_paths", "shard_size"]))
        spot[key] = data.draw(scalars | st.lists(scalars, max_size=2))
    payload = base64.b64encode(json.dumps(value).encode()).decode()
    bundle = {"mediaType": BUNDLE, "verificationMaterial": {"publicKey": data.draw(scalars)},
              "dsseEnvelope": {"payload": payload, "payloadType": PAYLOAD, "signatures": [{"sig": "AAAA"}]}}  # fmt: skip
    file = tmp_path_factory.mktemp("fuzz") / "model.sig"
    file.write_text(json.dumps(bundle))
    with contextlib.suppress(WeightsmithError):
        source_of(read_bundle(file), model)
    assert asked(model, file, **KEY).outcome != "agrees"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_envelope_is_a_bug_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    value = json.loads((GOLD / data.draw(st.sampled_from(["by-key", "by-certificate"])) / "model.sig").read_text())
    values = st.none() | st.integers() | st.text(max_size=6) | st.just([{}]) | st.just({}) | st.binary(max_size=60).map(
        lambda raw: base64.b64encode(raw).decode())  # fmt: skip
    spots = [value, value["verificationMaterial"], *value["verificationMaterial"].values(), value["dsseEnvelope"],
             value["dsseEnvelope"]["signatures"][0]]  # fmt: skip
    chain = value["verificationMaterial"].get("x509CertificateChain", {}).get("certificates", [])
    spot = data.draw(st.sampled_from([s for s in (*spots, *chain) if isinstance(s, dict) and s]))
    spot[data.draw(st.sampled_from([*spot]))] = data.draw(values)
    file = tmp_path_factory.mktemp("fuzz") / "model.sig"
    file.write_text(json.dumps(value))
    for model, who in ((GOLD / "by-key", KEY), (GOLD / "by-certificate", ROOT)):
        with contextlib.suppress(WeightsmithError):
            signed_source(file, open_checkpoint(str(model)), Signers(**who))


# -- without a key ---------------------------------------------------------------------------------------------------


def _keyless(tmp_path: Path) -> Path:
    model = golden(tmp_path)
    value = json.loads((model / "model.sig").read_text())
    value["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": []}
    (model / "model.sig").write_text(json.dumps(value))
    return model


def test_a_keyless_signature_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _keyless(tmp_path)
    assert "--identity" in asked(model).why
    with pytest.raises(UsageError, match="issuer"):
        signed_source(model / "model.sig", open_checkpoint(str(model)), Signers(identity="a@b.c"))
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.split(".")[0] == "sigstore":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra) as error:
        check_identity(read_bundle(model / "model.sig"), "a@b.c", "https://d")
    assert error.value.hint == "pip install 'weightsmith[sigstore]'"


def test_a_broken_keyless_signature_is_refused_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("sigstore")
    model = _keyless(tmp_path)
    check = asked(model, identity="a@b.c", issuer="https://d")
    assert check.outcome == "could not tell"
    assert "not a keyless signature" in check.why
    root = tmp_path / "root.json"
    root.write_text("{}")
    assert "not a trust root" in asked(model, identity="a@b.c", issuer="https://d", root=root).why


def test_a_keyless_payload_is_the_one_that_was_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sigstore")
    from sigstore import models
    from sigstore import verify as library

    model = _keyless(tmp_path)
    payload = read_bundle(model / "model.sig").payload
    told: list[Any] = []

    def pretend(kind: str, signed: bytes) -> None:
        monkeypatch.setattr(models.Bundle, "from_json", lambda raw: SimpleNamespace())
        monkeypatch.setattr(library, "Verifier", lambda trusted_root: SimpleNamespace(
            verify_dsse=lambda bundle, policy: (told.append(vars(policy)), (kind, signed))[1]))  # fmt: skip

    pretend(PAYLOAD, payload)
    check = asked(model, identity="a@b.c", issuer="https://d")
    assert (check.outcome, check.signer) == ("agrees", "a@b.c (as https://d says)")
    assert told[-1]["_identity"] == "a@b.c"
    for kind, signed in ((PAYLOAD, payload + b" "), ("text/plain", payload)):
        pretend(kind, signed)
        assert asked(model, identity="a@b.c", issuer="https://d").outcome == "differs"
