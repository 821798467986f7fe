"""The class that the settings name for a tokenizer, against the kind of model that its ``tokenizer.json`` holds.

Loaders of today build the class's own normaliser, pre-tokenizer and decoder around the vocabulary and leave those of the file
alone; some classes can't do it at all. Classes that only pass the file on, and those that families share across kinds (Llama's
over a vocabulary of bytes), say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...found import Finding
from ..listing import shown
from ..rules import Rule
from .facts import Place
from .tokenizer_losses import has_many
from .vocabulary import Vocabulary

OTHER_KIND = Rule(
    "tokenizer-class", "suspicious", "The tokenizer's class is made for another kind of vocabulary",
    "Loaders cut text the way the class does and not the way the file says: capital letters, spaces and most words are lost, or "
    "read as unknown, though tokenizer.json is intact.",
    "Compare `tokenizer_class` in tokenizer_config.json with the base model's.",
)  # fmt: skip
RULES = (OTHER_KIND,)
_NAME = re.compile(r"(?P<family>\w+?)Tokenizer(?:Fast)?")
_PIECES = frozenset({"WordPiece", "WordLevel"})
_TEXTS = frozenset({"Unigram", "BPE", "WordLevel"})
_BYTES = _TEXTS | {"bytes"}
#: kinds of model that a class has a use for, by the family in its name
_KINDS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("Bert", "DistilBert", "Electra", "MobileBert", "MPNet", "LayoutLM", "LayoutLMv2", "Lxmert", "Funnel",
                     "ConvBert", "SqueezeBert", "DPRQuestionEncoder", "DPRContextEncoder", "RoFormer", "Splinter"), _PIECES),
    **dict.fromkeys(("T5", "XLMRoberta", "Albert", "XLNet", "Pegasus", "MBart", "MBart50", "Camembert", "BigBird", "Reformer",
                     "Barthez", "RemBert", "DebertaV2", "Gemma", "CLIP", "OpenAIGPT"), _TEXTS),
    **dict.fromkeys(("GPT2", "Roberta", "Bart", "GPTNeoX", "Qwen2", "CodeGen", "Longformer", "LED", "Whisper", "Bloom", "Deberta",
                     "Llama", "CodeLlama", "Cohere"), _BYTES),
}  # fmt: skip


def check_class(place: Place, vocabulary: Vocabulary) -> Iterator[Finding]:
    """A finding where the class reads no vocabulary of this kind; of models that write nothing it is a note."""
    if not vocabulary.source.endswith("tokenizer.json"):
        return
    for base in ("tokenizer_config.json", "config.json"):  # where the first names none, loaders ask the second
        name = place.json(base).get("tokenizer_class")
        if not isinstance(name, str) or not name:
            continue
        match = _NAME.fullmatch(name)
        kinds = _KINDS.get(match["family"]) if match else None
        kind = "bytes" if vocabulary.kind == "BPE" and has_many(vocabulary, "Ġ") else vocabulary.kind
        if kinds is not None and kind not in kinds:
            yield OTHER_KIND.found(f"{name:.80} over a vocabulary of the kind {kind:.40}", file=shown(place.prefix + base),
                                   place="$.tokenizer_class", severity=None if place.generates else "note")  # fmt: skip
        return
