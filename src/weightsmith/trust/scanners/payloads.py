"""Whether a tensor of single bytes is a pickle without any sign of its own, or Python source.

Quantised weights are any bytes, so only what chance does not make counts: a pickle that imports something by a name of letters
and calls it, text whose first statement is an import.
"""

from __future__ import annotations

import re

from ..opcodes import Reading, read_as_pickle

#: an import in a pickle: lines, or two short texts that are taken from the stack
_IMPORTS = re.compile(
    rb"[ci][A-Za-z_][\w.]{1,99}\n[A-Za-z_]\w{1,99}\n"
    rb"|(?:\x8c.|[XU\x8d].{1,8}?)[A-Za-z_][\w.]{1,99}(?:\x94|q.|p\d+\n)?(?:\x8c.|[XU\x8d].{1,8}?)[A-Za-z_][\w.]{1,99}(?:\x94|q.|p\d+\n)?\x93",
    re.DOTALL)  # fmt: skip
#: source that begins with an import, behind comments, a docstring or empty lines
_SOURCE = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:[ \t]*(?:#[^\n]*)?\r?\n|\"\"\"[^\"]*\"\"\"|\'\'\'[^\']*\'\'\')*"
    rb"(?:import[ \t]+[A-Za-z_][\w.]+[ \t]*(?:[,;\r\n#]|as[ \t])|from[ \t]+[A-Za-z_][\w.]+[ \t]+import[ \t(]"
    rb"|(?:exec|eval|__import__)[ \t]*\()")


def begins_like_code(dtype: str, head: bytes) -> bool:
    """Whether the first bytes of a tensor of bytes are a pickle that calls something, or Python source."""
    if dtype not in ("U8", "I8") or not head:
        return False
    text = head.partition(b"\0")[0]
    if _SOURCE.match(text) and text.isascii():
        return True
    return bool(_IMPORTS.search(head)) and read_as_pickle(head, len(head) + 1) is Reading.CODE
