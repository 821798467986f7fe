"""A bound on work that must not run away: what takes that much processor time is stopped, whatever else the machine does.

No time is asserted. The bounds are ten times and more of what is needed, and what they are for takes minutes.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class RanAway(BaseException):
    """Not an ``Exception``, since a scan makes a finding of those."""


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Stop what is done inside after so many seconds of this process's processor time.

    Raises:
        RanAway: it was not done by then.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise RanAway(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
