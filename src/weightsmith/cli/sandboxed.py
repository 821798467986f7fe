"""Commands that run a model do it in a process of their own that can do little else.

Before anything of the command has begun, this process settles what needs rights: models and datasets are found or fetched,
scanned, converted and digested. Then it forks. The child closes the sandbox behind itself (:mod:`weightsmith.trust.sandbox`)
and goes on with the command as if nothing had happened; this process, its owner, stays outside, hands signals on, puts
finished outputs in their place (:mod:`weightsmith.trust.staging`) and ends with the child's exit code.

What the child may read: what Python needs, the models, recipes and files that the command names, and the cache. What it may
write: a stage beside each output (or the folder of a run that is written again and again), a temporary folder of its own,
and those parts of the cache that nothing is trusted for: neither verdicts nor digests. What an option needs beyond that is
left open, just that, and said in one line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ResourceError, WeightsmithError
from ..start import COULD_NOT_TELL, Once

if TYPE_CHECKING:
    from ..options import RunOptions
    from ..trust.sandbox import Restrictions

#: parts of the cache that the child writes: what is computed with a model, neither models nor what vouches for one
CACHED = ("activations", "directions", "measured", "models")
_HEARD = ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD")
_DNS = 53
_IN_PART = ("edit", "export")  # commands of which one step may run a model: :mod:`weightsmith.trust.apart`
_ON: list[frozenset[int]] = []  # the files that were open when this process began; empty where it is somebody else's


@dataclass
class Needs:
    """What one command has to reach: models and features by name, files that it reads, outputs that appear whole, folders
    that it writes again and again; whether a conversation may be saved; and what is left open, with the reason."""

    models: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    shared: list[Path] = field(default_factory=list)
    saves: bool = False
    network: bool = False
    ports: list[int] = field(default_factory=list)
    execute: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entered:
    """How a command goes on: with ``code`` it is over, else here; ``offline`` where there is no network any more."""

    code: int | None = None
    offline: bool = False


def own_process() -> None:
    """Say that this process belongs to the command line, which may fork and restrict it."""
    _ON[:] = [frozenset()]
    with contextlib.suppress(OSError):
        _ON[:] = [frozenset(int(n) for n in os.listdir("/proc/self/fd"))]


def enter(module: str, given: dict[str, Any], kwargs: dict[str, Any], options: Callable[[Any], RunOptions]) -> Entered:
    """Go on with the command of ``module`` in a sandboxed child, if it runs a model and this process is the command line's.

    ``given`` are the shared options, ``kwargs`` the command's own; ``options`` makes run options with a ``progress``.

    Raises:
        WeightsmithError: a model or dataset that can't be found or fetched, or an output that can't be written.
        ResourceError: the child was killed.
    """
    verb = module.rpartition(".")[2]
    if verb in _IN_PART and _ON:
        from ..trust.apart import allow

        allow(lambda line: _say(line, given), on=given["sandbox"], inherited=_ON[0])
    needed = _NEEDS.get(verb)
    needs = needed(kwargs) if needed is not None and _ON else None
    if needs is None:
        return Entered()
    if not given["sandbox"]:
        _say("sandbox: off, as asked for: the model runs with all of your rights", given)
        return Entered()
    if sys.platform != "linux" or "torch" in sys.modules:
        from ..trust.sandbox import sandbox

        open_ = sandbox().line if sys.platform != "linux" else "sandbox: none; a model library was loaded before it"
        _say(open_, given)
        return Entered()
    return _enter(needs, given, options)


def _enter(needs: Needs, given: dict[str, Any], options: Callable[[Any], RunOptions]) -> Entered:
    from ..trust.apart import temporary_folder
    from ..trust.staging import Stages

    needs.outputs, needs.folders = ([Path(os.path.abspath(p)) for p in paths] for paths in (needs.outputs, needs.folders))
    from ..trust.pins.guard import own_place

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ends = contextlib.ExitStack()
    try:
        temporary = ends.enter_context(temporary_folder())
        cached = [*_cache_parts(), ends.enter_context(own_place())]
        read = _settle(needs, given, options)
        stages = ends.enter_context(Stages().open(needs.outputs, temporary if needs.saves else None))
        for folder in needs.folders:
            ends.enter_context(_made(folder))
        write = [*stages.writable, *needs.folders, *cached, temporary, *filter(Path.exists, needs.shared)]
        asked, answers, owner = os.pipe(), os.pipe(), os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
        child = _fork()
        if child:
            for end in (asked[1], answers[0]):
                os.close(end)
            return Entered(_own(child, stages, asked[0], answers[1]))
        _KEPT.append(ends.pop_all())
        _go_in(owner, (asked[1], answers[0]), temporary)
        _through(stages, asked[1], answers[0], write)
        _say_line(_close(needs, read, write), needs, given)
    finally:
        try:
            ends.close()  # while signals wait: nothing is left behind half tidied up
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Entered(offline=not needs.network)


#: in the child: what its owner tidies up
_KEPT: list[contextlib.ExitStack] = []


def _numbers() -> set[signal.Signals]:
    return {getattr(signal, name) for name in _HEARD if hasattr(signal, name)}


def _fork() -> int:
    import warnings

    with warnings.catch_warnings():  # threads of libraries that end or begin anew with a fork: those of OpenBLAS
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# -- the owner ---------------------------------------------------------------------------------------------------


def _own(child: int, stages: Any, asked: int, answers: int) -> int:
    """Wait for the child; hand signals on and put outputs in their place meanwhile. Its exit code.

    Raises:
        ResourceError: it was killed.
    """
    clerk = threading.Thread(target=stages.serve, args=(os.fdopen(asked, "rb"), os.fdopen(answers, "wb")), daemon=True)
    clerk.start()
    status, heard = _wait(child)
    clerk.join(2)  # it ends with the last who could ask
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code in heard:  # it had its say before, and was about to end
        return COULD_NOT_TELL
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    hint = "the system does that when memory runs out: try a smaller --batch, or --dtype bfloat16"
    raise ResourceError(f"the process that ran the model was ended by {name}; nothing half-written was left behind",
                        hint=hint if code == -signal.SIGKILL else None)  # fmt: skip


def _wait(child: int) -> tuple[int, set[int]]:
    """The child's status, and which signals were heard until then."""
    signals: set[int] = set()
    while True:
        # now and then it is looked for without having been heard of
        heard = signal.sigtimedwait(_numbers(), 1.0)
        if heard is not None and heard.si_signo != signal.SIGCHLD:
            signals.add(heard.si_signo)
            if heard.si_code <= 0:  # from a process; what the terminal sends, the child has got as well
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, heard.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, signals


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A run's folder, which is there for its rule; it goes again if nothing came into it, with the parents made for it."""
    from ..storage import disk_errors, made_folders

    with contextlib.suppress(_NothingCame), disk_errors(folder), made_folders(folder):
        yield
        if not any(folder.iterdir()):
            raise _NothingCame
        _usual_modes(folder)


class _NothingCame(Exception):
    pass


def _usual_modes(folder: Path) -> None:
    """What was written whole in a process that can't change modes has those of something unfinished."""
    from ..storage import umask

    mask = umask()
    for base, folders, names in os.walk(folder):
        for path in (*(os.path.join(base, n) for n in folders), *(os.path.join(base, n) for n in names)):
            mode = os.lstat(path).st_mode
            usual = (0o777 if stat.S_ISDIR(mode) else 0o666) & ~mask
            if (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and stat.S_IMODE(mode) in (0o600, 0o700):
                os.chmod(path, usual)


def _cache_parts() -> list[Path]:
    from ..storage import cache_dir

    found = []
    for name in CACHED:
        part = Path(os.path.abspath(cache_dir())) / name
        with contextlib.suppress(OSError):
            part.mkdir(parents=True, exist_ok=True)
            found.append(part)
    return found


# -- what is settled before ----------------------------------------------------------------------------------------


def _settle(needs: Needs, given: dict[str, Any], options: Callable[[Any], RunOptions]) -> list[Path]:
    """Fetch, scan, convert and digest what the command names; what the child has to read of it.

    Raises:
        WeightsmithError: a model can't be found, fetched, opened or converted. What else is wrong, the command will say.
    """
    from .. import hub
    from ..storage import cache_dir
    from ..trust.pins.lock import VARIABLE, pinned_ref
    from ..trust.sandbox import model_paths
    from .common import progress

    read = [cache_dir(), *needs.files]
    with progress(quiet=given["quiet"]) as tell:
        run = options(tell)
        sound = _settle_features(needs, read, offline=run.offline)
        for ref in needs.models:
            located = hub.settle(pinned_ref(ref, run.lock), offline=run.offline, progress=run.progress)
            read += model_paths(located.path)
            if sound:
                _ready(ref, run)
    read += [Path(p).expanduser() for p in (given.get("policy"), given.get("lock"), os.environ.get(VARIABLE)) if p]
    read += [p for p in needs.outputs if p.is_dir()]  # an empty one may stand there
    read += [p for folder in (Path.cwd(), *Path.cwd().parents) if (p := folder / "weightsmith.lock").is_file()]
    return [p for p in dict.fromkeys(read) if os.path.exists(p)]


def _ready(ref: str, run: RunOptions) -> None:
    """Let the owner do what later runs trust: scan, convert, digest. What the scan finds, the command meets and says.

    Raises:
        WeightsmithError: a model that can't be opened or converted.
    """
    from dataclasses import replace
    from importlib.util import find_spec

    from ..checkpoint import refuse_remote_code, runnable
    from ..jobs.files import as_checkpoint
    from ..trust.gate import pass_gate

    with contextlib.suppress(ImportError):
        if find_spec("torch") is not None:
            found = as_checkpoint(ref, run)
            refuse_remote_code(found, run)
            try:
                pass_gate(found, replace(run, tell=None))
            except WeightsmithError:
                return
            runnable(found, dequantize=run.dequantize, progress=run.progress).digest(run.progress)


def _settle_features(needs: Needs, read: list[Path], *, offline: bool) -> bool:
    """Add the files that recipes name to ``read`` and fetch their datasets; whether all of them could be read."""
    from .. import hub
    from ..features.recipe import TwoSources, load_feature

    try:
        for name in needs.features:
            if (file := Path(name).expanduser()).is_file():  # first of all: what is wrong with it, the command has to say
                read.append(file)
            spec, folder = load_feature(name)
            two = spec.prompts
            for source in (two.shows, two.lacks) if isinstance(two, TwoSources) else (two,):
                if source.file is not None:
                    path = Path(source.file).expanduser()
                    read.append(path if path.is_absolute() or folder is None else folder / path)
                if source.dataset is not None:
                    read += [p.resolve() for p in hub.settle_dataset(source.dataset, source.split, offline=offline)]
    except (WeightsmithError, OSError):
        return False
    return True


# -- the child -----------------------------------------------------------------------------------------------------


def _go_in(owner: int, ends: tuple[int, int], temporary: Path) -> None:
    """Make the forked process one of its own: it ends with its owner, and has nothing open that the owner opened."""
    from ..trust.apart import shut

    shut(owner, ends, _ON[0], temporary)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, Once())


def _through(stages: Any, asks: int, answers: int, own: list[Path]) -> None:
    from ..storage import write_through
    from ..trust.staging import Through

    write_through(Through(stages, os.fdopen(asks, "wb"), os.fdopen(answers, "rb"), own))


def _close(needs: Needs, read: list[Path], write: list[Path]) -> Restrictions:
    from ..trust.sandbox import sandbox

    if not needs.network:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ |= needs.environment
    network = True if needs.network else (needs.ports or False)
    return sandbox(read=read, write=write, network=network, execute=needs.execute)


def _say_line(made: Restrictions, needs: Needs, given: dict[str, Any]) -> None:
    """Say what could not be restricted or was left open; nothing where there is nothing to say."""
    if made.open:
        why = f" ({'; '.join(needs.why)})" if needs.why else ""
        _say(made.line + why, given)


def _say(line: str, given: dict[str, Any]) -> None:
    from .common import safe

    if not given["quiet"]:
        sys.stderr.write(safe(line) + "\n")
        sys.stderr.flush()


# -- what each command needs ---------------------------------------------------------------------------------------


def _find(k: dict[str, Any]) -> Needs:
    return Needs([k["model"]], [k["feature"]], outputs=[_new(k["out"])])


def _new(path: str | Path, *, folder: bool = False) -> Path:
    """An output, which must not be there yet: this is known before anything is fetched.

    Raises:
        OutputExists: it is.
    """
    from ..storage import refuse_existing

    refuse_existing(Path(path), folder=folder)
    return Path(path)


def _measure(k: dict[str, Any]) -> Needs:
    from .measure import _targets

    models = [m for m in (k["model"], k["against"]) if m]
    outputs = [_new(p) for p in _targets(k["out"])] + ([_new(k["log"], folder=True)] if k["log"] else [])
    needs = Needs(models, list(k["feature"] or ()), [Path(k["direction"])] if k["direction"] else [], outputs)
    _with_workers(needs, k["workers"])
    if k["judge"] and k["judge_model"]:
        _with_judge(needs, k["judge"])
    if k["task"]:
        from huggingface_hub import constants

        needs.network = True
        needs.shared += [Path(constants.HF_HOME) / part for part in ("hub", "datasets", "modules", "xet")]
        needs.why.append("for the data of --task")
    return needs


def _claims(k: dict[str, Any]) -> Needs | None:
    from ..jobs.claims import FILES_ONLY

    if k["suite"] == FILES_ONLY:
        return None
    return Needs([k["model"], k["against"]], [], [Path(k["card"])] if k["card"] else [], [_new(k["out"])] if k["out"] else [])


def _search(k: dict[str, Any]) -> Needs:
    out = Path(k["out"])
    if not (k["resume"] and (out / "search.json").is_file()):
        _new(out, folder=True)
    needs = Needs([k["model"]], [k["feature"], *(k["protect"] or ())], folders=[out])
    _with_workers(needs, k["workers"])
    return needs


def _chat(k: dict[str, Any]) -> Needs:
    files = [Path(p).expanduser() for p in (k["direction"], k["edit"]) if p]
    if k["edit"]:  # the directions that an Edit names lie beside it
        files += sorted(Path(k["edit"]).expanduser().absolute().parent.glob("*.safetensors"))
    return Needs([k["model"]], files=files, saves=True)


def _with_judge(needs: Needs, url: str) -> None:
    """The judge's port; where it has a name, the port of name servers as well, which are then asked by TCP."""
    import ipaddress

    from ..measure.judge import endpoint

    to = endpoint(url)
    needs.ports.append(to.port)
    needs.why.append("for the judge")
    try:
        ipaddress.ip_address(to.host)
    except ValueError:
        if to.host != "localhost":
            needs.ports.append(_DNS)
            needs.environment["RES_OPTIONS"] = "use-vc"


def _with_workers(needs: Needs, workers: str | None) -> None:
    """Ray starts programs, talks to them, keeps its files in one folder and what is exchanged in shared memory."""
    if workers:
        folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        needs.network = needs.execute = True
        needs.files += [p for p in (Path("/proc"), Path.home() / ".ray") if p.exists()]
        needs.shared += [folder, Path("/dev/shm")]
        needs.why.append("for the workers")


def _demo(k: dict[str, Any]) -> Needs:
    return Needs([k["model"]], [k["feature"]], folders=[k["out"]])


_NEEDS: dict[str, Callable[[dict[str, Any]], Needs | None]] = {
    "demo": _demo, "find": _find, "measure": _measure, "claims": _claims, "search": _search, "chat": _chat,
}  # fmt: skip
