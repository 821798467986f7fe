"""Quantised checkpoints: every format packed by hand and, where they are installed, by the formats' own libraries."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

import pico  # noqa: E402
import quantisers as q  # noqa: E402
from quantisers import FORMATS  # noqa: E402
from weightsmith.checkpoint import open_checkpoint  # noqa: E402
from weightsmith.errors import FormatError, NonFinite, OutputExists, UnsupportedModel, UsageError  # noqa: E402
from weightsmith.formats import quantised  # noqa: E402
from weightsmith.formats.quant_parts import Parts, Weight, unpack  # noqa: E402
from weightsmith.formats.safetensors import read_header  # noqa: E402

#: formats whose arithmetic rounds more than once in fp32: a value may be the neighbour in bf16
LOOSE = {"int8", "nf4-nested", "modelopt-nvfp4", "ct-nvfp4"}


def bf16(values: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(values)).float().bfloat16()


def assert_same(ours: Any, theirs: Any, *, loose: bool = False) -> None:
    """bf16 tensors are equal bit by bit, or all but a few, and those neighbours."""
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert ours.shape == theirs.shape
    if not loose:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        return
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=0)
    assert (ours != theirs).float().mean() < 0.02


def matrix(out: int, inner: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((out, inner)) * 0.7


# -- one matrix --------------------------------------------------------------------------------------------


def planned(folder: Path, tensors: Mapping[str, Any], settings: Mapping[str, Any]) -> Weight:
    """The one weight that a file of quantised tensors holds."""
    save_file(dict(tensors), folder / "model.safetensors")
    specs = {s.name: s for s in read_header(folder / "model.safetensors").tensors}
    method = quantised.quantisation({"quantization_config": settings}, specs)
    (weight,) = quantised.METHODS[str(method)](Parts(str(method), specs, folder), settings)
    assert set(weight.parts) | {"m.input_scale"} >= set(tensors)
    return weight


def rows(weight: Weight) -> Any:
    found = np.concatenate([weight.rows(*r) for r in weight.ranges()])
    assert found.dtype == np.float32
    return found.reshape(weight.shape)


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_decodes_to_what_was_packed_however_it_is_cut(name: str, tmp_path: Path) -> None:
    quantiser, settings = FORMATS[name]
    values = matrix(416, 96)
    tensors, expected = quantiser(values, np.random.default_rng(1))
    weight = planned(tmp_path, {"m" + k: v for k, v in tensors.items()}, settings)
    assert (weight.name, weight.shape) == ("m.weight", (416, 96))
    whole, cut = rows(weight), rows(replace(weight, chunk=1))
    assert len(replace(weight, chunk=1).ranges()) >= 13
    np.testing.assert_array_equal(whole, cut)
    np.testing.assert_allclose(whole, expected, rtol=3e-7 if name in LOOSE else 1e-7, atol=1e-9 if name in LOOSE else 0)
    assert np.corrcoef(expected.ravel(), values.ravel())[0, 1] > 0.5  # the quantiser did quantise this matrix


@pytest.mark.parametrize("name", ["nf4", "nf4-nested", "fp4"])
def test_four_bits_of_an_odd_width(name: str, tmp_path: Path) -> None:
    quantiser, settings = FORMATS[name]
    tensors, expected = quantiser(matrix(7, 33), np.random.default_rng(1))
    weight = planned(tmp_path, {"m" + k: v for k, v in tensors.items()}, settings)
    np.testing.assert_allclose(rows(replace(weight, chunk=1)), expected, rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["gptq-act", "gptq", "awq"])
def test_a_last_group_may_be_smaller(name: str, tmp_path: Path) -> None:
    quantiser, settings = FORMATS[name]
    tensors, expected = quantiser(matrix(64, 40), np.random.default_rng(1))
    weight = planned(tmp_path, {"m" + k: v for k, v in tensors.items()}, settings)
    np.testing.assert_allclose(rows(weight), expected, rtol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_gptq_zero_point_of_all_ones_is_zero_in_v1_and_itself_in_v2(bits: int, tmp_path: Path) -> None:
    top = (1 << bits) - 1
    tensors = {"m.qweight": q.packed(np.full((32, 32), top), bits).T.contiguous(),
               "m.qzeros": q.packed(np.full((1, 32), top), bits), "m.scales": torch.ones(1, 32).half(),
               "m.g_idx": torch.zeros(32, dtype=torch.int32)}  # fmt: skip
    for kind, expected in (("gptq", top), ("gptq_v2", 0)):
        weight = planned(tmp_path, tensors, {**q.GPTQ, "bits": bits, "checkpoint_format": kind})
        assert (rows(weight) == expected).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_unpack_to_the_stream_of_bits(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 77))
    np.testing.assert_array_equal(unpack(q.packed(codes, bits).numpy(), bits, 77), codes)


def test_a_g_idx_of_minus_one_says_that_groups_are_in_order(tmp_path: Path) -> None:
    tensors, expected = q.integers()(matrix(64, 48), np.random.default_rng(1))
    tensors[".weight_g_idx"] = torch.full((48,), -1, dtype=torch.int32)
    weight = planned(tmp_path, {"m" + k: v for k, v in tensors.items()}, FORMATS["ct-pack4"][1])
    np.testing.assert_array_equal(rows(weight), expected)


def test_experts_of_gpt_oss_come_out_transposed(tmp_path: Path) -> None:
    values = matrix(3 * 384, 24).reshape(3, 384, 24)
    tensors, expected = q.experts_mxfp4(values)
    weight = planned(tmp_path, {"m.down_proj" + k: v for k, v in tensors.items()}, {"quant_method": "mxfp4"})
    assert (weight.name, weight.shape) == ("m.down_proj", (3, 384, 24))
    np.testing.assert_array_equal(rows(weight), expected)
    np.testing.assert_array_equal(rows(replace(weight, chunk=1)), expected)
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    theirs = convert_moe_packed_tensors(tensors["_blocks"], tensors["_scales"])
    assert_same(bf16(rows(weight)), theirs)


@pytest.mark.parametrize("scales", [(3, 8, 1), (3, 1, 24), (3, 1, 1), (1, 1, 1), (3, 4, 6), (3, 8), (3,), ()])
def test_scales_of_a_stack_of_matrices(scales: tuple[int, ...], tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    codes = torch.from_numpy(dice.standard_normal((3, 8, 24)).astype(np.float32)).to(torch.float8_e4m3fn)
    factors = torch.from_numpy(dice.uniform(0.5, 2, scales).astype(np.float32))
    weight = planned(tmp_path, {"m.up": codes, "m.up_scale": factors}, {"quant_method": "fbgemm_fp8"})
    wide = factors.reshape(*scales, *(1,) * (3 - len(scales))) if len(scales) < 3 else factors
    wide = wide.repeat_interleave(2, 1).repeat_interleave(4, 2) if scales == (3, 4, 6) else wide
    np.testing.assert_array_equal(rows(replace(weight, chunk=1)), (codes.float() * wide).numpy())


# -- the formats' own libraries ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_blocks_as_transformers_decodes_them(code: str, tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    tensors, _ = q.float8((16, 12), code=getattr(torch, code))(matrix(64, 48), np.random.default_rng(1))
    weight = planned(tmp_path, {"m" + k: v for k, v in tensors.items()}, {**q.FP8, "weight_block_size": [16, 12]})
    theirs = Fp8Dequantize(None)._dequantize_one(tensors[".weight"], tensors[".weight_scale_inv"], torch.bfloat16)
    assert_same(bf16(rows(weight)), theirs)


@pytest.mark.parametrize("name", [n for n in FORMATS if n.startswith("ct-") and not n.endswith("-act")])
def test_compressed_tensors_own_decompressor_agrees(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor

    quantiser, settings = FORMATS[name]
    tensors, _ = quantiser(matrix(64, 64) if "block" not in name else matrix(72, 60), np.random.default_rng(1))
    group = dict(settings["config_groups"]["group_0"]["weights"])
    scheme = library.quantization.QuantizationScheme(targets=["Linear"], weights=group)
    compressor = BaseCompressor.get_value_from_registry(settings["format"])
    local = {k.removeprefix("."): v for k, v in tensors.items()}
    theirs = compressor.decompress(local, scheme)["weight"]
    weight = planned(tmp_path, {"m" + k: v for k, v in tensors.items()}, settings)
    assert_same(bf16(rows(weight)), theirs.bfloat16(), loose=name in LOOSE)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_own_packing_is_read(bits: int, symmetric: bool, tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor

    arguments = {"num_bits": bits, "strategy": "group", "group_size": 16, "symmetric": symmetric}
    scheme = library.quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    dice, half = torch.Generator().manual_seed(0), 1 << (bits - 1)
    values = torch.randn(40, 48, generator=dice).bfloat16()
    state = {"weight": values, "weight_scale": (torch.rand(40, 3, generator=dice) + 0.5).bfloat16() / half,
             "weight_zero_point": torch.randint(-half, half, (40, 3), generator=dice).to(torch.int8)}  # fmt: skip
    state["weight_zero_point"] *= not symmetric
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors = {"m." + k: v.contiguous() for k, v in compressor.compress(state, scheme).items()}
    theirs = compressor.decompress({k[2:]: v for k, v in tensors.items()}, scheme)["weight"]
    weight = planned(tmp_path, tensors, q.compressed("pack-quantized", **arguments))
    assert_same(bf16(rows(weight)), theirs)


def test_awq_as_compressed_tensors_converts_it(tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    tensors, _ = q.awq()(matrix(64, 48), np.random.default_rng(1))
    weight = planned(tmp_path, {"m" + k: v for k, v in tensors.items()}, q.AWQ)
    converted = AutoAWQConverter(group_size=16).process({"m" + k: v for k, v in tensors.items()})
    arguments = {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}
    scheme = library.quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    local = {k.removeprefix("m."): v for k, v in converted.items()} | {
        "weight_scale": converted["m.weight_scale"].float()
    }
    theirs = BaseCompressor.get_value_from_registry("pack-quantized").decompress(local, scheme)["weight"]
    np.testing.assert_array_equal(rows(weight), theirs.numpy())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_bitsandbytes_own_four_bits_are_read(kind: str, nested: bool, storage: str, tmp_path: Path) -> None:
    library = pytest.importorskip("bitsandbytes")
    values = torch.from_numpy(matrix(300, 64)).float()
    codes, state = library.functional.quantize_4bit(
        values, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=getattr(torch, storage)
    )
    tensors = {"m.weight": codes, **{f"m.weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    weight = planned(tmp_path, tensors, q.BNB)
    theirs = library.functional.dequantize_4bit(codes, state)
    np.testing.assert_allclose(rows(weight), theirs.numpy(), rtol=1e-6, atol=1e-7)


def test_bitsandbytes_own_eight_bits_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip("bitsandbytes")
    codes, scales, _ = library.functional.int8_vectorwise_quant(torch.from_numpy(matrix(64, 48)).half())
    weight = planned(tmp_path, {"m.weight": codes, "m.SCB": scales}, FORMATS["int8"][1])
    theirs = library.functional.int8_vectorwise_dequant(codes, scales)
    np.testing.assert_allclose(rows(weight), theirs.float().numpy(), rtol=1e-6)


# -- whole models ------------------------------------------------------------------------------------------


_ROOT = Path(tempfile.mkdtemp(prefix="weightsmith-quantised-"))


@cache
def base(family: str) -> Path:
    """The unquantised bf16 model of a family."""
    return pico.build(family, _ROOT / family, torch.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    shutil.rmtree(_ROOT, ignore_errors=True)


def quantise(folder: Path, name: str, family: str = "llama_bias") -> dict[str, Any]:
    """Write the quantised model of a family to ``folder``; the tensors that it stands for."""
    quantiser, settings = FORMATS.get(name, (None, {"quant_method": "mxfp4"}))
    shutil.copytree(base(family), folder, dirs_exist_ok=True)
    stored, meant, dice = {}, {}, np.random.default_rng(5)
    for key, value in load_file(folder / "model.safetensors").items():
        inner = key.endswith(".weight") and value.ndim == 2 and ("proj" in key or ".c_" in key)
        if name == "gpt-oss" and value.ndim == 3:
            made, values = q.experts_mxfp4(value.double().numpy())
        elif inner and quantiser is not None:
            flipped = value.T if ".c_" in key else value
            made, values = quantiser(flipped.double().numpy(), dice)
            values = values.T if ".c_" in key else values
        else:
            stored[key] = meant[key] = value
            continue
        stored |= {(key if name == "gpt-oss" else key.removesuffix(".weight")) + k: v for k, v in made.items()}
        meant[key] = bf16(values)
    stored["model.layers.0.self_attn.k_scale"] = torch.ones(())  # a cache's, which no weight needs
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    pico.edit_config(folder, quantization_config=settings)
    return meant


def logits(folder: Path, tensors: Mapping[str, Any] | None = None) -> Any:
    with pico.quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if tensors is not None:
            left = model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
            assert not left.unexpected_keys
            assert set(left.missing_keys) <= {"lm_head.weight"}
        return [model(torch.tensor([i])).logits for i in pico.ids()]


CASES = [
    *((n, "llama_bias") for n in FORMATS),
    ("gpt-oss", "gpt_oss"),
    ("gptq", "gpt2"),
    ("nf4", "gpt2"),
    ("int8", "gpt2"),
]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_model_runs_as_what_its_quantised_weights_stand_for(name: str, family: str, tmp_path: Path) -> None:
    meant = quantise(tmp_path / "in", name, family)
    (tmp_path / "out").mkdir()
    seen: list[tuple[str, int, int]] = []
    checkpoint = open_checkpoint(str(tmp_path / "in"))
    specs = quantised.dequantised_specs(checkpoint.config, checkpoint.tensors)
    done = quantised.dequantize_folder(checkpoint, tmp_path / "out", lambda *row: seen.append(row))
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == meant.keys() == specs.keys()
    for key, value in meant.items():
        assert_same(written[key], value, loose=name in LOOSE)
        assert specs[key] == ("BF16", tuple(value.shape))
    assert seen[-1][1] == seen[-1][2] == sum(2 * v.numel() for v in meant.values())
    out = open_checkpoint(str(tmp_path / "out"))
    assert out.architecture.writers == open_checkpoint(str(base(family))).architecture.writers
    assert out.tensor_digests() == done.tensors
    assert done.finite
    assert quantised.quantisation(out.config, out.tensors) is None
    theirs = logits(base(family), written if name in LOOSE else meant)
    for mine, other in zip(logits(tmp_path / "out"), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_files_of_the_folder(tmp_path: Path) -> None:
    quantise(tmp_path / "in", "gptq")
    pico.edit_config(tmp_path / "in", torch_dtype="float16", dtype="float16", text_config={"dtype": "float16"})
    for name in ("modeling_own.py", "old.bin", "weightsmith.json", "quantize_config.json", ".hidden"):
        (tmp_path / "in" / name).write_bytes(b"{}")
    (tmp_path / "in/LICENSE").write_bytes(b"free")
    (tmp_path / "out").mkdir()
    done = quantised.dequantize_folder(open_checkpoint(str(tmp_path / "in")), tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "LICENSE",
                     "generation_config.json", "chat_template.jinja"} & names | {"LICENSE", "tokenizer.json"}  # fmt: skip
    assert done.files == tuple(sorted(names))
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "in/tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config
    assert [config["dtype"], config["torch_dtype"], config["text_config"]["dtype"]] == ["bfloat16"] * 3


@pytest.mark.parametrize("name", ["gptq", "fp8-blocks", "nf4-nested"])
def test_bytes_do_not_depend_on_threads_blocks_or_shards_of_the_input(name: str, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    quantise(tmp_path / "in", name)
    tensors = load_file(tmp_path / "in/model.safetensors")
    digests = []
    method = str(FORMATS[name][1]["quant_method"])
    plan = quantised.METHODS[method]
    for cores, chunk in ((1, 1 << 20), (7, 1)):
        monkeypatch.setattr(quantised, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(quantised, "COPY", 1 << 20 if chunk > 1 else 10)
        cut = {method: lambda p, s, chunk=chunk: [replace(w, chunk=min(w.chunk, chunk)) for w in plan(p, s)]}
        monkeypatch.setattr(quantised, "METHODS", cut)
        (tmp_path / f"out{cores}").mkdir()
        quantised.dequantize_folder(open_checkpoint(str(tmp_path / "in")), tmp_path / f"out{cores}")
        digests.append((tmp_path / f"out{cores}/model.safetensors").read_bytes())
    assert digests[0] == digests[1]
    halves: list[dict[str, Any]] = [{}, {}]
    for i, (key, value) in enumerate(tensors.items()):
        halves[i % 2][key] = value
    (tmp_path / "in/model.safetensors").unlink()
    for i, half in enumerate(halves):
        save_file(half, tmp_path / f"in/model-{i + 1:05d}-of-00002.safetensors")
    monkeypatch.setattr(quantised, "SHARD_BYTES", 20_000)
    (tmp_path / "out").mkdir()
    quantised.dequantize_folder(open_checkpoint(str(tmp_path / "in")), tmp_path / "out")
    out = open_checkpoint(str(tmp_path / "out"))  # checks the index against the shards
    assert len(out.weight_files) > 2
    assert out.tensor_digests() == open_checkpoint(str(tmp_path / "out1")).tensor_digests()


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_refused_by_name_unless_asked_for(name: str, tmp_path: Path) -> None:
    quantise(tmp_path, name)
    checkpoint = open_checkpoint(str(tmp_path))
    with pytest.raises(UnsupportedModel, match="--dequantize") as caught:
        quantised.refuse_quantised(checkpoint.config, checkpoint.tensors, checkpoint.path)
    assert FORMATS[name][1]["quant_method"] in caught.value.message
    assert caught.value.where == str(tmp_path)


def test_an_unquantised_model_is_not_refused() -> None:
    checkpoint = open_checkpoint(str(base("llama_bias")))
    assert quantised.quantisation(checkpoint.config, checkpoint.tensors) is None
    quantised.refuse_quantised(checkpoint.config, checkpoint.tensors)
    with pytest.raises(UsageError, match="not quantised"):
        quantised.dequantised_specs(checkpoint.config, checkpoint.tensors)


@pytest.mark.parametrize("name", ["fp8-blocks", "gptq", "awq", "ct-pack4", "nf4", "int8"])
def test_names_show_the_method_where_the_config_is_silent(name: str, tmp_path: Path) -> None:
    quantise(tmp_path, name)
    pico.edit_config(tmp_path, quantization_config=None)
    checkpoint = open_checkpoint(str(tmp_path))
    assert quantised.quantisation(checkpoint.config, checkpoint.tensors) == FORMATS[name][1]["quant_method"]


@pytest.mark.parametrize("settings", [{"quant_method": "hqq"}, {"quant_method": "auto-round"}, {"bits": 4}])
def test_an_unknown_method_is_refused_with_and_without_asking(settings: dict[str, Any], tmp_path: Path) -> None:
    quantise(tmp_path, "gptq")
    pico.edit_config(tmp_path, quantization_config=settings)
    checkpoint = open_checkpoint(str(tmp_path))
    for job in (quantised.refuse_quantised, quantised.dequantised_specs):
        with pytest.raises(UnsupportedModel, match="not known here") as caught:
            job(checkpoint.config, checkpoint.tensors)
        assert "unquantised copy" in str(caught.value.hint)
        assert "--dequantize" not in str(caught.value)


def broken(folder: Path, change: Any) -> None:
    """Change the tensors of a folder in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


MODULE = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("name", [*FORMATS, "gpt-oss"])
def test_every_missing_part_is_named(name: str, tmp_path: Path) -> None:
    quantise(tmp_path / "in", name, "gpt_oss" if name == "gpt-oss" else "llama_bias")
    module = "model.layers.1.mlp.experts.down_proj" if name == "gpt-oss" else MODULE + "."
    tensors = load_file(tmp_path / "in/model.safetensors")
    optional = ("g_idx", "weight_format") + (() if "asym" in name or "act" in name else ("zero_point",))
    optional += ("global_scale",) if name == "ct-nvfp4" else ()
    parts = [t for t in tensors if t.startswith(module) and not t.endswith((".bias", "_bias", *optional))]
    assert len(parts) > 1
    for part in parts:
        if part.endswith("zero_point"):
            continue  # symmetric weights have none, so its absence can only show in the config
        broken(tmp_path / "in", lambda found, part=part: found.pop(part))
        checkpoint = open_checkpoint(str(tmp_path / "in"))
        with pytest.raises(FormatError) as caught:
            quantised.dequantised_specs(checkpoint.config, checkpoint.tensors, checkpoint.path)
        assert module.rstrip(".") in caught.value.message, part
        assert caught.value.where == str(tmp_path / "in")
        save_file(tensors, tmp_path / "in/model.safetensors")


@pytest.mark.parametrize("name", [*FORMATS, "gpt-oss"])
def test_every_part_of_a_wrong_shape_or_dtype_is_refused(name: str, tmp_path: Path) -> None:
    quantise(tmp_path / "in", name, "gpt_oss" if name == "gpt-oss" else "llama_bias")
    module = "model.layers.1.mlp.experts.down_proj" if name == "gpt-oss" else MODULE + "."
    tensors = load_file(tmp_path / "in/model.safetensors")
    for part in [t for t in tensors if t.startswith(module) and not t.endswith("bias") and "quant_state" not in t]:
        value = tensors[part]
        alone = name in ("fp8-tensor", "modelopt", "ct-float-tensor")  # no other part tells the size of these
        if value.numel() > 1 and not alone:  # some rows more
            rest = torch.cat(
                [value.view(torch.uint8) if value.is_floating_point() and value.itemsize == 1 else value] * 2
            )
            longer = rest.view(value.dtype)[: len(value) + 9]
            broken(tmp_path / "in", lambda found, part=part, longer=longer: found.update({part: longer}))
            checkpoint = open_checkpoint(str(tmp_path / "in"))
            with pytest.raises((FormatError, UnsupportedModel)):
                quantised.dequantised_specs(checkpoint.config, checkpoint.tensors, checkpoint.path)
        wrong = torch.zeros(value.shape, dtype=torch.int16)
        broken(tmp_path / "in", lambda found, part=part, wrong=wrong: found.update({part: wrong}))
        checkpoint = open_checkpoint(str(tmp_path / "in"))
        with pytest.raises(FormatError, match=module.rstrip(".")):
            quantised.dequantised_specs(checkpoint.config, checkpoint.tensors, checkpoint.path)
        save_file(tensors, tmp_path / "in/model.safetensors")


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("gptq", {"bits": 5}, "5 bits"), ("gptq", {"bits": None}, "bits"),
    ("gptq", {"checkpoint_format": "marlin"}, "marlin"), ("gptq", {"bits": 8}, "qweight"),
    ("awq", {"version": "marlin"}, "marlin"), ("awq", {"bits": 8}, "8 bits"), ("awq", {"group_size": 32}, "qzeros"),
    ("awq", {"group_size": "all"}, "group_size"), ("fp8-blocks", {"weight_block_size": [128]}, "weight_block_size"),
    ("fp8-blocks", {"weight_block_size": [16, 16]}, "weight_scale_inv"), ("modelopt", {"quant_algo": "W4A8"}, "W4A8"),
    ("ct-pack4", {"format": "marlin-24"}, "marlin-24"), ("ct-pack4", {"config_groups": {}}, "config_groups"),
    ("ct-pack4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
])  # fmt: skip
def test_settings_that_are_not_known_or_do_not_fit(name: str, changes: dict[str, Any], message: str,
                                                   tmp_path: Path) -> None:  # fmt: skip
    quantise(tmp_path, name)
    pico.edit_config(tmp_path, quantization_config={**FORMATS[name][1], **changes})
    checkpoint = open_checkpoint(str(tmp_path))
    with pytest.raises((FormatError, UnsupportedModel), match=message):
        quantised.dequantised_specs(checkpoint.config, checkpoint.tensors)


def test_a_group_is_chosen_by_the_names_that_it_targets(tmp_path: Path) -> None:
    settings = dict(FORMATS["ct-pack4"][1])
    right, wrong = settings["config_groups"]["group_0"], {"targets": ["re:.*mlp.*"], "weights": {"num_bits": 8}}
    for targets, good in ((["re:.*vision.*"], True), (["re:.*mlp.*"], False), ([MODULE], False)):
        quantise(tmp_path / "in", "ct-pack4")
        groups = {"a": {**wrong, "targets": targets}, "b": right}
        pico.edit_config(tmp_path / "in", quantization_config={**settings, "config_groups": groups})
        checkpoint = open_checkpoint(str(tmp_path / "in"))
        if good:
            quantised.dequantised_specs(checkpoint.config, checkpoint.tensors)
        else:
            with pytest.raises(FormatError, match="8 bits"):
                quantised.dequantised_specs(checkpoint.config, checkpoint.tensors)


def test_what_belongs_to_nothing_is_named(tmp_path: Path) -> None:
    quantise(tmp_path, "gptq")
    for extra, value in (("model.odd.scales", torch.ones(2)), ("model.odd", torch.ones(2, dtype=torch.uint8)),
                         (MODULE + ".weight", torch.ones(64, 32))):  # fmt: skip
        broken(tmp_path, lambda found, extra=extra, value=value: found.update({extra: value}))
        checkpoint = open_checkpoint(str(tmp_path))
        with pytest.raises(FormatError, match=extra.replace(".", r"\.")):
            quantised.dequantised_specs(checkpoint.config, checkpoint.tensors)
        broken(tmp_path, lambda found, extra=extra: found.pop(extra))


@pytest.mark.parametrize(("name", "leaf", "value"), [
    ("fp8-blocks", ".weight_scale_inv", math.nan), ("fp8-blocks", ".weight_scale_inv", 3e38),
    ("gptq", ".scales", math.inf), ("nf4", ".weight.absmax", 3.4e38),
])  # fmt: skip
def test_values_that_are_not_finite_are_refused_by_name(name: str, leaf: str, value: float, tmp_path: Path) -> None:
    quantise(tmp_path / "in", name)
    broken(tmp_path / "in", lambda found: found[MODULE + leaf].fill_(value))
    (tmp_path / "out").mkdir()
    with pytest.raises(NonFinite, match=MODULE):
        quantised.dequantize_folder(open_checkpoint(str(tmp_path / "in")), tmp_path / "out")


def test_a_g_idx_beyond_the_groups_is_refused(tmp_path: Path) -> None:
    quantise(tmp_path / "in", "gptq")
    broken(tmp_path / "in", lambda found: found[MODULE + ".g_idx"].fill_(2))
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match="g_idx"):
        quantised.dequantize_folder(open_checkpoint(str(tmp_path / "in")), tmp_path / "out")


@pytest.mark.parametrize("state", [b"{", b"[]", b'{"blocksize": 0, "shape": [64, 32]}', b'{"blocksize": 64}',
                                   b'{"blocksize": 64, "shape": [64, -32]}', b'{"blocksize": 64, "shape": [64, 33]}',
                                   b'{"blocksize": 64, "shape": [64, 32], "nested_blocksize": 256}'])  # fmt: skip
def test_a_damaged_state_is_refused_by_name(state: bytes, tmp_path: Path) -> None:
    quantise(tmp_path, "nf4")
    raw = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    broken(tmp_path, lambda found: found.update({MODULE + ".weight.quant_state.bitsandbytes__nf4": raw}))
    checkpoint = open_checkpoint(str(tmp_path))
    with pytest.raises(FormatError, match=MODULE):
        quantised.dequantised_specs(checkpoint.config, checkpoint.tensors)


def test_the_folder_must_be_there_and_empty(tmp_path: Path) -> None:
    quantise(tmp_path / "in", "gptq")
    checkpoint = open_checkpoint(str(tmp_path / "in"))
    with pytest.raises(UsageError, match="not a folder"):
        quantised.dequantize_folder(checkpoint, tmp_path / "out")
    with pytest.raises(OutputExists):
        quantised.dequantize_folder(checkpoint, tmp_path / "in")
