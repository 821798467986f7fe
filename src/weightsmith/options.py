"""How a job runs, apart from what it does: none of this enters a recipe's digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Device, dtype, batch and cache.

    ``device`` and ``dtype`` are torch names, or ``None`` to choose the fastest that is exact enough; ``batch_tokens``
    bounds the padded tokens of one forward pass, ``memory`` the bytes that a search takes on its device, model included;
    ``progress`` is called with (step, done, total).
    ``ignore_remote_code`` loads a model that asks for its own code with the library's built-in class instead;
    ``dequantize`` works on the bf16 model that a quantised checkpoint stands for.
    ``allow`` holds ``suspicious`` when such a verdict was consented to, ``policy`` is a file that changes verdicts; ``lock``
    is a file of pins other than the one that is found, ``frozen`` refuses what is not pinned and remembers nothing; ``tell``
    is given one line about what was checked.
    """

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    batch_tokens: int = 2048
    batch_size: int = 32
    offline: bool = False
    use_cache: bool = True
    memory: int | None = None
    seed: int = 0
    ignore_remote_code: bool = False
    dequantize: bool = False
    allow: tuple[str, ...] = ()
    policy: str | None = None
    lock: str | None = None
    frozen: bool = False
    progress: Progress | None = None
    tell: Callable[[str], None] | None = None

    def report(self, step: str, done: int, total: int) -> None:
        """Tell whoever listens how far ``step`` is."""
        if self.progress:
            self.progress(step, done, total)
