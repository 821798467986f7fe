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
from ..errors import DigestMismatch, MissingExtra, ResourceError, UsageError, WeightsmithError
from ..options import RunOptions
from ..storage import digest_of
from .asks import Ask, Decoding
from .store import Said, companions_digest

Job = tuple[Ask, Decoding]
PART = 16  # questions in one part: small enough to lose, large enough for a batch


def model_key(checkpoint: Checkpoint) -> str:
    """Digest of everything in a checkpoint that a reply depends on: weights and the small files beside them."""
    return digest_of([checkpoint.digest(), companions_digest(checkpoint)])


class Worker:
    """What one actor does: load once, answer parts. Plain Python, so that it can be tested without Ray."""

    def __init__(self, ref: str, digest: str, options: RunOptions) -> None:
        from ..runtime.load import load

        self.model = load(open_checkpoint(ref, offline=options.offline), options)
        found = model_key(self.model.checkpoint)
        if found != digest:
            raise DigestMismatch("this worker finds another model under that name: its weights, tokenizer or template differ",
                                 where=ref, expected=digest, found=found)  # fmt: skip

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
        digest = model_key(checkpoint)
        if self._of != digest:
            self.release()
            self._of = digest
            ref = str((checkpoint.origin or checkpoint).ref)
            have = self.ray.cluster_resources()
            on_gpu = not (self.options.device or "cuda").startswith("cpu")
            gpus = int(have.get("GPU", 0)) if on_gpu else 0
            # more actors than there is room for would wait for ever, and their questions with them
            count = min(self.count, gpus or max(1, int(have.get("CPU", 1))))
            made = self.ray.remote(Worker).options(num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0)
            self._actors = [made.remote(ref, digest, self.options) for _ in range(count)]
        return self._actors

    def release(self) -> None:
        """End the actors; the memory of their models comes back."""
        for actor in self._actors:
            self.ray.kill(actor)
        self._actors, self._of = [], ""

    def answer(
        self, checkpoint: Checkpoint, todo: Mapping[str, Job], keep: Callable[[str, Said], None], step: str,
        options: RunOptions | None = None,
    ) -> None:  # fmt: skip
        """Replies to all of ``todo``; each part is kept as it comes, the part of a lost worker goes to another.

        ``options`` name the device and dtype that replies are kept under: workers compute in the same.

        Raises:
            ResourceError: every worker is lost. What a worker raises (NaN, a prompt too long) is raised here.
        """
        if options is not None:
            self.options = replace(options, progress=None)
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
                if isinstance(cause := getattr(error, "cause", None), WeightsmithError):
                    raise cause from error  # it never came up: it could not load the model
                self._actors = [a for a in self._actors if a != actor]
                parts.append(part)
                continue
            except self.ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, WeightsmithError) else error) from None
            except self.ray.exceptions.RayError:  # a node that died, or ran out of memory: as a lost worker
                self._actors = [a for a in self._actors if a != actor]
                parts.append(part)
                continue
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
