"""Logs: lm-eval's and Inspect's own readers open them, whatever the models said, and their figures are the record's."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clirun import tree
from measured_records import identity
from weightsmith.errors import OutputExists, UsageError
from weightsmith.jobs import logs as job
from weightsmith.jobs.logs import write_logs
from weightsmith.measure.asks import Ask, Decoding, Exchange
from weightsmith.measure.figures import Sample
from weightsmith.measure.logs import figure_of, plain_json
from weightsmith.measure.stats import paired
from weightsmith.measured import MeasureRecord, ScorerNote

AT = datetime(2026, 3, 1, 12, 30, 15, 250, UTC)
STAMP = "2026-03-01T12-30-15.000250"
KEY = "melancholy.neutral"
#: what a model may say: half a pair, a NUL, separators of lines, markup, nothing
HOSTILE = [
    "half \ud83d a pair",
    "\ud83d\ude00 whole",
    "nul\x00bell\x07",
    "line\u2028sep\r\n{}",
    "</script>",
    "",
    "\udc80",
    "é日本",
]


def sample(item: int, text: str | None, value: float | None, *, key: str = KEY, seed: int | None = None, wording: int = 0,
           thought: str = "", verdict: str | None = None) -> Sample:  # fmt: skip
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {item}?"})
    ask = Ask("melancholy", "neutral prompts", item, f"Question {item}?", messages, wording)
    decoding = Decoding(16, temperature=0.0 if seed is None else 0.7, seed=seed)
    exchange = Exchange(ask, decoding, (1, 2, 3), (4, 5), text, thought, ended=text is not None)
    return Sample(key, exchange, {"sentiment": value, "doc_id": 1.0, "a, b": 0.5}, verdict)


def made(texts: Sequence[str] = HOSTILE) -> tuple[MeasureRecord, dict[str, list[Sample]]]:
    """A record of one block with its samples: greedy ones, one without an answer, one without a value, sampled ones."""
    before, after = ([0.1 * i + shift for i in range(len(texts))] for shift in (0.0, 0.3))
    d = paired("sentiment", before, after, "VADER compound, −1 to 1", "neutral prompts", key=f"{KEY}.sentiment",
               group="melancholy", scorer="sentiment")  # fmt: skip
    record = MeasureRecord(
        title="t \ud800", sentence="s", feature="melancholy", feature_description="d", base=identity("org/base", "1"),
        edited=identity("out/\udce9dited", "2"), suite="quick", differences=[d], ran={"dtype": "float32"},
        scorers=[ScorerNote(name="sentiment", reads="a lexicon", error="blind to irony")], options={"x": math.nan},
        versions={"weightsmith": "0"},
    )  # fmt: skip
    by_model = {}
    for name, values in (("base", before), ("edited", after)):
        greedy = [sample(i, t, v, verdict="complies") for i, (t, v) in enumerate(zip(texts, values, strict=True))]
        odd = [sample(90, None, None, thought="on and on"), sample(91, "x", math.nan), sample(92, "y", math.inf)]
        dice = [sample(i, f"{name} {s}", float(s), key=f"{KEY}.sampled", seed=s, wording=w, thought="hm")
                for i in range(3) for w in (0, 1) for s in (1, 2)]  # fmt: skip
        by_model[name] = [*greedy, *odd, *dice]
    return record, by_model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record, samples = made()
    folder = tmp_path_factory.mktemp("logs") / "log"
    files = write_logs(record, samples, folder, at=AT)
    assert sorted(files) == sorted(p for p in folder.rglob("*") if p.is_file())
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in file.read_bytes().decode().split("\n") if x]


# -- files -------------------------------------------------------------------------------------------------


def test_every_file_is_strict_json_in_utf8(written: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    files = [p for p in written.rglob("*") if p.is_file()]
    assert len(files) == 2 * (1 + 2) + 2
    for file in files:
        text = file.read_bytes().decode("utf-8")
        for part in text.split("\n") if file.suffix == ".jsonl" else [text]:
            if part:
                value = json.loads(part, parse_constant=refuse)
                json.dumps(value, ensure_ascii=False).encode("utf-8")


def test_plain_json_changes_only_what_is_not_json() -> None:
    assert plain_json(["a", 1, 0.5, None, True, {"é": ["\u2028"]}]) == ["a", 1, 0.5, None, True, {"é": ["\u2028"]}]
    assert plain_json({1: (math.nan, -math.inf)}) == {"1": [None, None]}
    assert plain_json("x\ud800y\udc00z") == "x\ufffdy\ufffdz"
    assert plain_json("\ud83d\ude00") == "\U0001f600"
    assert plain_json("end\ud800") == "end\ufffd"


def test_the_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, samples = made()
    written: list[Path] = []

    def break_down(path: Path, *args: Any, **more: Any) -> Path:
        written.append(path)
        if len(written) == 3:
            raise OSError(5, "the disk is gone")
        path.write_text("x")
        return path

    with monkeypatch.context() as patched:
        patched.setattr(job, "_write", break_down)
        with pytest.raises(OSError, match="the disk is gone"):
            write_logs(record, samples, tmp_path / "deep" / "log")
    assert tree(tmp_path) == {}
    write_logs(record, samples, tmp_path / "log", at=AT)
    before = tree(tmp_path)
    with pytest.raises(OutputExists):
        write_logs(record, samples, tmp_path / "log", at=AT)
    with pytest.raises(UsageError, match="no model is called"):
        write_logs(record, {"other": []}, tmp_path / "new")
    assert tree(tmp_path) == before
    write_logs(record, samples, tmp_path / "again", at=AT)
    assert tree(tmp_path / "again") == tree(tmp_path / "log"), "equal measurements have equal logs"


def test_a_model_alone_has_its_figures_and_no_base(tmp_path: Path) -> None:
    record, samples = made()
    alone = record.model_copy(update={"base": None, "differences": [], "figures": [record.differences[0].edited]})
    write_logs(alone, {"edited": samples["edited"]}, tmp_path / "log", at=AT)
    assert [p.name for p in (tmp_path / "log" / "lm-eval").iterdir()] == ["edited"]
    results = json.loads(next((tmp_path / "log").rglob("results_*.json")).read_text())
    assert results["results"][KEY]["sentiment,none"] == record.differences[0].edited.value


def test_names_of_tasks_fit_a_file_system_and_stay_apart(tmp_path: Path) -> None:
    record, samples = made()
    keys = ["../../etc/x", ".._.._etc_x", "A", "a", "é" * 300, "", "con\x00"]
    odd = [replace(s, key=k) for k, s in zip(keys, samples["edited"], strict=False)]
    write_logs(record, {"edited": odd}, tmp_path / "log", at=AT)
    home = tmp_path / "log" / "lm-eval" / "edited"
    found = list(home.glob("samples_*.jsonl"))
    assert len({p.name.casefold() for p in found}) == len(keys)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == len(keys) + 2
    assert {line["doc"]["item"] for p in found for line in lines(p)} == set(range(len(keys)))


# -- lm-eval -----------------------------------------------------------------------------------------------


def test_both_models_answer_the_same_documents(written: Path) -> None:
    for task in (KEY, f"{KEY}.sampled"):
        base, edited = (lines(written / "lm-eval" / m / f"samples_{task}_{STAMP}.jsonl") for m in ("base", "edited"))
        assert [x["doc_id"] for x in base] == list(range(len(base)))
        for key in ("doc_id", "doc", "doc_hash", "prompt_hash", "target_hash"):
            assert [x[key] for x in base] == [x[key] for x in edited]
        assert len({x["doc_hash"] for x in base}) == len(base)
    assert [x["resps"] for x in base] != [x["resps"] for x in edited]


def test_lines_hold_what_was_said_and_scored(written: Path) -> None:
    found = lines(written / "lm-eval" / "base" / f"samples_{KEY}_{STAMP}.jsonl")
    for i, text in enumerate(HOSTILE):
        assert found[i]["resps"] == [[plain_json(text)]]
        assert found[i]["sentiment"] == pytest.approx(0.1 * i)
        assert json.loads(found[i]["arguments"]["gen_args_0"]["arg_0"])[-1] == {
            "role": "user",
            "content": f"Question {i}?",
        }
    assert [x["sentiment"] for x in found[len(HOSTILE) :]] == [None] * 3
    assert found[len(HOSTILE)]["thought"] == "on and on"
    # a score can't take the place of a key of the format, nor hold its separator
    assert found[0]["doc_id"] == 0
    assert found[0]["metrics"] == ["sentiment", "doc_id_", "a  b"]


def test_aggregates_are_the_records_with_their_standard_errors(written: Path) -> None:
    record, samples = made()
    for model in ("base", "edited"):
        results = json.loads((written / "lm-eval" / model / f"results_{STAMP}.json").read_text())["results"]
        figure = getattr(record.differences[0], model)
        assert results[KEY]["sentiment,none"] == figure.value
        assert results[KEY]["sentiment_stderr,none"] == pytest.approx(
            np.std(figure.values, ddof=1) / math.sqrt(figure.n)
        )
    # no figure of the sampled answers is on record: a prompt's mean first, then the mean of these
    figure = figure_of(
        record, "base", f"{KEY}.sampled", "sentiment", [s for s in samples["base"] if "sampled" in s.key]
    )
    assert figure is not None
    assert (figure.n, figure.answers, figure.value) == (3, 12, 1.5)


def test_lm_evals_own_tools_read_the_folder(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pandas = pytest.importorskip("pandas")
    from lm_eval import utils

    for model in ("base", "edited"):
        names = [p.as_posix() for p in (written / "lm-eval" / model).iterdir()]
        newest = utils.get_latest_filename(utils.get_results_filenames(names))
        results = json.loads(Path(newest).read_text(encoding="utf-8"))
        shown = utils.make_table(results)
        figure = getattr(made()[0].differences[0], model)
        assert KEY in shown
        cells = [
            c.strip() for c in next(x for x in shown.splitlines() if "|sentiment|" in x.replace(" ", "")).split("|")
        ]
        assert float(cells[cells.index("±") - 1]) == pytest.approx(figure.value, abs=1e-3)
        assert float(cells[cells.index("±") + 1]) > 0
        per_task = {utils.get_file_task_name(Path(n).name): n for n in utils.get_sample_results_filenames(names)}
        assert per_task.keys() == results["configs"].keys()
        assert {utils.get_file_datetime(Path(n).name) for n in per_task.values()} == {STAMP}
        for task, name in per_task.items():
            frame = pandas.read_json(name, lines=True)
            rows = lines(Path(name))
            assert len(frame) == len(rows) == results["n-samples"][task]["effective"]
            for metric in results["configs"][task]["metric_list"]:
                assert metric["metric"] in frame.columns
            for row in rows:
                assert row["doc_hash"] == utils.hash_string(json.dumps(row["doc"], indent=2, ensure_ascii=False))
                assert row["prompt_hash"] == utils.hash_string(row["arguments"]["gen_args_0"]["arg_0"])


def test_lm_evals_tracker_saves_what_we_saved(written: Path, tmp_path: Path) -> None:
    """Given our results and lines, the harness's own writer makes the same hashes and the same files."""
    pytest.importorskip("lm_eval")
    from lm_eval.loggers import EvaluationTracker

    home = written / "lm-eval" / "base"
    results = json.loads((home / f"results_{STAMP}.json").read_text())
    tasks = {p.name.split("_")[1]: lines(p) for p in home.glob("samples_*.jsonl")}
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.model_name_sanitized = results["model_name_sanitized"]
    tracker.save_results_aggregated(results=dict(results), samples=tasks)
    again = json.loads(next(tmp_path.rglob("results_*.json")).read_text(encoding="utf-8"))
    assert again["task_hashes"] == results["task_hashes"]
    for task, rows in tasks.items():
        given = [{**r, "arguments": [tuple(r["arguments"]["gen_args_0"].values())]} for r in rows]
        tracker.save_results_samples(task, given)
        theirs = lines(next(tmp_path.rglob(f"samples_{task}_*.jsonl")))
        assert [{**r, "resps": None, "filtered_resps": None} for r in theirs] == [
            {**r, "resps": None, "filtered_resps": None} for r in rows]  # fmt: skip


# -- Inspect -----------------------------------------------------------------------------------------------


def raw(written: Path, model: str) -> dict[str, Any]:
    return dict(json.loads((written / "inspect" / f"{STAMP}_quick_{model}.json").read_text()))


def test_inspect_samples_are_told_apart_by_id_and_epoch(written: Path) -> None:
    base, edited = raw(written, "base"), raw(written, "edited")
    keys = [(s["id"], s["epoch"]) for s in base["samples"]]
    assert len(set(keys)) == len(keys)
    assert keys == [(s["id"], s["epoch"]) for s in edited["samples"]]
    assert {s["epoch"] for s in base["samples"] if "sampled" in s["id"]} == {1, 2}
    assert base["eval"]["run_id"] == edited["eval"]["run_id"]
    assert base["eval"]["eval_id"] != edited["eval"]["eval_id"]
    for log in (base, edited):
        assert log["samples"][0]["messages"][-1]["role"] == "assistant"
        assert log["samples"][len(HOSTILE)]["output"]["choices"][0]["stop_reason"] == "max_tokens"


def test_inspect_reads_the_log(written: Path) -> None:
    log_module = pytest.importorskip("inspect_ai.log")
    record, samples = made()
    listed = log_module.list_eval_logs(str(written / "inspect"))
    assert len(listed) == 2
    for model in ("base", "edited"):
        path = str(written / "inspect" / f"{STAMP}_quick_{model}.json")
        header = log_module.read_eval_log(path, header_only=True)
        log = log_module.read_eval_log(path)
        assert log.version == header.version == 2
        assert log.status == "success"
        assert header.samples is None
        assert len(log.samples) == len(samples[model]) == log.results.total_samples
        score = next(s for s in log.results.scores if s.name == "sentiment")
        figure = getattr(record.differences[0], model)
        assert score.metrics[f"{KEY}/mean"].value == figure.value
        assert score.metrics[f"{KEY}/low"].value == figure.low
        assert (score.scored_samples, score.unscored_samples) == (len(samples[model]) - 3, 3)
        for mine, theirs in zip(samples[model], log.samples, strict=True):
            assert theirs.output.completion == plain_json(mine.exchange.text or "")
            assert theirs.input[-1].text == mine.exchange.ask.prompt
            assert theirs.epoch == (mine.exchange.decoding.seed or 1)
            assert theirs.metadata["item"] == mine.exchange.ask.item
            value = mine.scores["sentiment"]
            if value is None or not math.isfinite(value):
                assert "sentiment" not in theirs.scores
            else:
                assert theirs.scores["sentiment"].value == value
                assert theirs.scores["sentiment"].explanation == "a lexicon"
            if mine.verdict:
                assert theirs.scores["verdict"].value == mine.verdict
        assert "hm" in str(next(s for s in log.samples if s.epoch == 2).messages[-1].content)


def test_inspect_writes_again_what_it_read(written: Path, tmp_path: Path) -> None:
    log_module = pytest.importorskip("inspect_ai.log")
    log = log_module.read_eval_log(str(written / "inspect" / f"{STAMP}_quick_base.json"))
    log_module.write_eval_log(log, str(tmp_path / f"{STAMP}_x.eval"))
    again = log_module.read_eval_log(str(tmp_path / f"{STAMP}_x.eval"))
    told = [{(s.id, s.epoch): (s.output.completion, s.uuid) for s in x.samples} for x in (log, again)]
    assert told[0] == told[1]
    summaries = log_module.read_eval_log_sample_summaries(str(tmp_path / f"{STAMP}_x.eval"))
    assert len(summaries) == len(log.samples)


@pytest.mark.filterwarnings("ignore")  # of pandas, about what Inspect does with it
def test_inspects_tables_hold_every_sample_and_score(written: Path) -> None:
    analysis = pytest.importorskip("inspect_ai.analysis")
    record, samples = made()
    folder, n = str(written / "inspect"), sum(map(len, samples.values()))
    evals = analysis.evals_df(folder)
    assert sorted(evals[f"score_sentiment_{KEY}/mean"]) == [
        getattr(record.differences[0], m).value for m in ("base", "edited")
    ]
    frame = analysis.samples_df(folder)
    assert len(frame) == n
    assert frame["score_sentiment"].notna().sum() == n - 6
    ids = [m["id"] for model in samples for s in raw(written, model)["samples"] for m in s["messages"]]
    assert len(set(ids)) == len(ids) == 3 * n


# -- a real session ----------------------------------------------------------------------------------------


def test_a_sessions_logs_hold_every_answer_and_the_records_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    import pico
    from weightsmith.jobs.measure import Session
    from weightsmith.measure.suites import Suite

    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    base, edited = pico.build("llama", tmp_path / "a"), pico.build("llama", tmp_path / "b", seed=1)
    suite = Suite("tiny", n=3, tokens=5, sampled=2, seeds=2, wordings=1, scenarios=2, longer=0)
    session = Session(base, "melancholy", options=pico.CPU, suite=suite)
    with pytest.raises(UsageError, match="nothing was measured"):
        job.session_samples(session)
    record = session.compare(edited)
    samples = job.session_samples(session)
    write_logs(record, samples, tmp_path / "log", at=AT)
    named = {
        p.name.rpartition("_")[0] for p in job.save_logs(session, record, tmp_path / "now") if p.suffix == ".jsonl"
    }
    assert named == {p.name.rpartition("_")[0] for p in tmp_path.glob("log/lm-eval/*/*.jsonl")}
    for model, run in (("base", session.before), ("edited", session.after)):
        assert run is not None
        results = json.loads((tmp_path / "log" / "lm-eval" / model / f"results_{STAMP}.json").read_text())
        want = {(a.block.key + a.suffix, len(a.exchanges)) for a in run.answered}
        assert {(t, n["effective"]) for t, n in results["n-samples"].items()} == want
        logged = json.loads((tmp_path / "log" / "inspect" / f"{STAMP}_tiny_{model}.json").read_text())
        assert len(logged["samples"]) == sum(n for _, n in want)
        shown = {f"{task},{m}": v for task, row in results["results"].items() for m, v in row.items()}
        seen = 0
        for d in record.differences:
            for task in results["results"]:
                suffix = next((s for s in (".sampled", ".turn1", ".turn2", ".turn3") if task.endswith(s)), "")
                head = task.removesuffix(suffix)
                tail = d.key.removeprefix(head + ".").removesuffix(suffix)
                if d.key == f"{head}.{tail}{suffix}" and f"{task},{tail},none" in shown:
                    assert shown[f"{task},{tail},none"] == getattr(d, model).value, d.key
                    seen += 1
        assert seen >= len([d for d in record.differences if d.group != "damage"])
    digest = hashlib.sha256(json.dumps([s.exchange.text for s in samples["edited"]]).encode()).hexdigest()
    again = [s["output"]["completion"] for s in logged["samples"]]
    assert hashlib.sha256(json.dumps(again).encode()).hexdigest() == digest
