"""Directions: the algebra, the file, and what a direction may be used on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from weightsmith.direction import Direction, is_direction, load_direction
from weightsmith.errors import DirectionModelMismatch, NonFinite, RecipeError, ShapeMismatch, WeightsmithError
from weightsmith.formats.safetensors import read_header
from weightsmith.records import Candidate, DirectionMeta, LayerQuality, ModelIdentity
from weightsmith.storage import cache_dir

LAYERS, WIDTH = [1, 2, 4], 5
MODEL = ModelIdentity(ref="m", digest="a" * 64, family="llama", n_layers=6, d_model=WIDTH)
#: numbers whose sums and products stay far from the ends of fp32
NUMBER = st.floats(-1e3, 1e3, width=32).map(lambda v: 0.0 if abs(v) < 1e-3 else v)
VECTORS = nps.arrays(np.float32, (len(LAYERS), WIDTH), elements=NUMBER)


def meta(**changes: Any) -> DirectionMeta:
    given: dict[str, Any] = {
        "feature": "joy", "feature_digest": "0" * 64, "model": MODEL, "method": "difference-in-means",
        "site": "response_mean", "point": "resid_post", "layers": LAYERS, "prompts_digest": "1" * 64, "n": {"extract": 8},
    }  # fmt: skip
    return DirectionMeta(**(given | changes))


def direction(vectors: Any, **changes: Any) -> Direction:
    values = np.asarray(vectors, np.float32)
    about = meta(**changes)
    norms = np.linspace(1, 2, len(about.layers), dtype=np.float32)
    return Direction(values, norms, values + 1, values - 1, about)


def random(seed: int = 0, **changes: Any) -> Direction:
    return direction(np.random.default_rng(seed).standard_normal((len(LAYERS), WIDTH)), **changes)


def close(a: Direction, b: Direction, tolerance: float = 1e-3) -> bool:
    return bool(np.allclose(a.vectors, b.vectors, rtol=1e-5, atol=tolerance))


# -- algebra -----------------------------------------------------------------------------------------------


@given(VECTORS, VECTORS, VECTORS, NUMBER)
@settings(max_examples=80, deadline=None)
def test_directions_are_a_vector_space(a: Any, b: Any, c: Any, factor: float) -> None:
    x, y, z = direction(a), direction(b), direction(c)
    assert np.array_equal((x + y).vectors, (y + x).vectors)
    assert close((x + y) + z, x + (y + z))
    assert close(x - y, x + (-y))
    assert np.array_equal((x - x).vectors, np.zeros_like(a))
    assert np.array_equal((x * -1.0 * -1.0).vectors, x.vectors)
    assert np.array_equal((x * 1.0).vectors, x.vectors)
    assert np.array_equal((factor * x).vectors, (x * factor).vectors)
    assert close(factor * (x + y), factor * x + factor * y, 1.0)
    assert np.array_equal((x + y).vectors, (a + b).astype(np.float32))


@given(VECTORS)
@settings(max_examples=60, deadline=None)
def test_a_normalised_direction_has_length_one_and_stays_so(a: Any) -> None:
    one = direction(a).normalise()
    norms = np.linalg.norm(one.vectors.astype(np.float64), axis=1)
    zero = ~a.any(axis=1)
    assert np.allclose(norms[~zero], 1, atol=1e-6)
    assert (norms[zero] == 0).all()
    assert close(one.normalise(), one, 1e-6)
    assert close((direction(a) * 4).normalise(), one, 1e-6)


@given(VECTORS, VECTORS)
@settings(max_examples=80, deadline=None)
def test_projecting_out_is_orthogonal_idempotent_and_never_lengthens(a: Any, b: Any) -> None:
    x, y = direction(a), direction(b)
    left = x.project_out(y)
    inner = (left.vectors.astype(np.float64) * y.normalise().vectors).sum(1)
    size = np.linalg.norm(a.astype(np.float64), axis=1)
    assert (np.abs(inner) <= 1e-5 * size + 1e-9).all()
    assert close(left.project_out(y), left, 1e-3)
    assert (np.linalg.norm(left.vectors.astype(np.float64), axis=1) <= size * (1 + 1e-5)).all()
    assert close(x.project_out(x), x * 0.0, 1e-2)
    assert close(x.project_out(y * -7.0), left, 1e-2)
    assert np.array_equal(x.project_out(y * 0.0).vectors, x.vectors)


@given(VECTORS, VECTORS)
@settings(max_examples=80, deadline=None)
def test_cosines_are_bounded_symmetric_and_one_with_oneself(a: Any, b: Any) -> None:
    x, y = direction(a), direction(b)
    cosine = x.cosine(y)
    assert cosine.shape == (len(LAYERS),)
    assert (np.abs(cosine) <= 1 + 1e-6).all()
    assert np.allclose(cosine, y.cosine(x), atol=1e-6)
    assert np.allclose(cosine, -x.cosine(-y), atol=1e-6)
    some = a.any(axis=1)
    assert np.allclose(x.cosine(x), some, atol=1e-6)
    assert np.allclose(x.project_out(y).cosine(y)[np.linalg.norm(x.project_out(y).vectors, axis=1) > 1], 0, atol=1e-3)


def test_operations_note_the_expression_and_drop_what_no_longer_holds() -> None:
    quality = [LayerQuality(layer=1, auroc=1, auroc_low=1, auroc_high=1, relative_norm=1, split_half=1)]
    chosen = [Candidate(kind="add", source=1, layers=[1], amount=1, effect=1, kl=1, n=1, chosen=True)]
    x = random(0, quality=quality, candidates=chosen, rule="r")
    y = random(1, feature="sea")
    for made, name in [(x + y, "(joy + sea)"), (x - y, "(joy - sea)"), (2 * x, "2·joy"), (-y, "-1·sea"),
                       (x.normalise(), "unit(joy)"), (x.project_out(y), "(joy ⊥ sea)"),
                       ((x + y) * 0.5, "0.5·(joy + sea)")]:  # fmt: skip
        assert made.meta.expression == name
        assert (made.meta.quality, made.meta.candidates, made.meta.rule) == ([], [], "")
        assert made.meta.layers == LAYERS
    assert x.meta.quality == quality, "the operands stay as they are"
    assert x.meta.best("add") == chosen[0]
    assert x.meta.best("remove") is None


def test_results_that_are_not_finite_are_refused() -> None:
    x = random()
    for factor in (float("nan"), float("inf"), 1e38):
        with pytest.raises(NonFinite):
            (x * 1e5) * factor
    with pytest.raises(NonFinite):
        direction(x.vectors * 0).unit(1)


def test_only_directions_of_one_model_and_place_combine() -> None:
    x = random()
    stranger = random(model=MODEL.model_copy(update={"digest": "b" * 64}))
    operations = ("__add__", "__sub__", "project_out", "cosine")
    for name in operations:
        with pytest.raises(DirectionModelMismatch, match="different models"):
            getattr(x, name)(stranger)
        with pytest.raises(ShapeMismatch, match="different layers or sites"):
            getattr(x, name)(random(layers=[1, 2, 3]))
        with pytest.raises(ShapeMismatch, match="different layers or sites"):
            getattr(x, name)(random(point="resid_pre"))


def test_rows_and_units() -> None:
    x = random()
    for row, layer in enumerate(LAYERS):
        assert x.row(layer) == row
        unit = x.unit(layer)
        assert unit.dtype == np.float64
        assert np.isclose(np.linalg.norm(unit), 1, atol=1e-15)
        assert np.allclose(unit * np.linalg.norm(x.vectors[row].astype(np.float64)), x.vectors[row])
    for layer in (0, 3, 5, -1):
        with pytest.raises(RecipeError, match=f"no layer {layer}; it has 1 to 4"):
            x.row(layer)


# -- models ------------------------------------------------------------------------------------------------


def test_a_direction_moves_to_other_weights_only_when_told_and_only_where_it_fits() -> None:
    x = random()
    other = MODEL.model_copy(update={"digest": "b" * 64, "ref": "other"})
    assert x.check_model(MODEL) is False
    assert x.check_model(MODEL, transfer=True) is False
    assert x.check_model(MODEL.model_copy(update={"ref": "moved"})) is False, "the digest counts, not the name"
    with pytest.raises(DirectionModelMismatch, match="other") as caught:
        x.check_model(other)
    assert "--transfer" in str(caught.value)
    assert caught.value.as_record()["fields"] == {"found_on": "a" * 64, "model": "b" * 64}
    assert x.check_model(other, transfer=True) is True
    for change in ({"d_model": 6}, {"n_layers": 7}):
        with pytest.raises(ShapeMismatch):
            x.check_model(other.model_copy(update=change), transfer=True)


# -- files -------------------------------------------------------------------------------------------------


@given(VECTORS, st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_file_reads_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, vectors: Any, text: str, figure: float
) -> None:
    quality = [
        LayerQuality(layer=1, auroc=figure, auroc_low=0, auroc_high=1, relative_norm=figure / 3, split_half=-figure)
    ]
    x = direction(vectors, description=text, quality=quality)
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    digest = x.save(path, replace=True)
    back = load_direction(path)
    assert back.meta == x.meta
    for name in ("vectors", "resid_norm", "mean_shows", "mean_lacks"):
        assert np.array_equal(getattr(back, name), getattr(x, name))
    assert back.to_bytes() == x.to_bytes() == path.read_bytes()
    assert digest == x.digest() == back.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (cache_dir() / "directions" / f"{digest}.safetensors").read_bytes() == path.read_bytes()


def test_the_file_is_what_its_format_says(tmp_path: Path) -> None:
    x = random()
    x.save(tmp_path / "d")
    header = read_header(tmp_path / "d")
    assert [(t.name, t.dtype, t.shape) for t in header.tensors] == [
        ("vectors", "F32", (3, 5)), ("resid_norm", "F32", (3,)), ("mean_shows", "F32", (3, 5)), ("mean_lacks", "F32", (3, 5))
    ]  # fmt: skip
    about = json.loads(header.metadata["weightsmith"])
    assert about["schema"] == "weightsmith/direction/1"
    assert DirectionMeta.model_validate(about) == x.meta
    swapped = dataclasses.replace(x, vectors=np.asfortranarray(x.vectors))
    assert swapped.to_bytes() == x.to_bytes(), "the order in memory leaves no trace"


def test_a_direction_is_known_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    for name in ("d.safetensors", "d", "d.bin"):
        random().save(tmp_path / name)
        assert is_direction(tmp_path / name)
        assert load_direction(tmp_path / name).digest() == random().digest()
    (tmp_path / "text").write_text("schema: weightsmith/direction/1\n")
    (tmp_path / "empty").touch()
    for name in ("text", "empty", "gone", "."):
        assert not is_direction(tmp_path / name)


def test_every_byte_of_a_direction_file_can_be_damaged(tmp_path: Path) -> None:
    """A flip is refused, or it changes the digest by which an edit names the direction: it never passes for the same."""
    x = random()
    good, path = x.to_bytes(), tmp_path / "d"
    refused = 0
    for byte in range(0, len(good), 3):
        bad = bytearray(good)
        bad[byte] ^= 1 << (byte % 8)
        path.write_bytes(bad)
        try:
            assert load_direction(path).digest() != x.digest()
        except WeightsmithError:
            refused += 1
    assert refused > len(good) // 10
