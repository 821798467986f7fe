"""What lies whole in one member of a tar is that member's; what reaches over its borders makes the file two things."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from corpus.archives import tarred, zipped
from corpus.tar_members import CONFIG, checkpoint, nemo, weights
from weightsmith.trust.gate import scan_path
from weightsmith.trust.items import Item
from weightsmith.trust.kinds import kinds_of

ZIP = zipped({"notes.txt": b"notes\n"})


def kinds(data: bytes) -> tuple[str, ...]:
    return kinds_of(Item("model.nemo", len(data), lambda: io.BytesIO(data)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("before", [0, 1, 511, 512, 70_000])
@pytest.mark.parametrize("behind", [None, 0, 1, 20_000, 70_000])
def test_a_zip_in_one_member_leaves_the_tar_a_tar(form: int, before: int, behind: int | None) -> None:
    members: dict[str, bytes | tuple[bytes, str]] = {"a" * 90: b"x" * before, "b.ckpt": checkpoint()}
    data = tarred(members | ({} if behind is None else {"c.txt": b"y" * behind}), form=form)
    assert kinds(data) == ("tar",)


@pytest.mark.parametrize("record", [512, 10_240, 1 << 16])
def test_the_padding_at_the_end_makes_no_difference(record: int) -> None:
    data = nemo().rstrip(b"\0")
    data = data.ljust(-(-len(data) // 512) * 512 + 1024, b"\0")
    assert kinds(data.ljust(-(-len(data) // record) * record, b"\0")) == ("tar",)


@pytest.mark.parametrize("options", [
    [], ["--format=gnu"], ["--format=ustar"], ["--format=posix"], ["-b", "1"], ["-b", "128"], ["-z"],
])  # fmt: skip
@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_what_the_programs_write_is_clean(program: str, options: list[str], tmp_path: Path) -> None:
    if shutil.which(program) is None or (program == "bsdtar" and "--format=gnu" in options):
        pytest.skip("not here")
    source = tmp_path / "source"
    source.mkdir()
    (source / "model_config.yaml").write_bytes(CONFIG)
    (source / "model_weights.ckpt").write_bytes(checkpoint())
    folder = tmp_path / "model"
    folder.mkdir()
    name = "model.tar.gz" if "-z" in options else "model.nemo"
    subprocess.run([program, *options, "-cf", folder / name, "-C", source, "."], check=True, capture_output=True)
    record = scan_path(folder, "model")
    assert record.verdict == "clean", [(f.rule, f.message) for f in record.findings]


@pytest.mark.parametrize("gap", [b"", bytes(512), bytes(10_240)])
def test_a_zip_behind_the_tar_or_in_its_padding_is_found(gap: bytes) -> None:
    assert set(kinds(nemo() + gap + ZIP)) == {"tar", "zip"}
    data = nemo()
    assert set(kinds(data[: -len(ZIP)] + ZIP)) == {"tar", "zip"}


def test_a_tar_that_programs_read_differently_is_not_excused() -> None:
    extra = tarfile.TarInfo("PaxHeader")
    value = b"13 size=4096\n"
    extra.type, extra.size = b"x", len(value)
    data = extra.tobuf(tarfile.USTAR_FORMAT) + value.ljust(512, b"\0") + tarred({"b.zip": ZIP}, form=tarfile.USTAR_FORMAT)
    assert "zip" in kinds(data)


def test_hdf5_is_the_members_only_as_a_whole() -> None:
    assert kinds(tarred({"model.h5": weights()}, form=tarfile.USTAR_FORMAT)) == ("tar",)
    assert "hdf5" in kinds(tarred({"model.h5": weights(2049)}, form=tarfile.USTAR_FORMAT))
    assert "hdf5" in kinds(tarred({"text": b" " * 512 + weights()}, form=tarfile.USTAR_FORMAT))
