"""Every exception that Weightsmith raises on purpose.

::

    WeightsmithError
    ├ UsageError      RecipeError · UnknownPlugin · MissingExtra · OutputExists · OutputBusy
    ├ UnsupportedModel  RemoteCode · PickleOnly
    ├ NotAnalysed
    ├ FormatError     HeaderTooLarge · BadOffsets · Truncated
    ├ IntegrityError  DigestMismatch · ManifestMismatch · BadSignature · BaseChanged · UnsafeModel · NotPinned
    ├ EditError       ShapeMismatch · DirectionModelMismatch · NonFinite
    └ ResourceError   LimitExceeded · OutOfMemory · DiskFull · NetworkError

Each error says *what* is wrong (the message), *where* (``where``), and *what to do* (``hint``).
An error that knows no better gives the hint of its class (``usual``).
``code`` is the stable kebab-case name shown to machines and listed in ``docs/errors.md``.
Every error of this tree ends a command with exit code 2 ("could not tell"), except
:class:`IntegrityError` and its children, which are a bad verdict and end it with 1.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class WeightsmithError(Exception):
    """Base of all errors: message, where it happened, what to do about it, and structured fields."""

    exit_code: ClassVar[int] = 2
    usual: ClassVar[str | None] = None  # what to do where no better advice was given

    def __init__(self, message: str, *, where: object = None, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.where = None if where is None else str(where)
        self.hint = self.usual if hint is None else hint
        self.advised = hint is not None  # the hint is this error's own
        self.fields = fields

    @property
    def code(self) -> str:
        """Stable kebab-case name of the class, e.g. ``digest-mismatch``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()

    def as_record(self) -> dict[str, Any]:
        """The error as plain data, for ``--json``."""
        return {
            "error": self.code,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "fields": {k: v if isinstance(v, int | float | bool | None) else str(v) for k, v in self.fields.items()},
        }

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(WeightsmithError):
    """The command, option or argument can't be what was meant."""

    usual: ClassVar[str | None] = "`weightsmith -h` lists the commands, and -h after one of them what it takes"


class RecipeError(UsageError):
    """A feature, edit or prompt file is malformed, empty, one-sided or self-contradicting."""

    usual: ClassVar[str | None] = "correct the file or the option that says so; docs/formats.md lists the fields of every file"


class UnknownPlugin(UsageError):
    """A recipe names a plug-in that is not installed."""


class MissingExtra(UsageError):
    """An optional dependency is needed; the hint is the command that installs it."""


class OutputBusy(UsageError):
    """Another process is writing this output; it was left alone."""


class OutputExists(UsageError):
    """The output path is taken; nothing was written."""


class UnsupportedModel(WeightsmithError):
    """The model's family, layout or file type is not one that Weightsmith knows."""

    usual: ClassVar[str | None] = "`weightsmith show forms` lists the families that can be edited; every model can be scanned"


class NotAnalysed(WeightsmithError):
    """A file of the model could not be analysed, so nobody can tell whether it is safe to use."""


class RemoteCode(UnsupportedModel):
    """The model asks the loader to run code that comes with it; that never happens here."""


class PickleOnly(UnsupportedModel):
    """The weights exist only as pickles, which can run code when they are read."""


class FormatError(WeightsmithError):
    """A file does not follow the specification of its own format."""

    usual: ClassVar[str | None] = (
        "it is damaged, or not what its name says: fetch or make it again; "
        "`weightsmith scan` names what is wrong with a model's file"
    )


class HeaderTooLarge(FormatError):
    """A header claims more than a sane file would hold."""


class BadOffsets(FormatError):
    """Tensor offsets overlap, leave holes or leave the file."""


class Truncated(FormatError):
    """A file ends before its header says it does."""

    usual: ClassVar[str | None] = "part of it is missing: fetch or make it again"


class IntegrityError(WeightsmithError):
    """Bytes are not the bytes that were promised: a bad verdict."""

    exit_code: ClassVar[int] = 1


class DigestMismatch(IntegrityError):
    """A digest differs from the recorded one."""

    usual: ClassVar[str | None] = (
        "don't use it before you know why: fetch it again, and ask "
        "who published it if that changes nothing"
    )


class ManifestMismatch(IntegrityError):
    """An index or record names files or tensors that are not there, or the other way round."""

    usual: ClassVar[str | None] = "files are missing, left over, or of another version: fetch the model again into an empty folder"


class BadSignature(IntegrityError):
    """A signature does not verify."""

    usual: ClassVar[str | None] = "don't use the model before whoever signed it explains this"


class UnsafeModel(IntegrityError):
    """A scan found the model malicious, broken, or suspicious without consent; it was not loaded."""


class NotPinned(IntegrityError):
    """``--frozen`` was asked for and no lock holds this model's digests."""


class BaseChanged(IntegrityError):
    """The base is not what it was when the work began; nothing of the result was kept."""


class EditError(WeightsmithError):
    """An edit can't be applied to this model."""

    usual: ClassVar[str | None] = (
        "leave out the layers, roles or options that this model can't "
        "hold; docs/edit.md says what each does"
    )


class ShapeMismatch(EditError):
    """A direction has another width than the model."""

    usual: ClassVar[str | None] = (
        "the parts were made for different models: use a direction, an "
        "Edit or a record that was made for this one"
    )


class DirectionModelMismatch(EditError):
    """A direction was found on a model of another digest."""

    usual: ClassVar[str | None] = "find the direction on this model, or name the model that it was found on"


class NonFinite(EditError):
    """NaN or infinity in weights, before or after the edit."""

    usual: ClassVar[str | None] = (
        "`weightsmith scan MODEL` says whether the model itself holds such values; "
        "if it does not, use a smaller amount or --dtype float32"
    )


class ResourceError(WeightsmithError):
    """The machine has not enough of something."""

    usual: ClassVar[str | None] = "free some of it, or use a larger machine"


class LimitExceeded(ResourceError):
    """A stated limit was reached."""

    usual: ClassVar[str | None] = "no file of a real model comes near this limit: ask who made it"


class OutOfMemory(ResourceError):
    """Not enough memory."""


class DiskFull(ResourceError):
    """Not enough disk."""


class NetworkError(ResourceError):
    """The network was needed and is not there, or refused."""

    usual: ClassVar[str | None] = "try again later, or use what is on this machine with --offline"


def stated(error: BaseException) -> str:
    """What any error says, in a line: without where, and without advice."""
    text = error.message if isinstance(error, WeightsmithError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def advice(error: WeightsmithError) -> str:
    """What to do by this very error; nothing where it has only that of its kind."""
    return error.hint if error.advised and error.hint else ""
