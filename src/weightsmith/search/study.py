"""One study that several processes and several runs share, kept in a journal file. Imports Optuna: see :mod:`.blackbox`.

What Optuna's journal does not have is added here. Its lock outlives a process that is killed; ours is the kernel's. It knows
no heartbeat, so a process holds a lock on a file of its own as long as it lives, and whoever asks for a trial next fails those
that dead ones left running and queues their parameters again. Random numbers depend on the seed and on how many trials came
before alone, so that a run that was interrupted goes on as it would have gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import optuna
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from ..errors import UsageError
from ..storage import alive

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from .blackbox import Draws

T = TypeVar("T")
NAME = "weightsmith"
ATTEMPTS = 3  # a trial that takes its process with it is not tried for ever


class _Lock(Protocol):
    """What Optuna's journal asks of a lock."""

    def acquire(self) -> bool: ...

    def release(self) -> None: ...


class _KernelLock:
    """A lock that goes with the process that holds it. A line that a dying process did not finish is cut off first."""

    def __init__(self, path: Path, journal: Path | None = None) -> None:
        self.path, self.journal = path, journal
        self._handle = -1

    def acquire(self) -> bool:
        """Wait for it."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle
        if self.journal is not None:
            _mend(self.journal)
        return True

    def release(self) -> None:
        """Let it go."""
        os.close(self._handle)


def _mend(journal: Path) -> None:
    size = journal.stat().st_size
    with journal.open("rb+") as file:
        file.seek(max(0, size - 1))
        if size and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _lock(path: Path, journal: Path | None = None) -> _Lock:
    return JournalFileOpenLock(str(path)) if fcntl is None else _KernelLock(path, journal)


@contextlib.contextmanager
def _held(lock: _Lock | None) -> Iterator[None]:
    if lock is not None:
        lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class SharedStudy:
    """A study of two objectives, both minimised, with a budget of trials; a context manager.

    ``identity`` says what is searched; a journal of anything else is refused.
    """

    def __init__(self, draws: Draws, identity: dict[str, Any]) -> None:
        self.draws, self.path, self.identity = draws, draws.storage, identity
        self.me = f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._turn: _Lock | None = None
        self._alive: Any = None
        self.study: optuna.Study = None  # type: ignore[assignment]

    def __enter__(self) -> SharedStudy:
        logging.getLogger("optuna").setLevel(logging.WARNING)
        with contextlib.ExitStack() as undone:  # whatever stops it on the way, it is not left held
            undone.callback(self.__exit__)
            if self.path is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._turn = _lock(self._folder / "turn")
                self._live()
            with _held(self._turn):
                self._open()
            undone.pop_all()
        return self

    def _open(self) -> None:
        self.study = optuna.create_study(
            storage=self._storage(), study_name=NAME, directions=["minimize", "minimize"], load_if_exists=True,
            sampler=self._sampler(0), pruner=optuna.pruners.NopPruner())  # fmt: skip
        known = self.study.user_attrs.get("identity")
        if known is None:
            self.study.set_user_attr("identity", self.identity)
        elif known != self.identity:
            other = ", ".join(k for k in sorted({*known, *self.identity}) if known.get(k) != self.identity.get(k))
            raise UsageError(f"this journal belongs to another search: {other} differs", where=self.path,
                             hint="name another file, or remove this one")  # fmt: skip

    def __exit__(self, *_: object) -> None:
        if self._alive is not None:
            self._alive.close()
            self._worker(self.me).unlink(missing_ok=True)
            self._alive = None

    @property
    def _folder(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f".{self.path.name}.locks")

    def _worker(self, name: str) -> Path:
        return self._folder / ("worker-" + name.rpartition(":")[2])

    def _storage(self) -> optuna.storages.BaseStorage:
        if self.path is None:
            return InMemoryStorage()
        lock: Any = _lock(self._folder / "journal", self.path)
        return JournalStorage(JournalFileBackend(str(self.path), lock_obj=lock))

    def _live(self) -> None:
        self._alive = self._worker(self.me).open("w")
        if fcntl is not None:
            fcntl.flock(self._alive, fcntl.LOCK_EX)

    def _lives(self, worker: str) -> bool:
        """Whether the process that had a trial still runs."""
        if not worker or worker == self.me:
            return bool(worker)
        if fcntl is None:
            host, pid, _ = worker.split(":")
            return host != platform.node() or alive(int(pid))
        with contextlib.suppress(FileNotFoundError), self._worker(worker).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            self._worker(worker).unlink()
        return False

    def _sampler(self, before: int) -> optuna.samplers.BaseSampler:
        """A sampler for the trial that has ``before`` others before it."""
        seed = (self.draws.seed * 1_000_003 + before * 7_919 + 1) % (1 << 31)
        if self.draws.sampler == "nsga2":
            size = max(4, min(50, round(self.draws.trials / 5)))
            return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
        return optuna.samplers.TPESampler(
            n_startup_trials=self.draws.startup, n_ei_candidates=128, multivariate=True, seed=seed)  # fmt: skip

    def ask(self, suggest: Callable[[optuna.Trial], T]) -> tuple[optuna.Trial, T] | None:
        """The next trial and what ``suggest`` makes of it; ``None`` when all have been given out."""
        with _held(self._turn):
            self._retry_lost()
            trials = self.study.get_trials(deepcopy=False)
            again = {t.user_attrs.get("retries") for t in trials}
            count = sum(t.number not in again for t in trials)
            if count >= self.draws.trials and not any(t.state == TrialState.WAITING for t in trials):
                return None
            self.study.sampler = self._sampler(count)
            trial = self.study.ask()
            trial.set_user_attr("worker", self.me)
            return trial, suggest(trial)

    def _retry_lost(self) -> None:
        """Fail the trials whose process is dead, and queue their parameters."""
        if self.path is None:
            return
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._lives(trial.user_attrs.get("worker", "")):
                continue
            self.study.tell(trial.number, state=TrialState.FAIL)
            attempt = trial.user_attrs.get("attempt", 1)
            if attempt < ATTEMPTS:
                self.study.enqueue_trial(trial.params, {"retries": trial.number, "attempt": attempt + 1})

    def complete(self, trial: optuna.Trial, values: tuple[float, float], notes: dict[str, Any]) -> None:
        """Tell what a trial came to."""
        self._note(trial, notes)
        self.study.tell(trial, list(values))

    def prune(self, trial: optuna.Trial, notes: dict[str, Any]) -> None:
        """Tell that a trial was given up. Its figures, of part of the prompts, are no values of it."""
        self._note(trial, notes)
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: optuna.Trial, why: str) -> None:
        """Tell that a trial has no figures."""
        self._note(trial, {"why": why})
        self.study.tell(trial, state=TrialState.FAIL)

    def _note(self, trial: optuna.Trial, notes: dict[str, Any]) -> None:
        for key, value in notes.items():
            trial.set_user_attr(key, value)

    def completed(self) -> list[FrozenTrial]:
        """Trials with figures, whoever ran them, by number."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
