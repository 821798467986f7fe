"""One public function per verb. Faces call these and records, nothing below."""

from .derive import diff, rebuild, undo
from .edit import edit
from .export import export
from .files import convert, describe_direction, describe_model
from .find import find
from .measure import measure

__all__ = ["convert", "describe_direction", "describe_model", "diff", "edit", "export", "find", "measure", "rebuild", "undo"]
