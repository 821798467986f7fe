"""Low-rank adapters: what adapter_config.json says against the matrices beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...found import Finding
from ..listing import shown
from ..rules import Rule
from . import adapter_parts
from .facts import Place, whole_number
from .regexes import is_explosive

RANK = Rule(
    "adapter-rank", "broken", "An adapter's matrices have another rank than its settings say",
    "The usual loader stops at the first of them; others scale the change by the wrong number.",
    "Fetch settings and weights again from one revision.",
)  # fmt: skip
STRENGTH = Rule(
    "adapter-strength", "suspicious", "An adapter that is multiplied by an absurd number",
    "The change that it makes is scaled by `lora_alpha` over the rank: such a factor leaves nothing of the model.",
    "Compare `lora_alpha` with what the publisher says.",
)  # fmt: skip
SLOW = Rule(
    "adapter-slow-pattern", "suspicious", "A pattern of an adapter's settings that can take for ever",
    "Loaders match it against the name of each module of the model; repetition inside repetition takes time with the power of "
    "the name's length, and the program hangs.",
    "Do not load it; a list of the modules' names says the same.",
    ("https://cwe.mitre.org/data/definitions/1333.html",),
)  # fmt: skip
IMPORTS = Rule(
    "adapter-imports", "suspicious", "An adapter's settings name a module that is imported",
    "PEFT of some versions imports the module that `megatron_core` names as soon as `megatron_config` is set: the program that "
    "loads the adapter runs what is called so where it runs.",
    "Don't load it. The setting is `megatron.core` in every honest adapter.",
    ("https://cwe.mitre.org/data/definitions/470.html",),
)  # fmt: skip
RULES = (RANK, STRENGTH, SLOW, IMPORTS, *adapter_parts.RULES)
MOST = 10_000.0  # honest factors lie below a few hundred
_LOW = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)(?:\.\w+)?(?:\.weight)?$")


def compare(place: Place) -> Iterator[Finding]:
    """Findings about the adapter of one directory."""
    settings = place.json("adapter_config.json")
    yield from _patterns(settings, shown(place.prefix + "adapter_config.json"))
    core = settings.get("megatron_core")
    if core is not None and core != "" and not (isinstance(core, str) and re.fullmatch(r"megatron(?:\.\w+)*", core)):
        yield IMPORTS.found(f"megatron_core is {core!r:.120}", file=shown(place.prefix + "adapter_config.json"),
                            place="$.megatron_core")  # fmt: skip
    yield from adapter_parts.compare(place, settings)
    rank = whole_number(settings.get("r"))
    if settings.get("peft_type") not in ("LORA", None) or rank is None:
        return
    file = shown(place.prefix + "adapter_config.json")
    alphas = settings.get("alpha_pattern")
    numbers = [settings.get("lora_alpha"), *(alphas.values() if isinstance(alphas, dict) else ())]
    factor = max((abs(a) / rank for a in numbers if isinstance(a, (int, float)) and not isinstance(a, bool)), default=0.0)
    if not factor <= MOST:
        yield STRENGTH.found(f"the change is multiplied by {factor:.3g}", file=file, place="$.lora_alpha")
    if any(settings.get(key) for key in ("rank_pattern", "target_parameters", "megatron_config", "enable_lora")):
        return
    wrong = [(name, shape) for weights in place.weights for name, (_, shape, _) in weights.tensors.items()
             if len(shape) == 2 and _LOW.search(name) and rank not in shape]  # fmt: skip
    if wrong:
        name, shape = wrong[0]
        yield RANK.found(f"{len(wrong)} matrices, e.g. {name!r:.120} {list(shape)}; the settings say {rank}", file=file,
                         place="$.r", evidence=", ".join(n for n, _ in wrong[:12]))  # fmt: skip


def _patterns(settings: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Texts that PEFT matches against names, as they are or as keys of what is set for some modules."""
    for key in ("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules", "rank_pattern", "alpha_pattern"):
        value = settings.get(key)
        texts = value if isinstance(value, list | dict) and key.endswith("pattern") else [value]
        for text in texts:
            if isinstance(text, str) and is_explosive(text):
                yield SLOW.found(f"{key} holds {text!r:.100}", file=file, place=f"$.{key}", evidence=text)
