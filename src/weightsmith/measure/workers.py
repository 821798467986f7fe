"""Answers from several processes, GPUs or machines, through Ray (an extra).

One actor a GPU (or a share of the cores where there is none) loads the model and answers parts of the questions; the
driver keeps every reply as it comes, so a lost worker loses only the part that it was working on, and that part goes to
another one. A reply does not depend on who gave it, up to the rounding of the device.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import DigestMismatch, MissingExtra, ResourceError, UsageError
from ..options import RunOptions
from .asks import Ask, Decoding
from .store import Said

Job = tuple[Ask, Decoding]
PART = 16  # questions in one part: small enough to lose, large enough for a batch


class Worker:
    """What one actor does: load once, answer parts. Plain Python, so that it can be tested without Ray."""

    def __init__(self, ref: str, digest: str, options: RunOptions) -> None:
        from ..runtime.load import load

        checkpoint = open_checkpoint(ref, offline=options.offline)
        self.model = load(checkpoint, options)
        if self.model.identity.digest != digest:
            raise DigestMismatch("this worker finds other weights under that name", where=ref, expected=digest,
                                 found=self.model.identity.digest)  # fmt: skip

    def answer(self, part: Mapping[str, Job]) -> dict[str, Said]:
        """Replies to one part."""
        from .subject import answer_here

        found: dict[str, Said] = {}
        answer_here(self.model, dict(part), found.__setitem__, "answering")
        return found


class Pool:
    """Actors for one model at a time; ``wish`` is a number of local workers, ``ray`` or ``ray:ADDRESS``."""

    def __init__(self, wish: str, options: RunOptions) -> None:
        self.options = replace(options, progress=None)
        self.report = options.report
        self.ray = _ray()
        self.count = self._connect(wish)
        self._of = ""
        self._actors: list[Any] = []

    def _connect(self, wish: str) -> int:
        if re.fullmatch(r"[1-9]\d{0,2}", wish):
            if not self.ray.is_initialized():
                self.ray.init(num_cpus=int(wish), include_dashboard=False, object_store_memory=200_000_000,
                              configure_logging=True, log_to_driver=False, logging_level="error")  # fmt: skip
            return int(wish)
        kind, _, address = wish.partition(":")
        if kind != "ray":
            raise UsageError(f"can't read the workers {wish!r}", hint="a number, ray, or ray:HOST:PORT")
        try:
            self.ray.init(address=address or "auto", log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise UsageError("no Ray cluster is running", hint="ray start --head on one machine, ray start "
                             "--address HEAD:6379 on the others") from error  # fmt: skip
        have = self.ray.cluster_resources()
        return int(have.get("GPU", 0)) or max(1, int(have.get("CPU", 1)) // 4)

    def _for(self, checkpoint: Checkpoint) -> list[Any]:
        """Actors that hold this model; those of another one are ended first."""
        digest = checkpoint.digest()
        if self._of != digest:
            self.release()
            self._of = digest
            ref = str((checkpoint.origin or checkpoint).ref)
            gpus = 1 if self.ray.cluster_resources().get("GPU") else 0
            made = self.ray.remote(Worker).options(num_cpus=1, num_gpus=gpus)
            self._actors = [made.remote(ref, digest, self.options) for _ in range(self.count)]
        return self._actors

    def release(self) -> None:
        """End the actors; the memory of their models comes back."""
        for actor in self._actors:
            self.ray.kill(actor)
        self._actors, self._of = [], ""

    def answer(
        self, checkpoint: Checkpoint, todo: Mapping[str, Job], keep: Callable[[str, Said], None], step: str
    ) -> None:
        """Replies to all of ``todo``; each part is kept as it comes, the part of a lost worker goes to another.

        Raises:
            ResourceError: every worker is lost. What a worker raises (NaN, a prompt too long) is raised here.
        """
        free = list(self._for(checkpoint))
        keys = sorted(todo, key=lambda k: -todo[k][1].max_new_tokens)
        parts = deque(keys[i : i + PART] for i in range(0, len(keys), PART))
        running: dict[Any, tuple[Any, list[str]]] = {}
        done = 0
        while parts or running:
            while parts and free:
                actor, part = free.pop(), parts.popleft()
                running[actor.answer.remote({k: todo[k] for k in part})] = (actor, part)
            if not running:
                raise ResourceError("every worker is lost", hint="what was answered is kept: run it again to go on")
            ready, _ = self.ray.wait(list(running), num_returns=1)
            actor, part = running.pop(ready[0])
            try:
                found = self.ray.get(ready[0])
            except self.ray.exceptions.RayActorError as error:
                if isinstance(cause := getattr(error, "cause", None), Exception):
                    raise cause from error
                self._actors = [a for a in self._actors if a != actor]
                parts.append(part)
                continue
            except self.ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            for key, said in found.items():
                keep(key, said)
            free.append(actor)
            done += len(found)
            self.report(step, done, len(todo))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("several workers need Ray", hint="pip install 'weightsmith[ray]'") from error
    return ray
