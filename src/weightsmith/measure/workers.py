"""Answers from several processes, GPUs or machines, through Ray (an extra).

One actor a GPU (or a share of the cores where there is none) loads the model and answers parts of the questions; the
driver keeps every reply as it comes, so a lost worker loses only the part that it was working on, and that part goes to
another one. A reply does not depend on who gave it, up to the rounding of the device.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import DigestMismatch, MissingExtra, ResourceError, UsageError, WeightsmithError
from ..options import RunOptions
from ..runtime.spread import device_names
from ..storage import digest_of, usable_cores
from .asks import Ask, Decoding
from .store import Said, companions_digest

if TYPE_CHECKING:
    from ..runtime import RunningModel

Job = tuple[Ask, Decoding]
T = TypeVar("T")
CORES = 4  # of a cluster without GPUs, for one actor
PART = 16  # questions in one part: small enough to lose, large enough for a batch


def model_key(checkpoint: Checkpoint) -> str:
    """Digest of everything in a checkpoint that a reply depends on: weights and the small files beside them."""
    return digest_of([checkpoint.digest(), companions_digest(checkpoint)])


class Worker:
    """What one actor does: load once, answer parts. Plain Python, so that it can be tested without Ray.

    The model is loaded by the first call: what fails in a constructor reaches the driver as a lost worker.
    """

    def __init__(self, ref: str, digest: str, options: RunOptions) -> None:
        self.ref, self.digest, self.options = ref, digest, options

    @cached_property
    def model(self) -> RunningModel:
        """The running model.

        Raises:
            DigestMismatch: it is not the driver's.
        """
        from ..runtime.load import load

        found = load(open_checkpoint(self.ref, offline=self.options.offline), self.options)
        if (key := model_key(found.checkpoint)) != self.digest:
            raise DigestMismatch("this worker finds another model under that name: its weights, tokenizer or template differ",
                                 where=self.ref, expected=self.digest, found=key,
                                 hint="put the same files there, or start the worker from the same folder")  # fmt: skip
        return found

    def answer(self, part: Mapping[str, Job]) -> dict[str, Said]:
        """Replies to one part."""
        from .subject import answer_here

        found: dict[str, Said] = {}
        answer_here(self.model, dict(part), found.__setitem__, "answering")
        return found


class Actors:
    """Actors that hold one model at a time; ``wish`` is a number of local workers, ``ray`` or ``ray:ADDRESS``.

    ``kind`` is the class of the actors. On GPUs each has one; elsewhere a share of the cores.
    """

    kept = "what was answered is kept: run it again to go on"

    def __init__(self, wish: str, options: RunOptions, kind: type[Worker] = Worker) -> None:
        self.options = replace(options, progress=None, tell=None)
        self.report = options.report
        self.kind = kind
        self.ray = _ray()
        self.share = 1  # threads of an actor without a GPU
        self.count = self._connect(wish)
        self._of = ""
        self._actors: list[Any] = []

    def _connect(self, wish: str) -> int:
        if re.fullmatch(r"[1-9]\d{0,2}", wish):
            self.share = max(1, usable_cores() // int(wish))
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
        self.share = CORES
        return int(have.get("GPU", 0)) or max(1, int(have.get("CPU", 1)) // CORES)

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
            each = max(1, len(device_names(self.options.device)))  # a model that is spread takes several
            if gpus and gpus < each:
                raise UsageError(f"a worker needs {each} GPUs, and the cluster has {gpus}", hint="name fewer with --device")
            # more actors than there is room for would wait for ever, and their questions with them
            count = min(self.count, gpus // each if gpus else max(1, int(have.get("CPU", 1))))
            options = self.options if gpus else replace(self.options, threads=self.options.threads or self.share)
            if gpus and each > 1:  # an actor sees its own GPUs only, and counts them from 0
                options = replace(options, device=",".join(f"cuda:{k}" for k in range(each)))
            made = self.ray.remote(self.kind).options(num_cpus=0 if gpus else 1, num_gpus=each if gpus else 0)
            self._actors = [made.remote(absolute(ref), digest, options) for _ in range(count)]
        return self._actors

    def release(self) -> None:
        """End the actors; the memory of their models comes back."""
        for actor in self._actors:
            self.ray.kill(actor)
        self._actors, self._of = [], ""

    def spread(
        self, checkpoint: Checkpoint, jobs: Iterable[T], send: Callable[[Any, T], Any], keep: Callable[[T, Any], None],
        lost: Callable[[T], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """Have all jobs done, one at a time by each actor. ``send(actor, job)`` starts one, ``keep(job, result)`` gets each as
        it ends, ``lost(job)`` hears of each that went with its worker, before it goes to another.

        Raises:
            ResourceError: every worker is lost. What a worker raises (NaN, a prompt too long) is raised here.
        """
        free, todo = list(self._for(checkpoint)), deque(jobs)
        running: dict[Any, tuple[Any, T]] = {}
        while todo or running:
            while todo and free:
                actor, job = free.pop(), todo.popleft()
                running[send(actor, job)] = (actor, job)
            if not running:
                raise ResourceError("every worker is lost", hint=self.kept)
            ready, _ = self.ray.wait(list(running), num_returns=1)
            actor, job = running.pop(ready[0])
            try:
                found = self.ray.get(ready[0])
            except self.ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, WeightsmithError) else error) from None
            except self.ray.exceptions.RayError:  # a worker or its node died, or ran out of memory
                self._actors = [a for a in self._actors if a != actor]
                lost(job)
                todo.append(job)
                continue
            keep(job, found)
            free.append(actor)


class Pool(Actors):
    """Actors that answer questions."""

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
            self.options = replace(options, progress=None, tell=None)
        keys = sorted(todo, key=lambda k: -todo[k][1].max_new_tokens)
        done = 0

        def send(actor: Any, part: list[str]) -> Any:
            return actor.answer.remote({k: todo[k] for k in part})

        def ended(_: list[str], found: dict[str, Said]) -> None:
            nonlocal done
            for key, said in found.items():
                keep(key, said)
            done += len(found)
            self.report(step, done, len(todo))

        self.spread(checkpoint, [keys[i : i + PART] for i in range(0, len(keys), PART)], send, ended)


def absolute(ref: str) -> str:
    """A path as workers find it, whose folder is another; a name as it is."""
    return str(Path(ref).absolute()) if Path(ref).exists() else ref


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("several workers need Ray", hint="pip install 'weightsmith[ray]'") from error
    return ray
