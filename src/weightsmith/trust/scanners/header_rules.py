"""The rules about headers of safetensors and GGUF files, and which of the parsers' faults belongs to which."""

from __future__ import annotations

from ..rules import Rule

MOST_HEADER = 1 << 24  # bytes of a safetensors header that a scan parses; the longest real ones need a few MB
MOST_TENSORS = 1 << 17

_SAFETENSORS = "https://huggingface.co/docs/safetensors/index#format"
_GGUF = "https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"
_BOTH = (_SAFETENSORS, _GGUF)
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp"
_FETCH = "Fetch the file again; if it is the same at its source, it was made so, and should not be used."

TRUNCATED = Rule(
    "weights-truncated", "broken", "A weight file ends before its header says it does",
    "Part of the model is missing. Some loaders fill the rest with zeros or with whatever memory held; others crash.",
    "Download it again. If it stays so, tell the publisher.", _BOTH,
)  # fmt: skip
TOO_LARGE = Rule(
    "header-too-large", "unknown", "A header far beyond any real model's",
    f"Parsing a header costs many times its bytes in memory. One over {MOST_HEADER >> 20} MiB, with more than {MOST_TENSORS} "
    "tensors, or with arrays of millions of elements is made to exhaust a reader, so it was not parsed.",
    "Do not load it. If it is an honest model of that many tensors, report it to us.", _BOTH,
)  # fmt: skip
LENGTH = Rule(
    "header-length", "broken", "The header's length is nothing that a reader accepts",
    "The first 8 bytes claim a header of more than the 100 MB that the reference reader allows. A reader that trusts them "
    "allocates as much memory.",
    _FETCH, (_SAFETENSORS,),
)  # fmt: skip
JSON = Rule(
    "header-not-json", "broken", "The header is not valid JSON",
    "Readers differ in what they make of malformed JSON, so what one of them checked is not what another loads.",
    _FETCH, (_SAFETENSORS,),
)  # fmt: skip
UTF8 = Rule(
    "header-not-utf8", "broken", "A text in the header is not UTF-8",
    "The specification wants UTF-8. Readers replace, drop or refuse other bytes, and then disagree about names.",
    _FETCH, _BOTH,
)  # fmt: skip
NESTING = Rule(
    "header-nested", "broken", "The header nests values deeper than the format has a use for",
    "A reader that calls itself for each level runs out of stack and crashes.",
    "Do not load it: no exporter writes this.", _BOTH,
)  # fmt: skip
DUPLICATE = Rule(
    "header-duplicate", "broken", "The header names one thing twice",
    "Two readers may pick different entries: one is scanned, the other one is loaded. The reference reader of safetensors accepts "
    "this without a word.",
    _FETCH, _BOTH,
)  # fmt: skip
TYPES = Rule(
    "header-types", "broken", "The header holds values of types that the format does not have there",
    "What a reader does with a fraction for a length, an object for a list or a type number that does not exist is undefined.",
    _FETCH, _BOTH,
)  # fmt: skip
METADATA = Rule(
    "header-metadata", "broken", "`__metadata__` is not a map from strings to strings",
    "The specification allows strings only; the reference reader refuses the file, others hand the values on unchecked.",
    _FETCH, (_SAFETENSORS,),
)  # fmt: skip
DTYPE = Rule(
    "tensor-dtype", "unknown", "A tensor of a type that is not known here",
    "Its length can't be checked and its values can't be read. It may be newer than this scanner, or older than the format's "
    "last clean-up, or made up.",
    "Update Weightsmith; if it stays, ask the publisher for another format of the model.", _BOTH,
)  # fmt: skip
SHAPE = Rule(
    "tensor-shape", "broken", "A tensor's shape does not fit its bytes or its type",
    "A reader that trusts the shape reads past the tensor's bytes: into other tensors, or into memory that is not the file's.",
    _FETCH, (*_BOTH, "https://cwe.mitre.org/data/definitions/125.html"),
)  # fmt: skip
OVERFLOW = Rule(
    "tensor-overflow", "broken", "A tensor's size overflows 64 bits",
    "Multiplied without a check, such dimensions wrap around to a small number: the reader allocates little and writes much.",
    "Do not load it: this is how heap overflows in model loaders are reached.",
    (*_BOTH, "https://cwe.mitre.org/data/definitions/190.html"),
)  # fmt: skip
OVERLAP = Rule(
    "tensor-overlap", "broken", "Two tensors share bytes",
    "The formats forbid it. Small files then claim huge models, and one tensor's bytes can be read as another's.",
    _FETCH, _BOTH,
)  # fmt: skip
HOLE = Rule(
    "tensor-hole", "broken", "Bytes between tensors that belong to none",
    "Nothing that loads the model reads them, so they are a place to hide data; readers that check the layout refuse the file.",
    _FETCH, _BOTH,
)  # fmt: skip
TRAILING = Rule(
    "trailing-data", "broken", "Bytes after the last tensor",
    "They belong to nothing. An archive or a program behind a model file makes one file be two things.",
    _FETCH, _BOTH,
)  # fmt: skip
ALIGNMENT = Rule(
    "tensor-alignment", "broken", "The alignment is impossible, or a tensor does not keep to it",
    "Readers compute offsets from it; a wrong one makes them read other bytes than were checked, or divide by zero.",
    _FETCH, (_GGUF,),
)  # fmt: skip
VERSION = Rule(
    "gguf-version", "unknown", "A GGUF version that is not known here",
    "Version 1 has other lengths than 2 and 3, and a newer one may have anything. The header was not parsed.",
    "Convert it anew with a current llama.cpp, or update Weightsmith.", (_GGUF,),
)  # fmt: skip
BYTE_ORDER = Rule(
    "gguf-byte-order", "unknown", "A big-endian GGUF file",
    "Ordinary machines can't load it, and it was not parsed here.",
    "Convert it with `gguf_convert_endian.py` of llama.cpp, and scan the result.", (_GGUF,),
)  # fmt: skip
SPEC = Rule(
    "header-invalid", "broken", "The header breaks its specification",
    "It was refused before any library parsed it.", _FETCH, _BOTH,
)  # fmt: skip
OTHER_CONTENT = Rule(
    "weights-not-what-they-say", "broken", "A file is called safetensors or GGUF and is something else",
    "A loader that goes by the name fails on it; one that goes by the content reads something that nobody expects there.",
    "Look at what it really is; fetch it again, or do not use the model.", _BOTH,
)  # fmt: skip
NAME = Rule(
    "tensor-name", "suspicious", "A name that is blank, absurdly long or holds characters that are not shown",
    "Printed, control characters rewrite what a terminal shows; invisible ones make two names look alike, and a loader then takes "
    "another tensor than you see.",
    "Ask the publisher; no exporter writes such names.", ("https://cwe.mitre.org/data/definitions/150.html",),
)  # fmt: skip
PADDING = Rule(
    "header-padding", "broken", "A header that begins or ends with something else than the specification says",
    "It has to begin with `{` and may end with spaces only; readers that go by the first byte disagree with those that do not.",
    _FETCH, (_SAFETENSORS,),
)  # fmt: skip
PAYLOAD = Rule(
    "metadata-payload", "suspicious", "A program, pickle or archive written as text in the header",
    "A header's texts are for people. Nothing decodes them by itself, but a loader's hook or a second file may.",
    "Decode it in a safe place, or ask the publisher what it is for; do not run anything that reads it.",
    ("https://cwe.mitre.org/data/definitions/506.html",),
)  # fmt: skip
CODE = Rule(
    "metadata-code", "suspicious", "Code in the header's texts",
    "Texts of a header are shown and handed on by many tools; some evaluate them, as templates or as Python.",
    "Read it. Do not use the model with tools that evaluate metadata.", ("https://cwe.mitre.org/data/definitions/94.html",),
)  # fmt: skip
MARKUP = Rule(
    "metadata-markup", "suspicious", "Scripts or terminal escapes in the header's texts",
    "Model pages and user interfaces show these texts; unescaped, a script runs in the viewer's browser.",
    "Do not open it in a web interface; ask the publisher.", ("https://cwe.mitre.org/data/definitions/79.html",),
)  # fmt: skip
LARGE_TEXT = Rule(
    "metadata-large", "unknown", "Megabytes of text beside the tensors",
    "Only the beginning of so much text is looked at, and what is behind it can be anything.",
    "Have a look at it; write the file anew without the text if you do not need it.",
)  # fmt: skip
KEY_TYPE = Rule(
    "gguf-key", "broken", "A GGUF key that every reader needs is missing or of another type",
    "A reader that does not check takes a text for a number or a number for a text; the others refuse the file.",
    _FETCH, (_GGUF,),
)  # fmt: skip
VOCABULARY = Rule(
    "gguf-vocabulary", "broken", "The parts of a GGUF vocabulary don't fit together",
    "Tokens, scores, types and the embedding have to be of one length: a reader that trusts one of them reads past the others.",
    _FETCH, (_GGUF, "https://cwe.mitre.org/data/definitions/125.html"),
)  # fmt: skip
TOKEN_ID = Rule(
    "gguf-token-id", "broken", "A special token's id is not in the vocabulary",
    "Without its end token a model can't stop; readers replace such an id by a default of their own, or read past the vocabulary.",
    _FETCH, (_GGUF,),
)  # fmt: skip
LAYERS = Rule(
    "gguf-layers", "broken", "A GGUF file has other layers than it says",
    "A loader refuses it, leaves a layer as memory happens to be, or passes over layers that belong to the model.",
    _FETCH, (_GGUF,),
)  # fmt: skip
PART_MISSING = Rule(
    "gguf-part-missing", "broken", "A GGUF file lacks tensors that its architecture needs",
    "llama.cpp refuses the file. A reader that goes on computes with whatever stands in their place.",
    "Fetch or convert it again, and compare with the source.", (_LLAMA_CPP,),
)  # fmt: skip
PART_SHAPE = Rule(
    "gguf-part-shape", "broken", "A tensor of a GGUF file has another shape than its metadata gives it",
    "llama.cpp refuses the file. A reader that does not compare reads past the tensor, or only a part of it.",
    "Fetch or convert it again, and compare with the source.", (_LLAMA_CPP,),
)  # fmt: skip
SPLIT = Rule(
    "gguf-split", "broken", "Parts of a split GGUF model are missing or don't belong together",
    "A loader reads all parts by name. A part that is missing, doubled or from another model gives a model that nobody made.",
    "Fetch all parts again, from one revision.", (_GGUF,),
)  # fmt: skip
NO_ARCHITECTURE = Rule(
    "gguf-no-architecture", "note", "A GGUF file that does not say what it is",
    "The specification wants `general.architecture`; files of image models and importance matrices often lack it.",
    "Use it only with the program that it was made for.", (_GGUF,),
)  # fmt: skip

RULES = (TRUNCATED, TOO_LARGE, LENGTH, JSON, UTF8, NESTING, DUPLICATE, TYPES, METADATA, DTYPE, SHAPE, OVERFLOW, OVERLAP, HOLE,
         TRAILING, ALIGNMENT, VERSION, BYTE_ORDER, SPEC, OTHER_CONTENT, NAME, PADDING, PAYLOAD, CODE, MARKUP, LARGE_TEXT,
         KEY_TYPE, VOCABULARY, TOKEN_ID, LAYERS, PART_MISSING, PART_SHAPE, SPLIT, NO_ARCHITECTURE)  # fmt: skip

#: ``fault`` of the parsers' errors -> rule
BY_FAULT = {
    "truncated": TRUNCATED, "too-large": TOO_LARGE, "length": LENGTH, "json": JSON, "utf-8": UTF8, "nesting": NESTING,
    "duplicate": DUPLICATE, "types": TYPES, "metadata": METADATA, "dtype": DTYPE, "shape": SHAPE, "overflow": OVERFLOW,
    "overlap": OVERLAP, "hole": HOLE, "trailing": TRAILING, "alignment": ALIGNMENT, "version": VERSION,
    "byte-order": BYTE_ORDER, "name": NAME, "magic": SPEC, "lfs": SPEC,
}  # fmt: skip
