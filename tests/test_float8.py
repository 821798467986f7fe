"""8-bit floats against torch's own dtypes: every code, every tie, and what lies beyond the ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from weightsmith.errors import FormatError
from weightsmith.formats import float8

torch = pytest.importorskip("torch")
TORCH = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
         "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu}  # fmt: skip
CODES = np.arange(256, dtype=np.uint8)


#: the largest magnitude that still rounds to a finite value
BORDER = {"F8_E4M3": np.float32(464), "F8_E5M2": np.nextafter(np.float32(61440), np.float32(0)),
          "F8_E4M3FNUZ": np.nextafter(np.float32(248), np.float32(0)),
          "F8_E5M2FNUZ": np.nextafter(np.float32(61440), np.float32(0))}  # fmt: skip


def same(ours: Any, values: Any, dtype: str) -> bool:
    """Whether the codes are torch's, and not finite just where a value lies beyond the border or is NaN; torch itself
    saturates some dtypes in some of its releases."""
    inside = np.abs(values) <= BORDER[dtype]
    theirs = torch.from_numpy(values[inside].copy()).to(TORCH[dtype]).view(torch.uint8).numpy()
    return bool((ours[inside] == theirs).all() and (np.isfinite(float8.table(dtype)[ours]) == inside).all())


@pytest.mark.parametrize("dtype", float8.DECODED)
def test_every_code_has_torchs_value(dtype: str) -> None:
    theirs = torch.from_numpy(CODES.copy()).view(TORCH[dtype]).to(torch.float32).numpy()
    ours = float8.decode(CODES, dtype)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)
    signed = ~np.isnan(ours)
    np.testing.assert_array_equal(np.signbit(ours[signed]), np.signbit(theirs[signed]))
    assert [float8.finite(CODES[i : i + 1], dtype) for i in range(256)] == list(np.isfinite(theirs))


@pytest.mark.parametrize("dtype", float8.ENCODED)
def test_every_value_encodes_to_its_own_code(dtype: str) -> None:
    values = float8.decode(CODES, dtype)
    good = np.isfinite(values)
    np.testing.assert_array_equal(float8.encode(values, dtype)[good], CODES[good])
    assert np.isnan(float8.decode(float8.encode(values[np.isnan(values)], dtype), dtype)).all()


def neighbours(dtype: str) -> Any:
    """Every finite value, every midpoint of two, and the fp32 numbers just beside all of them, either sign; the
    midpoint past the largest is the border of overflow."""
    values = float8.decode(CODES[:128], dtype).astype(np.float64)
    values = np.sort(values[np.isfinite(values)])
    values = np.append(values, 2 * values[-1] - values[-2])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2]).astype(np.float32)
    points = np.concatenate(
        [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    )
    return np.concatenate([points, -points])


@pytest.mark.parametrize("dtype", float8.ENCODED)
def test_ties_and_their_neighbours_round_as_torch_does(dtype: str) -> None:
    values = neighbours(dtype)
    assert same(float8.encode(values, dtype), values, dtype)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_a_tie_goes_to_the_even_code(dtype: str) -> None:
    values = float8.decode(CODES[:128], dtype)
    last = int(np.flatnonzero(np.isfinite(values))[-1])
    middle = (values[:last].astype(np.float64) + values[1 : last + 1]) / 2
    codes = float8.encode(middle.astype(np.float32), dtype)
    assert (codes % 2 == 0).all()
    assert (np.abs(codes.astype(int) - np.arange(last)) <= 1).all()


@pytest.mark.parametrize(("dtype", "largest"), [
    ("F8_E4M3", 448), ("F8_E5M2", 57344), ("F8_E4M3FNUZ", 240), ("F8_E5M2FNUZ", 57344),
])  # fmt: skip
def test_overflow_is_never_a_finite_value(dtype: str, largest: float) -> None:
    just = np.array([BORDER[dtype], -BORDER[dtype]])
    np.testing.assert_array_equal(float8.decode(float8.encode(just, dtype), dtype), [largest, -largest])
    first = np.nextafter(BORDER[dtype], np.float32(np.inf))
    beyond = np.array([first, 1e30, np.inf, np.finfo(np.float32).max], np.float32)
    for value in (*beyond, *-beyond, np.float32(np.nan)):
        assert not float8.finite(float8.encode(np.array([value], np.float32), dtype), dtype), value
    if dtype == "F8_E5M2":
        np.testing.assert_array_equal(float8.decode(float8.encode(-beyond, dtype), dtype), [-np.inf] * 4)


@pytest.mark.parametrize("dtype", float8.ENCODED)
@given(bits=arrays.arrays(np.uint32, st.integers(0, 64)))
@settings(max_examples=60, deadline=None)
def test_any_bits_round_as_torch_does(dtype: str, bits: Any) -> None:
    values = bits.view(np.float32)
    assert same(float8.encode(values, dtype), values, dtype)


@pytest.mark.parametrize("dtype", float8.ENCODED)
def test_blocks_and_shapes_do_not_matter(dtype: str) -> None:
    dice = np.random.default_rng(0)
    values = (dice.standard_normal((7, float8.BLOCK // 5)) * 10.0 ** dice.uniform(-8, 4, (7, 1))).astype(np.float32)
    codes = float8.encode(values, dtype)
    assert codes.shape == values.shape
    assert same(codes, values, dtype)
    np.testing.assert_array_equal(float8.encode(values[:, ::3], dtype), codes[:, ::3])


def test_refusals() -> None:
    with pytest.raises(FormatError, match="F8_E8M0"):
        float8.encode(np.zeros(2, np.float32), "F8_E8M0")
    with pytest.raises(FormatError, match="float64"):
        float8.encode(np.zeros(2), "F8_E4M3")
    with pytest.raises(FormatError, match="BF16"):
        float8.decode(CODES, "BF16")
