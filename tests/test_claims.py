"""Claims of model cards: what is read as a claim and what is not, when one holds, and what a hostile card can't do."""

from __future__ import annotations

import json
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pico
from clirun import cli
from weightsmith.cards import LIMIT, claims_of, read_card
from weightsmith.cards.figures import as_share, context_at, number_at, size_at
from weightsmith.cards.page import escaped
from weightsmith.cards.plain_yaml import read_yaml
from weightsmith.checkpoint import open_checkpoint
from weightsmith.claimed import CLAIMS, Claim, ClaimsRecord, Verdict
from weightsmith.cli.claims import CODES, command
from weightsmith.errors import FormatError, MissingExtra, UsageError
from weightsmith.jobs import claim_figures
from weightsmith.jobs.claim_files import is_part, layer_of
from weightsmith.jobs.claims import claims, save_claims
from weightsmith.measure.sizes import SUITES
from weightsmith.measure.stats import wilson
from weightsmith.measured import Difference, Measurement, MeasureRecord, ScorerNote
from weightsmith.runtime.load import identity

BASE = "Pico-Base-32"

# -- cards, all made up --------------------------------------------------------------------------------------

HERETIC = """\
---
license: apache-2.0
base_model: tinyorg/{base}
tags:
- heretic
- uncensored
---
# This is a decensored version of [tinyorg/{base}](https://huggingface.co/tinyorg/{base}), made using \
[Heretic](https://github.com/p-e-w/heretic) v1.4.0

## Abliteration parameters

| Parameter | Value |
| :-------- | :---: |
| **direction_index** | 14.20 |
| **attn.o_proj.max_weight** | 1.31 |
| **mlp.down_proj.min_weight_distance** | 9.75 |

## Performance

| Metric | This model | Original model ([tinyorg/{base}](https://huggingface.co/tinyorg/{base})) |
| :----- | :--------: | :---------------------------: |
| **KL divergence** | {kl} | 0 *(by definition)* |
| **Refusals** | {refusals} | {original} |

-----

# {base}

The base model has 32 layers. MMLU: 71.3%. Refusals: 99/100.
"""
ABLITERIX = """\
---
base_model:
  - tinyorg/{base}
---
# {base} abliterated

An abliterated version of `tinyorg/{base}`. Only `o_proj` and `down_proj` of layers {layers} were changed.
No other weights were modified.

| Model | Refusals (100 prompts) | KL divergence (first token) |
|---|---:|---:|
| Original | 96 | 0 |
| **This model** | 4 | 0.021 |
| someone/else | 50 | 0.9 |

- **Refusal rate:** 4% (original: 96%)
"""
MERGEKIT = """\
---
base_model:
- tinyorg/{base}
- tinyorg/Pico-Math-32
library_name: transformers
tags: [mergekit, merge]
---
# merged

This is a merge of pre-trained language models created using [mergekit](https://github.com/cg123/mergekit).

### Merge Method

This model was merged using the TIES merge method using [tinyorg/{base}](https://huggingface.co/tinyorg/{base}) as a base.

```yaml
models:
  - model: tinyorg/Pico-Math-32
    parameters: &p
      density: 0.5
      weight: [0, 0.3, 1]
  - model: tinyorg/Pico-Code-32
    parameters: *p
merge_method: ties
base_model: tinyorg/{base}
dtype: {dtype}
```
"""
PROSE = """\
An edited version of tinyorg/{base}. The weights were changed in one place.

Refusals dropped from 41/48 to {now}. The KL divergence from the original
model is {kl} on harmless prompts.
It scores 25.3% on MMLU and 61.2% on PIQA.

| Benchmark | This model | Original |
|---|---|---|
| MMLU | 25.3 | 25.9 |
| CommonsenseQA | 0.412 ± 0.01 | 0.431 |
| Perplexity | 12.6 | 12.0 |

- Context length: {context}
- Tensor type: BF16
"""
#: numbers everywhere, and not one claim of this model's figures
MESSY = """\
# Notes, 2026-03-10 (v1.2)

KL divergence below 0.1 is considered good; refusals should be under 5%. MMLU has 57 subjects and 15908 questions.
Trained for 3/4 of an epoch on 2 trillion tokens with 64 GPUs. Llama-3 refuses 60/100, GPT-4 scores 86.4% on MMLU.
other/model-7b has a KL divergence of 0.4. The refusal rate fell by 94%. The refusal direction is at layer 14 of 30.
A nearly lossless conversion. Would the weights be unchanged? MMLU-Pro: 31.2%. Could refuse 3/100.
See section 3/100 for refusals 12 and the KL 3 step. Refused 7 tokens. Only 5 people were asked.

| Model | MMLU | Refusals |
|---|---|---|
| org/one-7b | 61.2 | 12/100 |
| org/two-7b | 55.0 | 30/100 |

| Step | Loss | KL |
|---|---|---|
| 100 | 2.31 | 0.002 |
| 200 | 2.11 | 0.004 |

<!-- Refusals: 0/100. The weights are unchanged. -->
<script>var kl = "KL divergence: 0.0001";</script>

```python
print("KL divergence: 0.001")  # refusals: 0/100
```
"""
HOSTILE = (
    "---\nbase_model: [&a x, *a]\nlicense: !!python/object/apply:os.system ['true']\n---\n"
    "# \x1b[31mred\x07 [x](javascript:alert(1)) <img src=x onerror=alert(1)>\n"
    "Refusals: 3/100 \u202eevil\x1b]0;title\x07\n"
    "| Metric | This model |\n|---|---|\n| KL divergence | 0.01 | " + "|" * 3000 + "\n"
)


def of(card: str, **more: str) -> list[Claim]:
    return claims_of(card.replace("{base}", BASE).format(**more) if more else card).claims


def told(found: list[Claim]) -> set[tuple[Any, ...]]:
    return {(c.kind, c.subject, c.claimed) for c in found}


# -- what is read --------------------------------------------------------------------------------------------


def test_heretic_card_its_figures_its_base_and_settings_but_not_the_copied_card() -> None:
    text = HERETIC.format(base=BASE, kl="0.0190", refusals="3/100", original="41/100")
    card = claims_of(text)
    assert told([c for c in card.claims if c.kind != "setting"]) == {
        ("licence", "this model", "apache-2.0"),
        ("base model", "this model", f"tinyorg/{BASE}"),
        ("divergence", "this model", "0.019 nats"),
        ("rate", "this model", "3/100"),
        ("rate", "original model", "41/100"),
    }
    settings = [c for c in card.claims if c.kind == "setting"]
    assert [c.names[0] for c in settings] == ["direction_index", "attn.o_proj.max_weight", "mlp.down_proj.min_weight_distance"]
    assert all(c.unmeasurable for c in settings)
    assert any("base's own card" in n for n in card.notes)
    lines = text.splitlines()
    for c in card.claims:
        assert c.file == "README.md"
        assert c.text.rstrip("…") in lines[c.line - 1]
    kl = next(c for c in card.claims if c.kind == "divergence")
    assert lines[kl.line - 1].startswith("| **KL divergence** | 0.0190")
    assert kl.keys == ["kl.first.mean", "kl.mean"]
    assert kl.step == pytest.approx(0.00005)


def test_abliterix_card_rows_of_models_parts_and_layers() -> None:
    found = claims_of(ABLITERIX.format(base=BASE, layers="10-20")).claims
    assert told(found) == {
        ("base model", "this model", f"tinyorg/{BASE}"),
        ("tensors", "this model", "o_proj, down_proj"),
        ("rate", "this model", "4/100"),
        ("rate", "original model", "96/100"),
        ("divergence", "this model", "0.021 nats"),
        ("rate", "this model", "4%"),
        ("rate", "original model", "96%"),
    }
    assert next(c for c in found if c.kind == "tensors").layers == [*range(10, 21)]
    assert next(c for c in found if c.kind == "divergence").keys == ["kl.first.mean"]


def test_mergekit_card_models_and_dtype_with_their_lines() -> None:
    text = MERGEKIT.format(base=BASE, dtype="bfloat16")
    found = claims_of(text).claims
    assert {c.kind for c in found} == {"merge", "dtype"}
    listed = [c.names for c in found if c.kind == "merge"]
    assert ["tinyorg/Pico-Math-32", "tinyorg/Pico-Code-32"] in listed
    assert [f"tinyorg/{BASE}"] in listed
    dtype = next(c for c in found if c.kind == "dtype")
    assert (dtype.names, dtype.text) == (["BF16"], "dtype: bfloat16")


def test_prose_and_bench_tables() -> None:
    found = claims_of(PROSE.format(base=BASE, now="3/48", kl="0.05", context="32,768 tokens")).claims
    kinds = told(found)
    assert {("rate", "this model", "3/48"), ("rate", "original model", "41/48"), ("divergence", "this model", "0.05 nats"),
            ("score", "this model", "25.3%"), ("score", "original model", "25.9%"), ("score", "this model", "61.2%"),
            ("score", "this model", "41.2%"), ("perplexity", "this model", "12.6"), ("perplexity", "original model", "12"),
            ("context length", "this model", "32768 tokens"), ("dtype", "this model", "BF16")} <= kinds  # fmt: skip
    assert next(c for c in found if c.kind == "divergence").line == 4  # where the number stands, not the sentence


def test_a_number_that_is_merely_mentioned_is_no_claim() -> None:
    assert claims_of(MESSY).claims == []
    assert claims_of("").claims == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It refuses 3 of 100 harmful prompts (original: 97 of 100).", {"3/100", "97/100"}),
        ("3/100 refusals (vs. 97/100 for the original)", {"3/100", "97/100"}),
        ("Refusal rate of less than 5%.", {"≤ 5%"}),
        ("Zero refusals in our tests.", {"0%"}),
        ("KL divergence: < 0.01", {"≤ 0.01 nats"}),
        ("Unlike the base model, which refuses 97%, it complies.", set()),
        ("Refusals: 3", set()),
        ("The abliterated model's KL divergence is 3 layers deep.", set()),
        ("This model has 135M parameters and a context length of 8192 tokens.", {"135000000 parameters", "8192 tokens"}),
        ("The 70B parameters of the other model are many.", set()),
        ("Not only o_proj was changed.", set()),
        ("Only 12 tensors were changed.", {"12 tensors"}),
        ("All other tensors are byte-for-byte identical.", {""}),
        ("The config was changed; weights are unchanged.", {"the base's weights"}),
        ("Weights are almost unchanged.", set()),
        ("Weights are not unchanged.", set()),
        ("You can choose an input/output pair and/or fine-tune from scratch.", set()),
        ("Perplexity is 27 against 26.", {"27", "26"}),
        ("Perplexity rises from 26 to 27", {"27", "26"}),
        ("The perplexity went slightly from 26.1 to 27.3 on 33 texts.", {"27.3", "26.1"}),
        ("The perplexity is 27 against the base model's 26.", {"27", "26"}),
        ("MMLU rises to 26.3%.", {"26.3%"}),
        ("Perplexity fell from 260 to 27 during training.", set()),
        ("Perplexity rises from 26 to 27 tokens.", set()),
        ("Perplexity rises by 1.5.", set()),
        ("Perplexity rises 1.5 only.", set()),
        ("Perplexity was read on 26 texts against 27 before.", set()),
        ("Perplexity is 27.", set()),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: set[str]) -> None:
    assert {c.claimed for c in claims_of(text).claims} == expected


@pytest.mark.parametrize("text", ["Perplexity is 27 against 26.", "Perplexity rises from 26 to 27"])
def test_of_two_perplexities_one_is_the_bases(text: str) -> None:
    assert told(claims_of(text).claims) == {("perplexity", "this model", "27"), ("perplexity", "original model", "26")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A small model\nParameters: 135M\nIt was made on a laptop", {("135000000 parameters", 2)}),
        ("It is small.\n**Parameters:** 135M\nContext length: 8192 tokens\nIt was made on a laptop.",
         {("135000000 parameters", 2), ("8192 tokens", 3)}),
        ("Parameters: 135M.\nThat is all", {("135000000 parameters", 1)}),
        ("It is small\nPrecision: bfloat16\nPerplexity: 12.6\nKL divergence: 0.02\nRefusals: 3/100\nThat is all",
         {("BF16", 2), ("12.6", 3), ("0.02 nats", 4), ("3/100", 5)}),
        ("A family of models\nParameters: 135M\nto 7B, as you like", set()),
        ("It was compared with\nLlama-3, which is large\nParameters: 70B\nIt did well", set()),
        ("The original model\nParameters: 7B\nContext length: 4096\nIt is large", set()),
        ("This would be, for example\nParameters: 70B\nIt is large", set()),
        ("It has the usual things (layers,\nParameters: 70B\nAnd so on)", set()),
        ("It did well\nRefusals: 3\nMMLU: 57 subjects\nMMLU: 5\nPerplexity: 27 texts\nThat is all", set()),
    ],
)  # fmt: skip
def test_labels_on_lines_within_a_paragraph(text: str, expected: set[tuple[str, int]]) -> None:
    assert {(c.claimed, c.line) for c in claims_of(text).claims} == expected


def test_what_a_reader_of_lm_eval_and_typed_results_expects() -> None:
    table = "|Tasks|Version|Filter|n-shot|Metric| |Value| |Stderr|\n|---|--:|---|--:|---|---|--:|---|--:|\n" \
            "|piqa| 1|none| 0|acc|↑|0.6812|±|0.0109|\n| | |none| 0|acc_norm|↑|0.6970|±|0.0107|\n"  # fmt: skip
    assert [c.claimed for c in claims_of(table).claims] == ["68.12%"]  # acc_norm is another figure than ours
    front = "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: qa}\n    dataset: {name: MMLU}\n    metrics:\n" \
            "    - type: acc\n      value: 25.3\n---\n"  # fmt: skip
    found = claims_of(front).claims
    assert [(c.claimed, c.line, c.text) for c in found] == [("25.3%", 9, "value: 25.3")]


def test_numbers_as_they_are_printed() -> None:
    assert (number_at("3/100").total, number_at("3 of 100").count) == (100, 3)  # type: ignore[union-attr]
    assert number_at("97/100.").value == 0.97  # type: ignore[union-attr]
    assert number_at("101/100") is None
    assert number_at("3/0") is None
    shares = [as_share(number_at(t)) for t in ("25.3%", "25.3", "0.253")]  # type: ignore[arg-type]
    assert [s.value for s in shares if s] == pytest.approx([0.253] * 3)
    assert [s.step for s in shares if s] == pytest.approx([0.0005] * 3)
    assert as_share(number_at("1312")) is None  # type: ignore[arg-type]
    assert size_at("1.5 billion").value == 1.5e9  # type: ignore[union-attr]
    k = context_at("128K")
    assert k
    assert abs(k.value - 131072) <= k.step
    assert abs(k.value - 128000) <= k.step + 1e-9


# -- hostile cards -------------------------------------------------------------------------------------------


def test_text_of_a_card_can_do_nothing_to_a_terminal() -> None:
    card = claims_of(HOSTILE)
    assert any(c.kind == "rate" for c in card.claims)
    shown = json.dumps([c.model_dump() for c in card.claims] + card.notes, ensure_ascii=False)
    assert not [c for c in shown if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u200b"]
    assert "\\u202e" in escaped("\u202e")
    assert len(escaped("x" * 1000)) <= 160


def test_yaml_is_plain_small_and_shallow() -> None:
    assert read_yaml("a: !!python/object/apply:os.system ['true']")[0] == {"a": ["true"]}  # text, nothing is built
    laughs = "a: &a [x,x]\n" + "".join(f"{c}: &{c} [{f'*{p},' * 9}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    assert read_yaml(laughs) == (None, "too many aliases")
    assert read_yaml("[" * 5000) in ((None, "too deep"), read_yaml("[" * 5000))
    assert read_yaml("[" * 5000)[0] is None
    assert read_yaml("a: " + "x" * (1 << 17))[1] == "longer than 64 KiB"
    assert read_yaml("&a [*a]")[1] == ""  # a list that holds itself
    assert read_yaml("a: [")[0] is None


def test_size_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(FormatError, match="1 MiB"):
        read_card(file)
    with pytest.raises(FormatError, match="1 MiB"):
        claims_of("x" * (LIMIT + 1))
    with pytest.raises(UsageError, match="no model card"):
        read_card(tmp_path / "none.md")
    assert len(claims_of("\n".join(f"Refusals: {i}/1000" for i in range(1000))).claims) <= 200


LONG = [
    "<" * 4000, "<a" * 2000, "[" * 4000, "[](" * 1300, "[a](b " * 700, "|" * 4000, "`" * 4000, "1" * 4000, "1," * 2000,
    "1.1." * 1000, "a/" * 2000, "layers " + "1, " * 1300, "layers " + "1-" * 2000, "KL " + "divergence " * 360,
    "only o_proj changed " * 200, "no other weights " * 230, "https://" * 500, "<!--" * 1000, "<!-- --> " * 440,
    "refuses 3/100 original " * 170, "MMLU " * 800, "- " * 2000, "#" * 4000, "_" * 4000, "model." * 660, " " * 4000,
    "\u0130" * 4000, "> " * 2000, "refusal rate of " * 250, "a.b-c" * 800, "x" * 4000, "lossless is " * 330,
    "Parameters: 135M\n" * 230, "It is small\nRefusals: 3/100\n" * 140,
]  # fmt: skip


@pytest.mark.parametrize("piece", LONG, ids=range(len(LONG)))
def test_work_grows_linearly_with_the_card(piece: str, count_steps: Callable[[str], int]) -> None:
    few, many = (count_steps("\n\n".join([piece] * n)) for n in (4, 16))
    assert many <= 4 * few + 4000


def test_any_bytes_are_read_without_a_bug() -> None:
    dice = random.Random(0)
    words = [*"|:-`#>*[]()<>/%.,=~\n\n\n  ", "| --- |", "KL divergence", "refusals", "3/100", "0.01", "only", "o_proj",
             "layers 1-3", "original", "this model", "---", "```yaml", "merge_method: x", "MMLU", "<!--", "-->", "\x00",
             "\ud800", "\u2028", "base_model:", "İ", *string.digits]  # fmt: skip
    for _ in range(400):
        text = "".join(dice.choice(words) + dice.choice(["", " "]) for _ in range(dice.randrange(1, 120)))
        for text_ in (text, f"---\n{text}\n---\n{text}", f"| a | b |\n|---|---|\n| {text}"):
            for claim in claims_of(text_).claims:
                assert 1 <= claim.line <= text_.count("\n") + text_.count("\r") + 1
                assert len(claim.text) < 1000
                claim.model_dump_json()


@pytest.fixture
def count_steps() -> Callable[[str], int]:
    """Lines of our own Python that a card takes: what repeats quadratically is seen without a clock. (What a single
    pattern does is bounded by the length of a line.)"""
    import sys

    def count(text: str) -> int:
        steps = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal steps
            if "/weightsmith/cards/" not in frame.f_code.co_filename:
                return None
            steps += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            claims_of(text)
        finally:
            sys.settrace(before)
        return steps

    return count


# -- the rules for figures -----------------------------------------------------------------------------------


def rate(key: str, count: int, n: int, **more: Any) -> Measurement:
    low, high = wilson(count, n)
    return Measurement(name=key, value=count / n, unit="share", low=low, high=high, n=n, interval="wilson", key=key, **more)


def mean(key: str, value: float, low: float, high: float, n: int = 48) -> Measurement:
    return Measurement(name=key, value=value, unit="nats", low=low, high=high, n=n, interval="bootstrap", key=key)


def pair(base: Measurement, edited: Measurement, low: float = 0.0, high: float = 0.0) -> Difference:
    return Difference(name=base.name, condition="", unit=base.unit, base=base, edited=edited, value=edited.value - base.value,
                      low=low, high=high, p=1.0, test="McNemar, exact", n=base.n, key=base.key)  # fmt: skip


def a_record(model: Path, refuses: tuple[int, int] = (2, 44), n: int = 48, first: float = 0.02, whole: float = 0.03,
             ratio: float = 1.05, mmlu: int = 52) -> MeasureRecord:  # fmt: skip
    """What a measurement would find: ``refuses`` of ``n`` of the edited model and of its base, and so on."""
    who = identity(open_checkpoint(str(model)))
    key = "safety.harmful.refuses"
    more = {"scorer": "refusal", "condition": "harmful requests"}
    rows = [
        pair(rate(key, refuses[1], n, **more), rate(key, refuses[0], n, **more)),
        pair(mean("perplexity", 12.0, 11, 13), mean("perplexity", 12.0 * ratio, 11, 14), 12 * (ratio - 1) - 0.1,
             12 * (ratio - 1) + 0.1),
        pair(rate("mmlu.accuracy", 52, 200), rate("mmlu.accuracy", mmlu, 200)),
    ]  # fmt: skip
    harm = [mean("kl.first.mean", first, 0.9 * first, 1.1 * first), mean("kl.mean", whole, 0.9 * whole, 1.1 * whole)]
    return MeasureRecord(title="t", sentence="s", feature="", feature_description="", base=who, edited=who, suite="quick",
                         differences=rows, damage=harm, options={"answer_tokens": 128},
                         scorers=[ScorerNote(name="refusal", reads="rules", error="wrong in 4% of answers")])  # fmt: skip


def verdict(claimed: str, found: MeasureRecord) -> Verdict:
    """The verdict on the last claim of a card."""
    every = claims_of(claimed).claims
    return claim_figures.judge(every[-1], claim_figures.figures_of(found), every)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an edit of one layer, and another of both."""
    folder = tmp_path_factory.mktemp("claims")
    pico.build("llama", folder / BASE)
    pico.a_direction(folder / BASE, feature="tiny").save(folder / "d.safetensors")
    for name, more in (("one", ["--remove", "1", "--layers", "1"]), ("added", ["--add", "0.3", "--layers", "0-1"])):
        done = cli("edit", folder / BASE, folder / "d.safetensors", *more, "-o", folder / name)
        assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize(
    ("claimed", "refuses", "n", "expected"),
    [
        ("3/100", 2, 48, "holds"),
        ("3/100", 30, 48, "does not hold"),
        ("90/100", 2, 48, "does not hold"),
        ("3/100", 2, 6, "cannot tell"),  # six prompts show nothing
        ("3/100", 10, 48, "cannot tell"),  # off, but perhaps by less than the margin
        ("3/100", 55, 250, "does not hold"),
        ("3%", 1, 48, "holds"),
        ("< 5%", 0, 48, "holds"),
        ("< 5%", 20, 48, "does not hold"),
        ("> 50%", 48, 48, "holds"),
        ("1/2", 24, 48, "cannot tell"),  # a claim of two prompts is none
    ],
)  # fmt: skip
def test_rates(world: Path, claimed: str, refuses: int, n: int, expected: str) -> None:
    found = verdict(f"Refusals: {claimed}", a_record(world / BASE, (refuses, n - 1), n))
    assert found.verdict == expected, found.why
    assert found.value == pytest.approx(refuses / n)
    assert (found.low, found.high) == pytest.approx(wilson(refuses, n))
    for word in (f"{n} of our prompts", "128 tokens", "wrong in 4%", "points"):
        assert word in found.why


def test_both_verdicts_are_rarely_wrong() -> None:
    """Simulated: a claim that is right is hardly ever said not to hold; one that is wrong by twice the margin hardly ever to."""
    dice = random.Random(1)

    def draw(p: float, n: int) -> int:
        return sum(dice.random() < p for _ in range(n))

    wrong = {"does not hold": 0, "holds": 0}
    rounds = 400
    for _ in range(rounds):
        p = dice.uniform(0.02, 0.9)
        claim = claims_of(f"Refusals: {draw(p, 100)}/100").claims[0]
        wrong["does not hold"] += _outcome(claim, draw(p, 48)) == "does not hold"
        wrong["holds"] += _outcome(claim, draw(min(1.0, p + claim_figures.MARGIN + 0.001), 48)) == "holds"
    assert wrong["does not hold"] / rounds <= 0.02
    assert wrong["holds"] / rounds <= 0.08


def _outcome(claim: Claim, count: int) -> str:
    key = "safety.harmful.refuses"
    return claim_figures.judge(claim, claim_figures.Figures(edited={key: rate(key, count, 48)}), [claim]).verdict


def test_a_base_that_is_off_too_says_that_the_card_counts_otherwise(world: Path) -> None:
    card = "| Metric | Original model | This model |\n|---|---|---|\n| Refusals | {} | 40/100 |\n"
    off = verdict(card.format("97/100"), a_record(world / BASE, (2, 10)))
    assert off.verdict == "cannot tell"
    assert "counts otherwise" in off.why
    kept = verdict(card.format("92/100"), a_record(world / BASE, (2, 44)))
    assert kept.verdict == "does not hold"


@pytest.mark.parametrize(
    ("claimed", "first", "whole", "expected", "says"),
    [
        ("KL divergence: 0.001", 0.187, 0.4, "does not hold", "by no definition"),
        ("KL divergence: 0.02", 0.02, 0.4, "holds", "kl.first.mean"),
        ("KL divergence: 0.4", 0.02, 0.4, "holds", "kl.mean"),
        ("First-token KL divergence: 0.4", 0.02, 0.4, "does not hold", "kl.first.mean"),
        ("KL divergence: 0.1", 0.16, 0.19, "cannot tell", "too near twice"),
        ("KL divergence: 0.5", 0.1, 0.12, "cannot tell", "lower"),
        ("KL divergence: 0.5", 0.0, 0.0, "does not hold", "by no definition"),
        ("KL divergence: < 0.1", 0.02, 0.03, "holds", ""),
        ("KL divergence: < 0.1", 0.5, 0.6, "does not hold", ""),
        ("Median KL divergence: 0.1", 0.1, 0.1, "cannot tell", "no such divergence"),
    ],
)  # fmt: skip
def test_divergences_by_each_definition(world: Path, claimed: str, first: float, whole: float, expected: str, says: str) -> None:
    found = verdict(claimed, a_record(world / BASE, first=first, whole=whole))
    assert found.verdict == expected, found.why
    assert says in found.why


def test_a_wide_interval_of_a_divergence_can_not_tell(world: Path) -> None:
    record = a_record(world / BASE)
    record.damage = [mean("kl.first.mean", 0.3, 0.01, 2.0, n=4)]
    assert verdict("KL divergence: 0.2", record).verdict == "cannot tell"


def test_scores_and_perplexities(world: Path) -> None:
    assert verdict("MMLU: 25.3%", a_record(world / BASE)).verdict == "holds"
    assert verdict("MMLU: 68.4%", a_record(world / BASE)).verdict == "does not hold"
    assert verdict("PIQA: 68.4%", a_record(world / BASE)).verdict == "cannot tell"  # not in this suite
    alone = verdict("Perplexity: 12.6", a_record(world / BASE))
    assert (alone.verdict, "texts" in alone.why) == ("cannot tell", True)
    both = "| Metric | Original | This model |\n|---|---|---|\n| Perplexity | 30.0 | {} |\n"
    assert verdict(both.format(31.5), a_record(world / BASE, ratio=1.05)).verdict == "holds"  # the ratio, on other texts
    assert verdict(both.format(30.0), a_record(world / BASE, ratio=1.4)).verdict == "does not hold"


# -- the rules for files -------------------------------------------------------------------------------------


def checked(world: Path, card: str, model: str = "one", **more: Any) -> dict[str, Verdict]:
    """Verdicts by what is said, of a card that is given, without anything measured."""
    file = world / "card.md"
    file.write_text(card, encoding="utf-8")
    record = claims(world / model, more.pop("against", world / BASE), card=file, suite="none", options=pico.CPU, **more)
    return {v.claim.says: v for v in record.verdicts}


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("Only o_proj and down_proj of layer 1 were changed.", "holds"),
        ("Only the attention output projections and MLP down projections were edited.", "holds"),
        ("I edited o_proj and down_proj. No other weights were modified.", "holds"),
        ("Only o_proj and down_proj of layers 0-1 were changed.", "holds"),
        ("Only o_proj and down_proj of layer 2 were changed.", "cannot tell"),  # there is no layer 2
        ("Only o_proj and down_proj of layer 0 were changed.", "does not hold"),
        ("Only down_proj was changed.", "does not hold"),
        ("Only the embeddings were changed.", "does not hold"),
        ("Only 2 tensors were changed.", "holds"),
        ("Only 3 tensors were changed.", "does not hold"),
        ("No other weights were modified.", "cannot tell"),
        ("The weights are unchanged.", "does not hold"),
        ("A lossless conversion.", "does not hold"),
    ],
)  # fmt: skip
def test_what_was_changed_is_exact(world: Path, says: str, expected: str) -> None:
    found = [v for v in checked(world, says).values() if v.claim.file == "card.md"]
    assert [v.verdict for v in found] == [expected], found[0].why
    if expected == "does not hold" and "tensors" not in says:
        assert found[0].differs
        assert {*found[0].differs} <= {f"model.layers.1.{n}.weight" for n in ("mlp.down_proj", "self_attn.o_proj")}
    same = [v for v in checked(world, "The weights are unchanged.", BASE).values() if v.claim.kind == "same weights"]
    assert [v.verdict for v in same] == ["holds"]


def test_only_that_was_changed_though_nothing_was(world: Path) -> None:
    found = checked(world, "Only o_proj was changed.", BASE)
    assert [v.verdict for v in found.values()] == ["does not hold"]


def test_a_cast_is_neither(world: Path, tmp_path: Path) -> None:
    import torch

    pico.build("llama", tmp_path / "cast", torch.bfloat16)
    (tmp_path / "card.md").write_text("The weights are unchanged.\n\n- Tensor type: bf16\n- dtype: float32\n")
    record = claims(tmp_path / "cast", world / BASE, card=tmp_path / "card.md", suite="none")
    assert {(v.claim.kind, v.verdict) for v in record.verdicts} == {
        ("same weights", "cannot tell"), ("dtype", "holds"), ("dtype", "does not hold")}  # fmt: skip


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (f"An abliterated version of tinyorg/{BASE}.", "holds"),
        ("An abliterated version of tinyorg/Another-7b.", "cannot tell"),
        ("Parameters: {size:.3f}M", "holds"),
        ("Parameters: 7B", "does not hold"),
        ("Context length: 512", "holds"),
        ("Context length: 128K", "does not hold"),
        ("Tensor type: F32", "holds"),
        ("License: mit", "cannot tell"),
    ],
)  # fmt: skip
def test_base_size_and_storage(world: Path, says: str, expected: str) -> None:
    size = open_checkpoint(str(world / "one")).parameters / 1e6
    found = [v for v in checked(world, says.format(size=size)).values() if v.claim.file == "card.md"]
    assert [v.verdict for v in found] == [expected], found[0].why


def test_a_base_of_that_name_that_it_was_not_made_from(world: Path, tmp_path: Path) -> None:
    pico.build("llama", tmp_path / "Other-9", seed=9)
    pico.build("qwen2", tmp_path / "Third-9")
    card = "An abliterated version of tinyorg/{}."
    apart = checked(world, card.format("Other-9"), against=tmp_path / "Other-9")["made from tinyorg/Other-9"]
    assert (apart.verdict, "trained apart" in apart.why) == ("does not hold", True)
    kind = checked(world, card.format("Third-9"), against=tmp_path / "Third-9")["made from tinyorg/Third-9"]
    assert (kind.verdict, "qwen2" in kind.why) == ("does not hold", True)


def test_our_own_record_is_a_claim_too(world: Path, tmp_path: Path) -> None:
    for name in ("one", "added"):
        record = claims(world / name, world / BASE, suite="none")
        assert [(v.claim.kind, v.verdict) for v in record.verdicts] == [("digest", "holds")] * 2 + [("tensors", "holds")]
        lines = (world / name / "weightsmith.json").read_text().splitlines()
        own = [f' "{key}": ' for key in ("base", "digest", "tensors")]  # the record's own, not one of its base's
        assert [lines[v.claim.line - 1][: len(k)] for v, k in zip(record.verdicts, own, strict=True)] == own
        assert record.card == ""
    pico.build("llama", tmp_path / "other", seed=4)
    record = claims(world / "one", tmp_path / "other", suite="none")
    found = {v.claim.subject: v.verdict for v in record.verdicts if v.claim.kind == "digest"}
    assert found == {"original model": "cannot tell", "this model": "holds"}
    assert [v.verdict for v in record.verdicts if v.claim.kind == "tensors"] == ["cannot tell"]  # of another base is not said
    rewrite = json.loads((world / "one" / "weightsmith.json").read_text())
    rewrite["tensors"] = rewrite["tensors"][:1]
    shutil.copytree(world / "one", tmp_path / "less")
    (tmp_path / "less" / "weightsmith.json").write_text(json.dumps(rewrite, indent=1))
    assert claims(tmp_path / "less", world / BASE, suite="none").outcome == "does not hold"


def test_parts_and_layers_of_names() -> None:
    name = "model.layers.12.self_attn.o_proj.weight"
    assert layer_of(name) == 12
    assert layer_of("lm_head.weight") is None
    assert is_part(name, "o_proj", {})
    assert is_part(name, "model.layers.12.self_attn.o_proj", {})
    assert not is_part(name, "model.layers.1", {})
    assert not is_part(name, "proj", {})
    assert is_part(name, "attention output projections", {name: "attn_out"})


# -- the job and the command ---------------------------------------------------------------------------------


def test_the_job_measures_once_and_only_what_is_claimed(world: Path) -> None:
    asked: list[dict[str, Any]] = []

    def fake(model: Any, against: Any, **wishes: Any) -> MeasureRecord:
        asked.append(wishes)
        return a_record(world / BASE)

    (world / "card.md").write_text(HERETIC.format(base=BASE, kl="0.0190", refusals="3/100", original="92/100"))
    record = claims(world / "one", world / BASE, card=world / "card.md", measure=fake, n=48)
    assert len(asked) == 1
    assert {k: asked[0][k] for k in ("suite", "n")} == {"suite": "quick", "n": 48}
    assert "sets" not in asked[0]
    by = {(v.claim.kind, v.claim.subject): v.verdict for v in record.verdicts if v.claim.file == "card.md"}
    assert by == {("licence", "this model"): "cannot tell", ("base model", "this model"): "holds",
                  ("setting", "this model"): "cannot tell", ("divergence", "this model"): "holds",
                  ("rate", "this model"): "holds", ("rate", "original model"): "holds"}  # fmt: skip
    assert (record.outcome, record.suite) == ("holds", "quick")
    assert record.scorers[0].error in " ".join(record.conditions)
    (world / "card.md").write_text("MMLU: 25.3%")
    claims(world / "one", world / BASE, card=world / "card.md", measure=fake)
    assert asked[1]["sets"] == ("mmlu",)
    (world / "card.md").write_text("Only o_proj was changed.")
    claims(world / "one", world / BASE, card=world / "card.md", measure=fake)
    assert len(asked) == 2


def test_false_cards_are_found_out(world: Path) -> None:
    found = {}
    cards = {
        "heretic": HERETIC.format(base=BASE, kl="0.001", refusals="3/100", original="92/100"),
        "abliterix": ABLITERIX.format(base=BASE, layers="0-0"),
        "prose": PROSE.format(base=BASE, now="3/48", kl="0.05", context="32,768 tokens"),
        "mergekit": MERGEKIT.format(base=BASE, dtype="bfloat16"),
    }
    for name, card in cards.items():
        (world / "card.md").write_text(card)
        record = claims(world / "one", world / BASE, card=world / "card.md",
                        measure=lambda *_, **__: a_record(world / BASE, (40, 44), first=0.187, whole=0.4))  # fmt: skip
        found[name] = {v.claim.kind for v in record.verdicts if v.verdict == "does not hold"}
        assert record.outcome == "does not hold"
    assert found == {"heretic": {"divergence", "rate"}, "abliterix": {"tensors", "rate", "divergence"},
                     "prose": {"rate", "divergence", "context length", "dtype", "score"} - {"score"},
                     "mergekit": {"dtype"}}  # fmt: skip


def test_a_model_that_can_not_be_run_still_has_files(world: Path) -> None:
    def broken(*_: Any, **__: Any) -> MeasureRecord:
        raise MissingExtra("running a model needs torch", hint="pip install 'weightsmith[model]'")

    (world / "card.md").write_text("Refusals: 3/100. Only 2 tensors were changed.")
    record = claims(world / "one", world / BASE, card=world / "card.md", measure=broken)
    by = {v.claim.kind: v for v in record.verdicts if v.claim.file == "card.md"}
    assert (by["rate"].verdict, by["tensors"].verdict) == ("cannot tell", "holds")
    assert "needs torch" in by["rate"].why


def test_exit_codes_files_and_what_is_shown(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(world / BASE, plain)
    base, card = str(world / BASE), plain / "README.md"
    assert command(model=str(plain), against=base, suite="none") == CODES["cannot tell"] == 2  # no card
    assert "no card" in capsys.readouterr().out
    card.write_text(MESSY)
    assert command(model=str(plain), against=base, suite="none") == 2  # no claim
    assert "no claim was found" in capsys.readouterr().out
    card.write_text("The weights are unchanged.")
    out = tmp_path / "c.json"
    assert command(model=str(plain), against=base, suite="none", out=str(out)) == 0
    assert "1 holds" in capsys.readouterr().out
    record = ClaimsRecord.model_validate_json(out.read_text())
    assert record.schema_id == CLAIMS
    assert len(record.card_sha256) == 64
    card.write_text("# \x1b[31m\nThe weights are unchanged.\n\nLicense: mit\n\nRefusals: [red]3/9[/] \x1b[32m3/100\n\n"
                    "Parameters: 7B")  # fmt: skip
    assert command(model=str(plain), against=base, suite="none") == 1
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "does not hold" in shown
    assert command(model=str(plain), against=base, suite="none", json=True) == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "does not hold"
    with pytest.raises(UsageError, match="JSON"):
        command(model=str(plain), against=base, suite="none", out=str(tmp_path / "c.html"))
    with pytest.raises(UsageError, match="no model card"):
        command(model=str(plain), against=base, suite="none", card=str(tmp_path / "none.md"))
    save_claims(record, out, replace=True)
    assert ClaimsRecord.model_validate_json(out.read_text()) == record


@pytest.mark.slow
def test_a_card_against_what_is_really_measured(world: Path) -> None:
    """Removing a random direction from one layer of a pico model: it moves the distributions far less than the card says."""
    (world / "card.md").write_text("KL divergence: 0.9\n\nRefusals: 0/100\n\nRefusal rate: 100%\n")
    record = claims(world / "one", world / BASE, card=world / "card.md", n=8, options=pico.CPU)
    by = {v.claim.claimed: v for v in record.verdicts if v.claim.file == "card.md"}
    assert by["0.9 nats"].verdict == "does not hold", by["0.9 nats"].why
    assert by["100%"].verdict == "does not hold"  # a pico model says nothing that a refusal is made of
    assert by["0/100"].figure == "safety.harmful.refuses"
    assert record.suite == "quick"
    assert {v.n for v in by.values()} == {SUITES["quick"].safety}  # safety has a number of its own, whatever n is
