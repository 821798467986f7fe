"""Tables as the pandas that is installed pickles them hold nothing that a scan has to warn of."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from weightsmith.trust.gate import scan_path


def tables() -> dict[str, Any]:
    """One of each kind of column and index."""
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2024-01-01", periods=4)
    several = pandas.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", "y"])
    return {
        "plain": pandas.DataFrame({"a": [1, 2], "b": ["x", None], "c": [1.0, 2.0], "d": [True, False]}),
        "dates": pandas.DataFrame({"a": range(4), "b": days}, index=days),
        "zone": pandas.Series(range(4), index=days.tz_localize("Europe/Berlin")),
        "categories": pandas.DataFrame({"a": pandas.Categorical(["a", "b", "a"])}),
        "levels": pandas.DataFrame({"v": range(4)}, index=several),
        "periods": pandas.Series(range(4), index=pandas.period_range("2024-01", periods=4, freq="M")),
        "intervals": pandas.Series(pandas.interval_range(0, 4)),
        "nullable": pandas.DataFrame({"i": pandas.array([1, None], dtype="Int64"), "s": pandas.array(["a", None], dtype="string")}),
        "single": [pandas.Timestamp("2024"), pandas.Timedelta("1D"), pandas.NaT, pandas.NA, pandas.Interval(0, 1),
                   pandas.offsets.BDay()],
        "sparse": pandas.DataFrame({"s": pandas.arrays.SparseArray([0, 0, 1])}),
    }


@pytest.mark.parametrize("name", ["plain", "dates", "zone", "categories", "levels", "periods", "intervals", "nullable", "single",
                                  "sparse"])  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tables_are_clean(name: str, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "table.pkl").write_bytes(pickle.dumps({"table": tables()[name]}, protocol))
    record = scan_path(tmp_path, "model")
    assert record.verdict == "clean", [(f.rule, f.message) for f in record.findings]


def test_tables_in_a_bundle_of_joblib_are_clean(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(tables(), tmp_path / "bundle.joblib")
    record = scan_path(tmp_path, "model")
    assert record.verdict == "clean", [(f.rule, f.message) for f in record.findings]
