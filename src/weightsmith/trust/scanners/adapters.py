"""Low-rank adapters: what adapter_config.json says against the matrices beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...found import Finding
from ..listing import shown
from ..rules import Rule
from .facts import Place, whole_number

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
RULES = (RANK, STRENGTH)
MOST = 10_000.0  # honest factors lie below a few hundred
_LOW = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)(?:\.\w+)?(?:\.weight)?$")


def compare(place: Place) -> Iterator[Finding]:
    """Findings about the adapter of one directory."""
    settings = place.json("adapter_config.json")
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
