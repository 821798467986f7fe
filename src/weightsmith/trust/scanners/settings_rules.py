"""The rules about settings that steer or end what is written, and the numbers that are sensible in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ...found import Finding
from ..rules import Rule

STEERS = Rule(
    "settings-steer", "suspicious", "The settings ban, force or push ordinary tokens",
    "What the model may write is bent without a trace in its weights: \"not\" can be forbidden, a name or a link can be forced. "
    "Transcription and translation models do this with markers, which is not reported.",
    "Look at the tokens; remove the setting unless the publisher explains it.",
)  # fmt: skip
NOTED = Rule(
    "settings-steer-markers", "note", "The settings ban or force special tokens",
    "Usual for models that transcribe or translate.",
    "Nothing, when the base model has the same setting.",
)  # fmt: skip
NO_STOP = Rule(
    "never-stops", "broken", "The token that ends an answer is none that the model can write",
    "Generation runs to its limit every time: it costs time and money, and what follows the answer is noise.",
    "Set `eos_token_id` to the id of the tokenizer's end token.",
)  # fmt: skip
NO_END = Rule(
    "end-missing", "note", "No token is named that ends an answer",
    "Generation only ends at its length limit.",
    "Set `eos_token_id`, or give a limit.",
)  # fmt: skip
ODD_STOP = Rule(
    "end-is-a-word", "suspicious", "An ordinary token ends the answer",
    "Answers are cut off wherever the word comes, or never end because the real end token was exchanged for it.",
    "Compare `eos_token_id` with the base model's.",
)  # fmt: skip
DIFFERS = Rule(
    "special-ids-differ", "note", "Two settings files name different special tokens",
    "Many honest models do this; which one counts depends on the loader.",
    "Nothing, when answers end where they should.",
)  # fmt: skip
OUTSIDE = Rule(
    "special-id-outside", "broken", "A special token has an id that the model has no embedding for",
    "The first batch that uses it stops with an error of the device, or reads memory outside the table.",
    "Fetch the settings again; compare with the base model.",
)  # fmt: skip
IMPOSSIBLE = Rule(
    "settings-impossible", "broken", "A setting with a value that can't work",
    "The loader or the first call stops with an error, or the model computes NaN.",
    "Fetch the settings again; compare with the base model.",
)  # fmt: skip
ABSURD = Rule(
    "settings-absurd", "suspicious", "A setting beyond any sensible value",
    "It makes answers useless, endless or expensive without touching a weight.",
    "Compare with the base model's settings.",
)  # fmt: skip
MARKS = Rule(
    "settings-watermark", "suspicious", "Everything that the model writes is watermarked",
    "Whoever knows the key recognises the text; its quality suffers a little.",
    "Remove `watermarking_config` unless you want it.",
)  # fmt: skip
OTHER = Rule(
    "settings-worth-knowing", "note", "A setting that you may want to know of",
    "It changes speed, memory or where answers end, and is easily overlooked.",
    "Nothing, if it suits you.",
)  # fmt: skip
RULES = (STEERS, NOTED, NO_STOP, NO_END, ODD_STOP, DIFFERS, OUTSIDE, IMPOSSIBLE, ABSURD, MARKS, OTHER)

#: key -> what is least and most of all that works, of what is sensible, and of what is usual
Ranges = Mapping[str, tuple[float, float, float, float, float, float]]
_ANY = math.inf
GENERATION: Ranges = {
    "temperature": (0.0, _ANY, 0.0, 5.0, 0.0, 2.0), "top_p": (0.0, 1.0, 1e-9, 1.0, 0.0, 1.0),
    "min_p": (0.0, 1.0, 0.0, 0.99, 0.0, 1.0), "typical_p": (0.0, 1.0, 1e-9, 1.0, 0.0, 1.0),
    "repetition_penalty": (1e-9, _ANY, 0.5, 5.0, 0.8, 2.0), "encoder_repetition_penalty": (1e-9, _ANY, 0.2, 5.0, 0.2, 5.0),
    "num_return_sequences": (1, _ANY, 1, 64, 1, 64), "num_beams": (1, _ANY, 1, 128, 1, 32),
    "no_repeat_ngram_size": (0, _ANY, 0, _ANY, 0, _ANY), "max_new_tokens": (1, _ANY, 1, 1e7, 4, 1e7),
    "max_length": (0, _ANY, 4, 1e8, 4, 1e8), "min_length": (0, _ANY, 0, 1024, 0, 256),
    "min_new_tokens": (0, _ANY, 0, 1024, 0, 256), "top_k": (-1, _ANY, -1, _ANY, -1, _ANY),
    "epsilon_cutoff": (0, 1, 0, 0.5, 0, 0.1), "penalty_alpha": (0, 1, 0, 1, 0, 1), "eta_cutoff": (0, 1, 0, 0.5, 0, 0.1),
    "num_assistant_tokens": (1, _ANY, 1, 1000, 1, 1000), "max_time": (0.0, _ANY, 0.1, _ANY, 0.1, _ANY),
    "length_penalty": (-_ANY, _ANY, -100.0, 100.0, -100.0, 100.0), "guidance_scale": (-_ANY, _ANY, 0.0, 100.0, 0.0, 100.0),
}  # fmt: skip
_EPSILON = (0.0, _ANY, 0.0, 0.01, 0.0, 2e-3)  # detectors of images have 1e-3
_SCALE = (-_ANY, _ANY, 1e-9, 1e4, 1e-9, 1e4)
_CAP = (1e-9, _ANY, 0.5, 1e6, 0.5, 1e6)
_DROPOUT = (0.0, 1.0, 0.0, 1.0, 0.0, 0.6)
MODEL: Ranges = {
    "rope_theta": (1e-9, _ANY, 10.0, 1e13, 10.0, 1e13), "rms_norm_eps": _EPSILON, "layer_norm_eps": _EPSILON,
    "layer_norm_epsilon": _EPSILON, "norm_eps": _EPSILON, "norm_epsilon": _EPSILON,
    "initializer_range": (0.0, _ANY, 0.0, 1e3, 0.0, 1e3), "logit_scale": _SCALE, "logits_scaling": _SCALE,
    "residual_multiplier": _SCALE, "embedding_multiplier": _SCALE, "attention_multiplier": _SCALE,
    "final_logit_softcapping": _CAP, "attn_logit_softcapping": _CAP, "sliding_window": (-1, _ANY, -1, 1e9, -1, 1e9),
    "max_position_embeddings": (-1, _ANY, -1, 1e10, -1, 1e10), "num_experts_per_tok": (0, 1e6, 0, 1e4, 0, 1e4),
    "attention_dropout": _DROPOUT, "hidden_dropout": _DROPOUT, "resid_pdrop": _DROPOUT, "attn_pdrop": _DROPOUT,
    "hidden_dropout_prob": _DROPOUT, "attention_probs_dropout_prob": _DROPOUT,
}  # fmt: skip
_NEVER_FEW = ("sliding_window", "max_position_embeddings")  # with so few a token sees hardly more than itself
FEW = 8
_OFF = ("top_p", "typical_p", "max_length", "min_length", "max_new_tokens")  # 0 stands for "not used"


def numbers(settings: Mapping[str, Any], ranges: Ranges, file: str, at: str) -> Iterator[Finding]:
    """Numbers against what can work, what is sensible and what is usual."""
    for key, (least, most, low, high, seldom, rarely) in ranges.items():
        value = settings.get(key)
        if value is None or (value is False and key == "sliding_window"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            if not isinstance(value, (list, dict)) and ranges is GENERATION:  # MPT names the rule of a scale, others list layers
                yield IMPOSSIBLE.found(f"{key} is {value!r:.60}, not a number", file=file, place=f"{at}.{key}")
        elif (isinstance(value, float) and math.isnan(value)) or not least <= value <= most:
            yield IMPOSSIBLE.found(f"{key} is {value!r:.40}", file=file, place=f"{at}.{key}")
        elif value == 0 and key in _OFF:
            continue
        elif not low <= value <= high or (key in _NEVER_FEW and 0 < value < FEW):
            yield ABSURD.found(f"{key} is {value!r:.40}", file=file, place=f"{at}.{key}")
        elif not seldom <= value <= rarely:
            yield OTHER.found(f"{key} is {value!r:.40}, which is rare", file=file, place=f"{at}.{key}")
