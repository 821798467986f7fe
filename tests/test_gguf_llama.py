"""Written GGUF files under llama.cpp: the logits are transformers', type by type and family by family."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("xllamacpp")
import llamacpp  # noqa: E402
import pico  # noqa: E402
from weightsmith.checkpoint import convert, open_checkpoint, runnable  # noqa: E402
from weightsmith.errors import UnsupportedModel  # noqa: E402
from weightsmith.formats import gguf, gguf_edit, gguf_export, gguf_write  # noqa: E402
from weightsmith.formats.gguf_edit import Added  # noqa: E402

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 10_000.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0}
HEADS = {"head_dim": 64}
GEMMA = {**HEADS, "attention_bias": False, "query_pre_attn_scalar": 64}
THIRD = ["sliding_attention", "sliding_attention", "full_attention"]
GEMMA3_ROPE = {"full_attention": {**LINEAR, "rope_theta": 1e6},
               "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0}}  # fmt: skip

#: name of a case -> (family, overrides)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama_bias", {}),
    "llama, scaled as Llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}),
    "llama, own head size": ("llama", {"head_dim": 32}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16.0}}),
    "qwen3": ("qwen3", HEADS),
    "gemma2": ("gemma2", {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "gemma3": ("gemma3", {**GEMMA, "layer_types": [*THIRD, *THIRD, "sliding_attention"], "num_hidden_layers": 7}),
    "gemma3, scaled": ("gemma3", {**GEMMA, "layer_types": THIRD, "rope_parameters": GEMMA3_ROPE}),
}  # fmt: skip
ROWS = [list(map(int, np.random.default_rng(n).integers(7, 80, n))) for n in (1, 9, 40, 90)]

Model = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Folders of the cases, each built once."""
    root = tmp_path_factory.mktemp("models")

    def get(case: str) -> Path:
        path = root / case.replace(" ", "-").replace(",", "")
        if not path.is_dir():
            family, changes = CASES[case]
            pico.build(family, path, **{**WIDE, **changes})
        return path

    yield get
    shutil.rmtree(root, ignore_errors=True)


def reference(model: Path, rows: list[list[int]], change: Callable[[Any], Any] = lambda m: m) -> list[np.ndarray]:
    """transformers' fp32 logits at all positions, after ``change`` of the loaded model."""
    with pico.quiet(), torch.no_grad():
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        change(loaded)
        return [loaded(torch.tensor([row])).logits[0].numpy() for row in rows]


def exported(model: Path, target: Path, kind: str = "F32") -> Path:
    gguf_export.export_gguf(open_checkpoint(str(model)), target, kind)
    return target


def furthest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Largest difference of two lists of logits, as a share of the spread of ``a``."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)) / float(np.std(np.concatenate(a)))


def compared(reference: list[np.ndarray], got: list[np.ndarray]) -> tuple[float, float]:
    """Share of positions with the same most likely token, and mean KL(reference || got) in nats over all positions."""
    a, b = (torch.log_softmax(torch.from_numpy(np.concatenate(x)).double(), -1) for x in (reference, got))
    return float((a.argmax(-1) == b.argmax(-1)).double().mean()), float((a.exp() * (a - b)).sum(-1).mean())


# -- families ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_an_exported_family_has_the_logits_of_transformers(folder: Model, tmp_path: Path, case: str) -> None:
    model = folder(case)
    got = llamacpp.logits(exported(model, tmp_path / "m.gguf"), ROWS)
    # ggml looks Gemma's GELU up in a table of fp16, so there the agreement ends earlier
    assert furthest(reference(model, ROWS), got) < (5e-3 if "gemma" in case else 2e-5)


def test_mistrals_window_ends_the_context_and_nothing_else(tmp_path: Path) -> None:
    model = pico.build("mistral", tmp_path / "m", **WIDE, sliding_window=16)
    path = exported(model, tmp_path / "m.gguf")
    assert gguf.read_header(path).metadata["llama.context_length"] == 16
    rows = [ROWS[1], ROWS[2][:16]]
    assert furthest(reference(model, rows), llamacpp.logits(path, rows)) < 2e-5
    beyond = [ROWS[2]]
    assert furthest(reference(model, beyond), llamacpp.logits(path, beyond)) > 0.1  # why it has to end there


def test_texts_are_cut_as_the_tokenizer_cuts_them(folder: Model, tmp_path: Path) -> None:
    path = exported(folder("qwen2"), tmp_path / "m.gguf")
    texts = ["the sea", "a  b\n\nc 12", "why?<|user|>Yes, it's 3.14"]
    assert llamacpp.tokens(path, texts) == [pico.tokenizer()(t)["input_ids"] for t in texts]


# -- types -------------------------------------------------------------------------------------------------

#: file type -> (least share of equal top-1 tokens, largest KL in nats) on the random pico models, whose nearly flat
#: logits turn over easily; about half as much again as was measured. From Q8_0 down, llama.cpp rounds activations too.
LIMITS = {"F32": (1.0, 1e-10), "F16": (0.99, 3e-6), "BF16": (0.93, 1.6e-4), "Q8_0": (0.93, 2e-3), "Q6_K": (0.8, 1.3e-2),
          "Q5_K_M": (0.7, 4.5e-2), "Q5_K_S": (0.7, 4.5e-2), "Q5_1": (0.7, 4.5e-2), "Q5_0": (0.7, 6e-2),
          "Q4_K_M": (0.55, 0.15), "Q4_K_S": (0.55, 0.15), "Q4_1": (0.5, 0.16), "Q4_0": (0.45, 0.2)}  # fmt: skip


@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_every_file_type_is_as_near_as_its_bits_allow(folder: Model, tmp_path: Path, case: str) -> None:
    model = folder(case)
    expected = reference(model, ROWS)
    found = {}
    for kind, (agree, nats) in LIMITS.items():
        found[kind] = compared(expected, llamacpp.logits(exported(model, tmp_path / f"{kind}.gguf", kind), ROWS))
        print(case, kind, found[kind])
        assert found[kind][0] >= agree, (kind, found[kind])
        assert found[kind][1] <= nats, (kind, found[kind])
    order = ["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]  # fewer bits, further away
    kl = [found[kind][1] for kind in order]
    assert kl == sorted(kl), dict(zip(order, kl, strict=True))
    sizes = [(tmp_path / f"{kind}.gguf").stat().st_size for kind in order]
    assert sizes == sorted(sizes, reverse=True)


# -- edits and added tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K_M"])
def test_an_edited_file_has_the_logits_of_the_edited_model(folder: Model, tmp_path: Path, kind: str) -> None:
    model = folder("llama")
    source = exported(model, tmp_path / "m.gguf", kind)
    plain = tmp_path / "plain"
    convert(open_checkpoint(str(source)), plain)  # what the file holds, as transformers runs it
    factor = np.float32(0.2)
    names = [f"model.layers.{i}.{m}.weight" for i in (0, 2) for m in ("mlp.down_proj", "self_attn.o_proj")]
    names.append("model.layers.1.self_attn.q_proj.weight")  # its rows are interleaved in the file
    gguf_edit.edit_gguf(source, tmp_path / "e.gguf", dict.fromkeys(names, lambda m: m * factor))

    def change(loaded: Any) -> None:
        for name in names:
            loaded.get_parameter(name).mul_(0.2)

    got = llamacpp.logits(tmp_path / "e.gguf", ROWS)
    agree, nats = compared(reference(plain, ROWS, change), got)
    before = compared(reference(plain, ROWS), got)[1]
    assert nats < (1e-4 if kind == "F32" else 2e-2) < before  # bf16 is what the folder holds
    assert agree > 0.85


BIAS_CASES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3"}
MODULES = {"attn_output.bias": "self_attn.o_proj", "ffn_down.bias": "mlp.down_proj", "ffn_up.bias": "mlp.up_proj",
           "ffn_gate.bias": "mlp.gate_proj", "attn_v.bias": "self_attn.v_proj", "attn_k.bias": "self_attn.k_proj",
           "attn_norm.bias": "input_layernorm"}  # fmt: skip


@pytest.mark.parametrize("case", BIAS_CASES)
def test_which_added_biases_llamacpp_honours(folder: Model, tmp_path: Path, case: str) -> None:
    """The table in gguf_edit's docstring, one cell after the other."""
    model = folder(case)
    header = gguf.read_header(exported(model, tmp_path / "m.gguf"))
    shapes = {t.name: t.shape for t in header.tensors}
    copies = [gguf_write.file_entry(t.name, t.type, t.shape, t.file, t.start, t.nbytes) for t in header.tensors]
    verdicts: dict[str, bool] = {}
    for leaf, module in MODULES.items():
        name = f"blk.1.{leaf}"
        if name in shapes:
            continue
        width = shapes[name.replace(".bias", ".weight")][0]
        bias = np.random.default_rng(width).standard_normal(width).astype(np.float32)
        target = tmp_path / f"{leaf}.gguf"
        stored = gguf_edit._as_stored(gguf_edit.Model(header), name, bias)
        pairs = gguf_edit._metadata(header, {})
        gguf_write.write_gguf(target, pairs, [*copies, gguf_write.array_entry(name, stored)])
        try:
            got = llamacpp.logits(target, ROWS[:2])
        except llamacpp.LlamaFailed as error:
            verdicts[leaf] = "wrong number of tensors" not in str(error)
            continue

        def change(loaded: Any, module: str = module, bias: np.ndarray = bias) -> None:
            hooked = loaded.model.layers[1].get_submodule(module)
            hooked.register_forward_hook(lambda m, i, out: out + torch.from_numpy(bias))

        verdicts[leaf] = True
        assert furthest(reference(model, ROWS[:2], change), got) < (5e-3 if "gemma" in case else 2e-5), leaf
        assert furthest(reference(model, ROWS[:2]), got) > 0.05 or leaf == "attn_k.bias", leaf
    honoured = {leaf for leaf, kept in verdicts.items() if kept}
    if case == "llama":
        assert honoured == set(MODULES) - {"attn_norm.bias"}
    else:
        assert honoured == {"attn_v.bias", "attn_k.bias"} & verdicts.keys()


def test_a_bias_added_to_llama_runs_here_and_there(folder: Model, tmp_path: Path) -> None:
    model = folder("llama")
    source = exported(model, tmp_path / "m.gguf")
    dice = np.random.default_rng(3)
    added = {f"model.layers.{layer}.{module}.bias": Added(dice.standard_normal(256).astype(np.float32))
             for layer, module in ((0, "mlp.down_proj"), (2, "mlp.down_proj"), (1, "self_attn.o_proj"))}  # fmt: skip
    done = gguf_edit.edit_gguf(source, tmp_path / "e.gguf", {}, added=added)
    assert len(done.added) == 3 * 4 + 3 * 3  # both groups whole, in every layer

    def change(loaded: Any) -> None:
        for name, bias in added.items():
            hooked = loaded.get_submodule(name.removesuffix(".bias"))
            hooked.register_forward_hook(lambda m, i, out, b=bias.values: out + torch.from_numpy(b))

    expected = reference(model, ROWS, change)
    assert furthest(expected, llamacpp.logits(tmp_path / "e.gguf", ROWS)) < 2e-5
    convert(open_checkpoint(str(tmp_path / "e.gguf")), tmp_path / "folder")
    with pico.quiet():
        config = transformers.AutoConfig.from_pretrained(tmp_path / "folder")
    assert config.attention_bias
    assert config.mlp_bias
    assert compared(expected, reference(tmp_path / "folder", ROWS))[1] < 1e-4


def test_an_output_matrix_can_be_added_to_a_tied_model(tmp_path: Path) -> None:
    model = pico.build("qwen2", tmp_path / "m", **WIDE, tie_word_embeddings=True)
    source = exported(model, tmp_path / "m.gguf")
    head = np.random.default_rng(4).standard_normal((pico.VOCAB, 256)).astype(np.float32)
    gguf_edit.edit_gguf(source, tmp_path / "e.gguf", {}, added={"lm_head.weight": Added(head)})

    def change(loaded: Any) -> None:
        loaded.lm_head.weight = torch.nn.Parameter(torch.from_numpy(head))

    assert furthest(reference(model, ROWS, change), llamacpp.logits(tmp_path / "e.gguf", ROWS)) < 2e-5


@pytest.mark.parametrize("case", ["qwen2", "qwen3", "gemma3"])
def test_a_bias_that_llamacpp_refuses_is_refused_here(folder: Model, tmp_path: Path, case: str) -> None:
    source = exported(folder(case), tmp_path / "m.gguf")
    added = {"model.layers.0.mlp.down_proj.bias": Added(np.ones(256, np.float32))}
    with pytest.raises(UnsupportedModel, match="no place"):
        gguf_edit.edit_gguf(source, tmp_path / "e.gguf", {}, added=added)
    assert not (tmp_path / "e.gguf").exists()


# -- the helper itself -------------------------------------------------------------------------------------


def test_adapters_and_control_vectors_do_what_they_say(folder: Model, tmp_path: Path) -> None:
    model = folder("llama")
    path = exported(model, tmp_path / "m.gguf")
    dice = np.random.default_rng(5)
    down, up = (dice.standard_normal(s).astype(np.float32) / 8 for s in ((4, 512), (256, 4)))
    gguf_write.write_gguf(
        tmp_path / "lora.gguf",
        {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0},
        [gguf_write.array_entry("blk.1.ffn_down.weight.lora_a", down),
         gguf_write.array_entry("blk.1.ffn_down.weight.lora_b", up)],
    )  # fmt: skip

    def adapted(scale: float) -> Callable[[Any], None]:
        def change(loaded: Any) -> None:
            loaded.get_parameter("model.layers.1.mlp.down_proj.weight").add_(torch.from_numpy(up @ down) * scale)

        return change

    lora = tmp_path / "lora.gguf"
    got = llamacpp.logits(path, ROWS, lora=lora)
    assert furthest(reference(model, ROWS, adapted(8 / 4)), got) < 2e-5
    half = llamacpp.logits(path, ROWS, lora=[(lora, 0.5)])
    assert furthest(reference(model, ROWS, adapted(8 / 4 / 2)), half) < 2e-5

    table = np.zeros((3, 256), np.float32)
    table[1] = dice.standard_normal(256)
    gguf_write.write_gguf(
        tmp_path / "cvec.gguf",
        {"general.architecture": "controlvector", "controlvector.model_hint": "llama", "controlvector.layer_count": 1},
        [gguf_write.array_entry("direction.1", table[1])],
    )

    def steered(loaded: Any) -> None:
        loaded.model.layers[1].register_forward_hook(lambda m, i, out: out + 2 * torch.from_numpy(table[1]))

    expected = reference(model, ROWS, steered)
    for control in (table, tmp_path / "cvec.gguf"):
        got = llamacpp.logits(path, ROWS, control_vector=control, control_scale=2.0)
        assert furthest(expected, got) < 2e-5


def test_a_refused_file_is_told_from_a_good_one(folder: Model, tmp_path: Path) -> None:
    path = exported(folder("llama"), tmp_path / "m.gguf")
    assert llamacpp.loads(path) is None
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-4096])
    assert "refused" in str(llamacpp.loads(tmp_path / "cut.gguf"))
    with pytest.raises(llamacpp.LlamaFailed):
        llamacpp.logits(path, [[10_000_000]])  # a token outside the vocabulary


# -- the real models ---------------------------------------------------------------------------------------

TEXTS = ("The rain had stopped by the time they reached the harbour, and the fishermen were already mending nets.",
         "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
         "Photosynthesis is the process by which plants turn light, water and carbon dioxide into sugar and oxygen.",
         "Dear friend, it has been a long winter and I often think of the summer that we spent by the lake.")  # fmt: skip
#: model -> file type -> (share of equal top-1 tokens, mean KL in nats) as measured; SmolLM2 was a Q4_1 before
REAL: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "smollm2": {"F32": (1.0, 1.6e-11), "F16": (1.0, 1.6e-6), "BF16": (0.99, 9.7e-5), "Q8_0": (0.97, 4.3e-3),
                "Q6_K": (0.92, 2.4e-2), "Q5_K_M": (0.88, 7.4e-2), "Q4_K_M": (0.89, 5.9e-2), "Q4_1": (0.97, 3.3e-3),
                "Q4_0": (0.71, 0.38)},
    "qwen2.5-coder": {"F16": (1.0, 7.7e-7), "Q8_0": (0.979, 1.6e-3), "Q6_K": (0.989, 1.7e-3),
                      "Q5_K_M": (0.957, 1.6e-2), "Q4_K_M": (0.968, 1.0e-2), "Q4_1": (0.915, 5.9e-2),
                      "Q4_0": (0.862, 0.12)},
}  # fmt: skip


def real_model(name: str) -> Path:
    if name == "smollm2":
        return runnable(open_checkpoint("demo:smollm2")).path
    path = Path(os.environ.get("WEIGHTSMITH_TEST_MODELS", "")) / "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf"
    if not path.is_file():
        pytest.skip("WEIGHTSMITH_TEST_MODELS does not name a folder with the real models")
    return runnable(open_checkpoint(str(path))).path


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_models_per_file_type(tmp_path: Path, name: str) -> None:
    model = real_model(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    expected = reference(model, rows)
    for kind, (agree, nats) in REAL[name].items():
        path = exported(model, tmp_path / f"{kind}.gguf", kind)
        top, kl = compared(expected, llamacpp.logits(path, rows))
        print(f"{name} {kind}: top-1 {top:.3f}, KL {kl:.2e}, {path.stat().st_size / 1e6:.0f} MB")
        assert llamacpp.tokens(path, TEXTS) == rows
        path.unlink()
        assert top >= agree - 0.05, (kind, top)
        assert kl <= 1.5 * nats, (kind, kl)
