"""What is made to be slow: the work of a scan grows with the bytes of a file, or ends at a stated limit with *could not tell*.

Nothing here is timed. Either the work is counted, or a file is scanned that took minutes when one part of the scan looked at
each thing once for every other thing.
"""

from __future__ import annotations

import ast
import contextlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bounded import RanAway, ends_within
from weightsmith.errors import LimitExceeded
from weightsmith.found import ScanRecord
from weightsmith.trust import gate, listing
from weightsmith.trust.items import Folder, Item
from weightsmith.trust.listing import list_folder
from weightsmith.trust.scanners import (
    facts,
    hdf5,
    keras,
    layout,
    ollama,
    other_formats,
    pickle_judge,
    pickle_machine,
    promised,
    python_code,
    ranks,
    remote,
    remote_keys,
    template_run,
    templates,
    workspace,
    yamls,
)
from weightsmith.trust.scanners.pickle_judge import Judge
from weightsmith.trust.scanners.pickle_machine import Machine
from weightsmith.trust.scanners.pickle_values import Cursor


def said(path: Path) -> tuple[str, set[str]]:
    """The verdict, and the rules above a note."""
    record: ScanRecord = gate.scan_path(path, "m")
    return record.verdict, {f.rule for f in record.findings if f.severity != "note"}


def ran(path: Path, data: bytes) -> tuple[Judge, str]:
    """A judge that a pickle was told to, and why the machine stopped."""
    path.write_bytes(data)
    judge = Judge("m.pkl")
    with path.open("rb") as file:
        stream = Machine(Cursor(file), judge).run()
    return judge, stream.limit


def safetensors(path: Path, names: list[str]) -> None:
    """A file of tensors of one byte."""
    header = {n: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, n in enumerate(names)}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\x05" * len(names))


def listed(path: Path) -> Folder:
    """The folder's files."""
    folder = Folder(path)
    assert not list(list_folder(path, folder))
    return folder


def test_the_limits_are_those_that_the_page_states() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scan.md").read_text().split("| what | at most | rule |")[1].split("\n\n")[0]
    stated = [int(line.split("|")[2].replace(",", "")) for line in page.splitlines()[2:]]
    assert stated == [pickle_judge.MOST_LOOKED, pickle_machine.MOST_ITEMS, listing.MOST_LINKED, facts.MOST_INDEXES,
                      facts.MOST_AGAIN, remote_keys.MOST_VALUES, remote_keys.MOST_ASKED, remote.LARGEST_CONFIG, layout.MOST_STRINGS,
                      templates.MOST_VALUES, yamls.MOST_AGAIN, python_code.MOST_ALL, remote.MOST_CELLS, other_formats.MOST_ARRAYS,
                      template_run.NODES, hdf5.MOST_TRIED, hdf5.MOST_WALKED, workspace.MOST, ranks.MOST]  # fmt: skip
    assert ollama.MOST == workspace.MOST
    assert {rule.strip() for line in page.splitlines()[2:] for rule in line.split("|")[3].split(",")} <= gate.all_rules().keys()


# -- pickles --------------------------------------------------------------------------------------------------------

_DICT = b"\x80\x04ccollections\nOrderedDict\nq\x000"


def test_one_long_tuple_is_not_looked_at_for_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_judge, "MOST_LOOKED", 10_000)
    judge, limit = ran(tmp_path / "m.pkl", _DICT + b"(" + b"N" * 1000 + b"tq\x010" + b"h\x00h\x01R0" * 1000 + b"N.")
    assert "10000 values" in limit
    assert judge._looked <= 11_000


def test_one_state_is_not_looked_at_for_every_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_judge, "MOST_LOOKED", 10_000)
    state = b"(" + b"".join(b"X\x04\0\0\0%04dK\x01" % i for i in range(1000)) + b"dq\x020"
    judge, limit = ran(tmp_path / "m.pkl", _DICT + state + b"h\x00)R" + b"h\x02b" * 1000 + b".")
    assert "10000 values" in limit
    assert judge._looked <= 10_001


def test_arguments_that_are_put_together_count_as_objects(tmp_path: Path) -> None:
    """NEWOBJ_EX makes a new tuple of both each time."""
    data = _DICT + b"(" + b"N" * 4000 + b"tq\x010}q\x020" + b"h\x00h\x01h\x02\x920" * 2000 + b"N."
    assert "objects" in ran(tmp_path / "m.pkl", data)[1]


def test_a_limit_on_what_is_looked_at_is_no_clean_verdict(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(_DICT + b"(" + b"N" * 5000 + b"tq\x010" + b"h\x00h\x01R0" * 1000 + b"N.")
    assert said(tmp_path) == ("could not tell", {"pickle-too-large"})


def test_equal_calls_without_arguments_are_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = Judge._refused
    monkeypatch.setattr(Judge, "_refused", lambda self, *a: asked.append(a) or real(self, *a))
    judge, _ = ran(tmp_path / "m.pkl", _DICT + b"h\x00)R0" * 1000 + b"N.")
    assert len(asked) == 1
    assert not list(judge.findings())


def test_a_refused_call_without_arguments_is_told_of_each_time(tmp_path: Path) -> None:
    judge, _ = ran(tmp_path / "m.pkl", b"\x80\x04ccopyreg\n__newobj__\nq\x000" + b"h\x00)R0" * 5 + b"N.")
    assert [f.rule for f in judge.findings()] == ["pickle-unlisted-call"] * 5


# -- settings and tokenizers --------------------------------------------------------------------------------------------


def test_a_million_banned_tokens_are_not_compared_with_each_other(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 1000}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": list(range(100_000))}))
    assert said(tmp_path) == ("suspicious", {"settings-steer"})


def test_added_tokens_beyond_the_embeddings_are_looked_up(tmp_path: Path) -> None:
    header = {"model.embed_tokens.weight": {"dtype": "U8", "shape": [2, 8], "data_offsets": [0, 16]}}
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(range(16)))
    (tmp_path / "config.json").write_text("{}")
    added = [{"id": 50_000 + i, "content": f"<t{i}>", "special": True} for i in range(20_000)]
    model = {"type": "BPE", "vocab": {f"w{i}": i for i in range(50_000)}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    assert "token-without-embedding" in said(tmp_path)[1]


# -- names of tensors, index files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[0, 5], [3], [0, 1, 2], [0, 99_999], [7, 2, 9_000], []])
def test_gaps_are_the_same_as_counted_one_by_one(layers: list[int]) -> None:
    top = max(layers, default=0)
    assert promised._gaps(layers) == [i for i in range(min(top, 4096)) if i not in layers][:40]


def test_layers_of_many_kinds_are_compared_with_the_most_common_ones(tmp_path: Path) -> None:
    names = [f"layers.{i}.w{i // 2}_{j}" for i in range(6000) for j in range(4)]
    safetensors(tmp_path / "model.safetensors", names)
    (tmp_path / "config.json").write_text("{}")
    assert said(tmp_path)[0] == "clean"


def test_too_many_index_files_are_no_clean_verdict(tmp_path: Path) -> None:
    for i in range(facts.MOST_INDEXES + 1):
        (tmp_path / f"m{i}.index.json").write_text(json.dumps({"weight_map": {"a": f"m{i}.safetensors"}}))
    verdict, rules = said(tmp_path)
    assert verdict in ("could not tell", "broken")
    assert "scanner-failed" in rules


def test_index_files_that_list_one_file_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        (tmp_path / f"m{i}.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    folder = listed(tmp_path)
    folder.declared["model.safetensors"] = {f"t{i}": ("F32", (1,)) for i in range(10)}
    monkeypatch.setattr(facts, "MOST_AGAIN", 15)
    for _ in range(2):  # the second scanner that asks hears the same
        with pytest.raises(LimitExceeded, match="20 tensors once more"):
            facts.places(folder)


# -- JSON --------------------------------------------------------------------------------------------------------------------


def test_strings_of_a_value_are_looked_for_within_a_limit() -> None:
    wide = remote_keys.Pairs((f"k{i}", 1) for i in range(remote_keys.MOST_VALUES))
    with pytest.raises(LimitExceeded):
        list(remote_keys.asks("config.json", remote_keys.Pairs([("auto_map", wide)])))


def test_values_inside_values_are_not_written_again_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    value: Any = ["x" * 100] * 10_000
    for _ in range(100):
        value = {"class_name": "Dense", "module": "os", "config": {"inner": value}}
    parts = []
    real = json.JSONEncoder.iterencode
    monkeypatch.setattr(json.JSONEncoder, "iterencode", lambda self, o, **k: (parts.append(p) or p for p in real(self, o, **k)))
    found = list(keras.scan_config(value, "config.json"))
    assert len(found) == 100
    assert sum(map(len, parts)) < 100 * 1000
    assert all(f.evidence == json.dumps(v)[:400] for f, v in zip(found[-1:], [{"class_name": "Dense", "module": "os", "config": {
        "inner": ["x" * 100] * 10_000}}], strict=True))  # fmt: skip


def test_places_in_deep_values_stay_short() -> None:
    value: Any = {"class_name": "Dense", "module": "os", "config": {}}
    for _ in range(300):
        value = {"k" * 60: value}
    assert [len(f.place) for f in keras.scan_config(value, "config.json")] == [200]


# -- Python -------------------------------------------------------------------------------------------------------------------


def test_all_python_files_share_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        (tmp_path / f"m{i}.py").write_text("a = 1\n" * 100)
    parsed = []
    real = ast.parse
    monkeypatch.setattr(python_code.ast, "parse", lambda *a: parsed.append(a) or real(*a))
    monkeypatch.setattr(remote, "MOST_ALL", 500)
    found = list(remote.RemoteCode().scan_folder(listed(tmp_path)))
    assert len(parsed) == 2
    assert [f.rule for f in found] == ["python-code", "python-not-read", "python-not-read", "python-not-read"]


def test_calls_inside_calls_are_walked_within_a_limit() -> None:
    code = python_code.read_code(b"exec(" * 60 + b"[" + b"1," * 20_000 + b"]" + b")" * 60)
    assert code.error.startswith("more syntax than is read")


def test_modules_that_no_group_lists_are_not_asked_for_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = python_code._group
    monkeypatch.setattr(python_code, "_group", lambda name: asked.append(name) or real(name))
    source = "".join(f"from m{i} import *\n" for i in range(200)) + "from os import *\n" + "".join(f"n{i}()\n" for i in range(200))
    code = python_code.read_code((source + "system('x')\n").encode())
    assert [(c.name, c.group) for c in code.calls] == [("os.system", "starts programs")]
    assert len(asked) < 2000


def test_a_long_chain_of_calls_keeps_what_is_called_in_it() -> None:
    code = python_code.read_code(b"import subprocess\nsubprocess.run('x')" + b".b()" * 300)
    assert "subprocess.run" in {c.name for c in code.calls if c.group == "starts programs"}


def test_a_notebook_of_too_many_cells_is_no_clean_verdict(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": f"a = {i}"} for i in range(remote.MOST_CELLS + 1)]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert said(tmp_path) == ("could not tell", {"python-not-read"})


# -- many of one thing ----------------------------------------------------------------------------------------------------------


def test_more_arrays_in_one_file_than_are_read(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes((b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header) * 1001)
    assert said(tmp_path) == ("could not tell", {"scanner-failed"})


def test_lists_of_raw_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    for i in range(20):
        (tmp_path / f"params_shard_{i}.bin").write_bytes(b"\xfe\xfd\x00\xff" * (i + 1))
        records.append({"dataPath": f"params_shard_{i}.bin", "nbytes": 4 * (i + 1)})
    (tmp_path / "ndarray-cache.json").write_text(json.dumps({"records": records}))
    asked = []
    real = Folder.json_object
    monkeypatch.setattr(Folder, "json_object", lambda self, name: asked.append(name) or real(self, name))
    assert not list(other_formats.OtherFormats().scan_folder(listed(tmp_path)))
    assert asked.count("ndarray-cache.json") == 1


def test_a_folder_is_resolved_once_for_all_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        (tmp_path / f"f{i}.txt").write_text("hello")
    asked: list[Path] = []
    real = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda self, **k: asked.append(self) or real(self, **k))
    folder = listed(tmp_path)
    assert len(asked) == 1
    assert all(item.read() == b"hello" for item in folder.items.values())


def test_progress_is_not_summed_up_for_every_file(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"f{i}.txt").write_text("hello")
    told: list[tuple[str, int, int]] = []
    gate.scan_path(tmp_path, "m", progress=lambda *a: told.append(a))
    assert told[-1][1:] == (150, 150)
    assert [t[1] for t in told] == sorted(t[1] for t in told)


def test_files_and_tensors_travel_in_batches(tmp_path: Path) -> None:
    safetensors(tmp_path / "model.safetensors", [f"t{i}" for i in range(1201)])
    from weightsmith.trust import child

    events: list[dict[str, Any]] = []
    child.scan_events({"path": str(tmp_path).encode().hex()}, events.append)
    assert [len(e["tensors"]) for e in events if "tensors" in e] == [500, 500, 201]
    record = gate.scan_path(tmp_path, "m")
    assert len(record.tensors) == 1201
    assert [f.name for f in record.files] == ["model.safetensors"]


def test_members_are_told_apart_without_asking_every_scanner_again(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for i in range(300):
            archive.writestr(zipfile.ZipInfo(f"f{i}.txt"), b"hello")
    assert said(tmp_path)[0] == "clean"
    assert Item("a!b/c.txt", 0, lambda: None).basename == "c.txt"  # type: ignore[arg-type, return-value]


# -- patterns and lists of ranks ------------------------------------------------------------------------------------


def test_long_patterns_and_lists_are_read_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take time with the square of its length is bounded; a list of too many ranks could not be told."""
    from weightsmith.trust.scanners import regexes

    monkeypatch.setattr(regexes, "LONGEST", 10)
    assert regexes.punctuation("(?=[.])") == set()
    assert regexes.punctuation("(?=[.])" + "a" * 10) == {"."}
    monkeypatch.setattr(ranks, "MOST", 3)
    (tmp_path / "long.tiktoken").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    assert not list(ranks.check_ranks(listed(tmp_path)))
    (tmp_path / "long.tiktoken").write_text("IQ== 0\nIg== 1\nIw== 2\nJA== 3\n")
    assert [f.rule for f in ranks.check_ranks(listed(tmp_path))] == ["ranks-too-large"]


# -- the bound that other tests put on work ---------------------------------------------------------------------------


def test_what_runs_away_is_stopped_and_no_scan_takes_it_for_a_finding() -> None:
    def run_away(count: int = 0) -> None:
        with contextlib.suppress(Exception):
            while count >= 0:
                count += 1

    with pytest.raises(RanAway), ends_within(0.1):
        run_away()
    with ends_within(0.1):
        run_away(-1)
