"""What makes an opened file the one that was listed, and how a file of a stranger is opened."""

from __future__ import annotations

import os

#: never through a link that was not judged, never waiting for a pipe
FLAGS = (os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
         | getattr(os, "O_BINARY", 0))  # fmt: skip

Identity = tuple[int, int, int, int, int]


def identity(info: os.stat_result) -> Identity:
    """Device, inode, size, and the times (ns) of the last change of content and of anything."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
