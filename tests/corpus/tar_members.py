"""Tar archives whose members are zip or HDF5 files, as NeMo and SageMaker pack checkpoints, and tars that really are two things."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
from pathlib import Path

from . import Case
from .archives import EVIL, HONEST, file, tarred, zipped

CONFIG = b"sample_rate: 16000\ntarget: nemo.collections.asr.models.EncDecCTCModelBPE\n"


def checkpoint(size: int = 64) -> bytes:
    """A state dict as torch saves it."""
    import torch

    out = io.BytesIO()
    torch.save({"encoder.weight": torch.arange(size, dtype=torch.float32)}, out)
    return out.getvalue()


def weights(size: int = 2048) -> bytes:
    """The first block of an HDF5 file, and room for what it says that follows."""
    block = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0, 4, 0, 16, 0]) + bytes(4)
    return (block + struct.pack("<4Q", 0, (1 << 64) - 1, size, (1 << 64) - 1)).ljust(2048, b"\0")


def nemo(size: int = 64, form: int = tarfile.PAX_FORMAT) -> bytes:
    """As NeMo writes it: the checkpoint comes last."""
    return tarred({"./model_config.yaml": CONFIG, "./model_weights.ckpt": checkpoint(size)}, form=form)


def over_borders() -> bytes:
    """A zip that begins in one member and ends in the next: no member is one, the whole file is."""
    packed = bytearray(zipped({"a.txt": b"weights\n" * 100, "optimizer.pkl": EVIL}))
    cut = packed.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<2L", packed, cut + 12)
    out = bytearray(tarred({"one.bin": bytes(packed[: offset + size]).ljust(2048, b" "), "two.bin": b"PADDING"},
                           form=tarfile.USTAR_FORMAT))  # fmt: skip
    second = out.index(b"PADDING")
    end = packed[cut:]
    struct.pack_into("<2L", end, 12, size, 512 + offset)  # counted from the tar's beginning
    header = tarfile.TarInfo("two.bin")
    header.size = len(end)
    return bytes(out[: second - 512] + header.tobuf(tarfile.USTAR_FORMAT) + end.ljust(512, b"\0") + bytes(1024))


def in_padding() -> bytes:
    """A zip in one member whose end record lies in the padding behind it."""
    packed = zipped({"optimizer.pkl": EVIL})
    cut = packed.rindex(b"PK\x05\x06")
    header = tarfile.TarInfo("notes.bin")
    header.size = cut
    return header.tobuf(tarfile.USTAR_FORMAT) + packed.ljust(-(-len(packed) // 512) * 512, b"\0") + bytes(1024)


def back_into_another() -> bytes:
    """The last member is an empty-looking zip whose offsets lead back into the member before it."""
    first = zipped({"optimizer.pkl": EVIL})
    cut = first.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<2L", first, cut + 12)
    out = bytearray(tarred({"one.bin": first[:cut], "two.zip": first[cut:]}, form=tarfile.USTAR_FORMAT))
    spot = out.rindex(b"PK\x05\x06")
    struct.pack_into("<2L", out, spot + 12, size, 512 + offset)
    return bytes(out)


def two_directories() -> bytes:
    """An honest zip as the last member; counted from the tar's beginning its directory is another one, in the first member."""
    last = zipped({"notes.txt": b"notes\n", "filler.txt": b"x" * 2000})
    _, offset = struct.unpack_from("<2L", last, last.rindex(b"PK\x05\x06") + 12)
    hidden = zipped({"optimizer.pkl": EVIL})
    directory = hidden[hidden.index(b"PK\x01\x02") :]
    first = bytearray(4096)
    first[offset - 512 : offset - 512 + len(directory)] = directory
    return tarred({"one.bin": bytes(first), "two.zip": last}, form=tarfile.USTAR_FORMAT)



def _polyglot() -> bytes:
    return nemo(form=tarfile.USTAR_FORMAT) + zipped({"optimizer.pkl": EVIL})


def _many(folder: Path) -> None:
    """Several checkpoints within reach of the end."""
    state = checkpoint()
    (folder / "model.tar").write_bytes(tarred({f"step-{n}.ckpt": state for n in range(4)} | {"z.yaml": CONFIG}))


HOSTILE = [
    Case("tar-and-zip-behind-it", file("model.nemo", _polyglot), "malicious", ("two-formats",)),
    Case("tar-zip-over-borders", file("model.tar", over_borders), "broken", ("two-formats",)),
    Case("tar-zip-ends-in-padding", file("model.tar", in_padding), "malicious", ("two-formats",)),
    Case("tar-zip-leads-back", file("model.tar", back_into_another), "broken", ("two-formats",)),
    Case("tar-zip-of-two-directories", file("model.tar", two_directories), "broken", ("two-formats",)),
    Case("tar-with-hostile-zip-last", file("model.nemo", lambda: tarred({"a.yaml": CONFIG, "b.zip": zipped({"o.pkl": EVIL})})),
         "malicious", ("pickle-code",)),
    Case("tar-hdf5-beyond-its-member", file("model.tar", lambda: tarred({"model.h5": weights(9000)}, form=tarfile.USTAR_FORMAT)),
         "suspicious", ("two-formats",)),
]  # fmt: skip
CLEAN = [
    Case("clean-nemo-checkpoint-last", file("asr.nemo", nemo)),
    Case("clean-nemo-gnu", file("asr.nemo", lambda: nemo(form=tarfile.GNU_FORMAT))),
    Case("clean-nemo-old", file("asr.nemo", lambda: nemo(form=tarfile.USTAR_FORMAT))),
    Case("clean-nemo-gzip", file("asr.nemo", lambda: gzip.compress(nemo(), mtime=0))),
    Case("clean-nemo-larger", file("asr.nemo", lambda: nemo(100_000))),
    Case("clean-sagemaker", file("model.tar.gz", lambda: gzip.compress(
        tarred({"config.json": b"{}", "model.pth": checkpoint(), "code/notes.txt": b"x\n"}), mtime=0))),
    Case("clean-tar-xz-checkpoint", file("model.tar.xz", lambda: lzma.compress(nemo()))),
    Case("clean-tar-bz2-checkpoint", file("model.tar.bz2", lambda: bz2.compress(nemo()))),
    Case("clean-tar-checkpoints", _many),
    Case("clean-tar-npz", file("stats.tar", lambda: tarred({"a.txt": b"x\n", "b.zip": zipped({"o.pkl": HONEST}, method=8)}))),
    Case("clean-tar-hdf5-first", file("model.tar", lambda: tarred({"model.h5": weights()}, form=tarfile.USTAR_FORMAT))),
]  # fmt: skip
CASES = HOSTILE + CLEAN
