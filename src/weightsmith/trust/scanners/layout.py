"""The folder as a whole: JSON files, the index against shards against tensors, names, and what a loader would pick.

What the config promises is compared with the weights in :mod:`.promised`, carriers of one thing in :mod:`.carriers`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from ...errors import LimitExceeded, WeightsmithError
from ...found import Finding
from ..items import Folder, Item, Scanner
from ..listing import shown
from ..rules import Rule
from . import adapters, carriers, promised, strict
from .facts import INDEX as INDEX_NAME
from .facts import LOADED, PART, Place, Weights, places, role_of

INDEX = Rule(
    "index-invalid", "broken", "A weight index that is no index",
    "The index says which file holds which tensor; without it a loader finds no weights, or other ones.",
    "Fetch the index again from the publisher.",
)  # fmt: skip
LEAVES = Rule(
    "path-leaves-folder", "suspicious", "A settings file names a file outside the model's folder",
    "A loader that follows the name reads a file of yours, or another model's, as part of this model.",
    "Do not load it; a model only needs its own files.",
    ("https://cwe.mitre.org/data/definitions/22.html",),
)  # fmt: skip
SHARD_MISSING = Rule(
    "shard-missing", "broken", "The index names a weight file that is not there",
    "A part of the weights is missing: the download was interrupted, or files were taken out.",
    "Fetch the missing file.",
)  # fmt: skip
SHARD_UNLISTED = Rule(
    "shard-unlisted", "suspicious", "A shard of the weights that the index does not name",
    "Loaders that follow the index leave it out, loaders that read every file take it: they run two different models.",
    "Remove it, or fetch index and weights again from one revision.",
)  # fmt: skip
INDEX_TENSOR = Rule(
    "index-tensor-missing", "broken", "The index promises a tensor in a file that does not hold it",
    "A loader initialises the missing weights at random, in silence or with a line in a log, or stops.",
    "Fetch index and weights again from one revision.",
)  # fmt: skip
UNLISTED = Rule(
    "tensor-unlisted", "suspicious", "A shard holds a tensor that the index does not name",
    "Some loaders read whole shards and take it, others follow the index and leave it out: they run two different models.",
    "Find out which tensors the publisher meant; fetch index and weights again from one revision.",
)  # fmt: skip
TOTAL = Rule(
    "index-total", "note", "The index gives another total size than the weights have",
    "Several honest exporters count tied or quantised weights otherwise. It can also be left over from other weights.",
    "Nothing, when the digests are those of the publisher.",
)  # fmt: skip
TWICE = Rule(
    "tensor-twice", "suspicious", "One tensor stands in two weight files, with different contents",
    "Which one counts depends on the order in which a loader reads the files.",
    "Remove the file that does not belong; fetch the weights again from one revision.",
)  # fmt: skip
STRAY = Rule(
    "weights-unused", "note", "A weight file that the usual loader leaves out",
    "Loaders that read every file of the folder take it, others do not; nobody may have tested the model with it.",
    "Nothing, when you know what it is for.",
)  # fmt: skip
ADAPTER = Rule(
    "adapter-beside-weights", "suspicious", "An adapter lies beside full weights",
    "Where PEFT is installed, the usual loader sees the adapter first: it loads the base model that the adapter names, applies "
    "the adapter to it and leaves these weights out, without being asked.",
    "Move the adapter to a folder of its own, or load the weights with the adapter removed.",
)  # fmt: skip
BASE = Rule(
    "other-model-named", "note", "Loading this folder fetches another model",
    "What runs then is also the other model's weights and settings, which this scan did not see.",
    "Scan the other model too, and pin it.",
)  # fmt: skip
NESTED = Rule(
    "nested-model", "note", "A folder inside holds another model",
    "It is not loaded unless somebody names it, but it is published under the same name.",
    "Nothing, when you know what it is for; scan it on its own when you load it.",
)  # fmt: skip
VERSIONED = Rule(
    "versioned-settings", "suspicious", "Another settings file for some versions of the library",
    "transformers takes config.4.0.0.json or tokenizer.4.0.0.json in the place of the plain file when the settings list it and its "
    "own version fits: what everybody looks at is not what is loaded.",
    "Compare the two files; remove the versioned one and the list, unless the publisher explains it.",
)  # fmt: skip
COLLIDE = Rule(
    "names-collide", "suspicious", "Two file names that some file systems take for one",
    "On macOS and Windows one of them replaces the other, so that what is scanned here is not what is loaded there.",
    "Remove the one that does not belong.",
    ("https://cwe.mitre.org/data/definitions/178.html",),
)  # fmt: skip
ALIKE = Rule(
    "name-looks-alike", "suspicious", "A name that looks like that of a file which loaders read",
    "Some of its letters are of another alphabet: who looks at the folder sees one file, and a program takes another one.",
    "Remove it, and ask how it got there.",
    ("https://cwe.mitre.org/data/definitions/1007.html",),
)  # fmt: skip
CASE = Rule(
    "name-other-case", "suspicious", "A file that loaders read on some systems only",
    "Its name is that of a file that loaders read, in other letters: on macOS and Windows they find it, here it was not read as "
    "what it is there.",
    "Give it its usual name, and scan again; or remove it.",
    ("https://cwe.mitre.org/data/definitions/178.html",),
)  # fmt: skip
_EXPECTED = re.compile(r"(^|\.)(inv_freq|rotary_emb\.[\w.]+|attn\.(bias|masked_bias)|position_ids|num_batches_tracked)$")
_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|embed_tokens|shared|decoder|output)\.(weight|bias)$")
_HONEST_NESTED = re.compile(r"^(checkpoint-\d+|onnx|openvino|original|gguf|runs|logs|global_step\d+|\d+_[A-Za-z]\w*|"
                            r"unet|vae|text_encoder\w*|transformer|safety_checker|image_encoder|prior|decoder|tokenizer\w*|"
                            r"scheduler|feature_extractor|weightsmith)(/|$)")  # fmt: skip
_READ = (".json", ".safetensors", ".bin", ".gguf", ".model", ".jinja", ".py", ".pt", ".pth", ".onnx", ".npz", ".npy")
#: keys under which a tokenizer's own paths on the publisher's machine are left over; no loader reads them
_LEFT_OVER = frozenset({"name_or_path", "_name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file", "merges_file",
                        "base_model_name_or_path", "tokenizer_name_or_path", "model_name_or_path", "_commit_hash",
                        "sp_model_file", "spm_file", "cache_dir", "chat_template", "description", "license",
                        "source_spm", "target_spm", "resume_from_checkpoint", "output_dir", "best_model_checkpoint"})  # fmt: skip
MOST_STRINGS = 1_000_000  # and lists and objects, of one settings file
_OTHERS = ("mm_vision_tower", "vision_tower", "vision_tower_name", "mm_audio_tower", "backbone_name_or_path", "backbone",
           "speculators_config.verifier.name_or_path")  # fmt: skip


#: Cyrillic, Armenian and Greek letters by the Latin ones that they look like
_ALIKE = str.maketrans("асеорхуіјѕԁһԛѡոναοιкмтп", "aceopxyijsdhqwnvaoikmtn")


class Layout(Scanner):
    """JSON files, and whether the files of the folder agree with one another."""

    name = "layout"
    kinds = frozenset({"json"})
    rules = (*strict.RULES, INDEX, LEAVES, SHARD_MISSING, SHARD_UNLISTED, INDEX_TENSOR, UNLISTED, TOTAL, TWICE, STRAY, ADAPTER,
             BASE, NESTED, VERSIONED, COLLIDE, CASE, ALIKE, *promised.RULES, *carriers.RULES, *adapters.RULES)  # fmt: skip
    about = "JSON files, the index against shards against tensors, the config against the weights, carriers that disagree"

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """One JSON file: valid, no key twice, the shape that its readers expect."""
        yield from strict.check_json(item, folder)

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Everything that needs more than one file."""
        yield from strict.unread_json(folder)
        yield from _collisions(folder)
        yield from _nested(folder)
        for place in places(folder):
            for name in sorted(filter(INDEX_NAME.search, place.names)):
                yield from _index(place, name)
            for weights in place.weights:
                yield from _twice(weights, folder)
            yield from _strays(place)
            yield from _adapter(place)
            yield from adapters.compare(place)
            yield from _paths(place)
            yield from _versioned(place)
            yield from promised.compare(place)
            yield from carriers.compare(place)


def _index(place: Place, base: str) -> Iterator[Finding]:
    """One index against the files beside it."""
    folder, name = place.folder, shown(place.prefix + base)
    data = place.json(base)
    if "weight_map" not in data and not base.startswith(("model.", "pytorch_model.", "diffusion_pytorch_model.", "adapter_model.")):
        return  # some other kind of index
    mapped = data.get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(v, str) and v for v in mapped.values()):
        if place.prefix + base in folder.items and (data or "json" in folder.items[place.prefix + base].kinds):
            yield INDEX.found("`weight_map` must map tensor names to file names", file=name, evidence=str(mapped)[:200])
        return
    files = sorted(set(mapped.values()))
    outside = [f for f in files if leaves(f)]
    if outside:
        tensor = next(t for t, f in mapped.items() if f == outside[0])
        yield LEAVES.found(f"the weights are to be read from {outside[0]!r:.120}", file=name, place=f"weight_map[{tensor!r}]",
                           evidence=", ".join(outside[:20]), severity="malicious")  # fmt: skip
    missing = [f for f in files if f not in outside[:1] and not leaves(f) and place.prefix + f not in folder.items]
    if missing:
        yield SHARD_MISSING.found(f"{len(missing)} of {len(set(mapped.values()))} weight files are missing, e.g. {missing[0]!r}",
                                  file=name, evidence=", ".join(missing))  # fmt: skip
    weights = next((w for w in place.weights if w.name == place.prefix + base), None)
    if weights is not None:
        yield from _index_tensors(place, mapped, weights, name)
        yield from _index_rest(place, base, mapped, weights, name, data)


def _index_tensors(place: Place, mapped: dict[str, str], weights: Weights, name: str) -> Iterator[Finding]:
    """Tensors that the index names and the shards lack, and the other way round."""
    read = {f.removeprefix(place.prefix) for f in weights.files
            if f in place.folder.headers or f in place.folder.declared}  # fmt: skip
    held = {(t, f) for f in read for t in _names(place.folder, place.prefix + f)}
    lacking = [(t, f) for t, f in mapped.items() if f in read and (t, f) not in held]
    tied = place.text.get("tie_word_embeddings", place.config.get("tie_word_embeddings", True))
    for absent in (False, True):
        bad = [(t, f) for t, f in lacking if (t in weights.tensors) != absent]
        heads = absent and tied and all(_HEADS.search(t) or _EXPECTED.search(t) for t, _ in bad)
        if bad:
            tensor, file = bad[0]
            where = "no shard" if absent else weights.tensors[tensor][2].removeprefix(place.prefix)
            yield INDEX_TENSOR.found(
                f"{len(bad)} tensors are not where the index says, e.g. {tensor!r} in {file!r}; "
                f"{where} holds it" if not absent else f"{len(bad)} tensors of the index are in no shard, e.g. {tensor!r}",
                file=name, place=f"weight_map[{tensor!r}]", evidence=", ".join(t for t, _ in bad[:20]),
                severity="note" if heads else None)  # fmt: skip
    extra = [t for t in weights.tensors if t not in mapped]
    if extra:
        plain = all(_EXPECTED.search(t) for t in extra)
        yield UNLISTED.found(f"{len(extra)} tensors stand in shards and not in the index, e.g. {extra[0]!r}", file=name,
                             place=f"tensor {extra[0]!r}", evidence=", ".join(extra[:20]),
                             severity="note" if plain else None)  # fmt: skip


def _index_rest(
    place: Place, base: str, mapped: dict[str, str], weights: Weights, name: str, data: dict[str, Any]
) -> Iterator[Finding]:
    """Shards beside the index that it does not name, and the total size."""
    listed = dict.fromkeys(mapped.values())
    for stem in dict.fromkeys((m[1], m[2]) for f in listed if (m := PART.match(f))):
        for file in place.shards.get(stem, ()):
            if file not in listed:
                yield SHARD_UNLISTED.found(f"{file!r} is not in {base}", file=shown(place.prefix + file))
    metadata = data.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    specs = [t for f in weights.files if f in place.folder.headers for t in place.folder.headers[f].tensors]
    held = sum(t.nbytes for t in specs)
    if weights.complete and specs and total is not None and total != held:
        yield TOTAL.found(f"metadata.total_size is {str(total)[:40]}, the tensors have {held} bytes", file=name,
                          place="$.metadata.total_size")  # fmt: skip


def _names(folder: Folder, file: str) -> list[str]:
    header = folder.headers.get(file)
    return [t.name for t in header.tensors] if header is not None else list(folder.declared.get(file, {}))


def _twice(weights: Weights, folder: Folder) -> Iterator[Finding]:
    """A tensor in two files that are loaded together."""
    different: list[tuple[str, str, str]] = []
    same: list[tuple[str, str, str]] = []
    for tensor, first, second in weights.twice:
        (same if folder.alike((first, tensor), (second, tensor)) else different).append((tensor, first, second))
    for found, severity in ((different, None), (same, "note")):
        if found:
            tensor, first, second = found[0]
            what = "with different contents" if severity is None else "with the same contents"
            yield TWICE.found(f"{tensor!r} stands in {first!r} and in {second!r}, {what}", file=shown(second),
                              place=f"tensor {tensor!r}", evidence=", ".join(t for t, _, _ in found[:20]),
                              severity="note" if severity else None)  # fmt: skip


def _strays(place: Place) -> Iterator[Finding]:
    """Weights that lie beside the ones that the usual loader takes."""
    loaded = place.loaded
    if loaded is None:
        return
    for weights in place.weights:
        base = weights.name.removeprefix(place.prefix)
        role = role_of(base)
        if weights is loaded or base in LOADED or role != "model" or not weights.tensors:
            continue  # carriers of the same weights are compared by what they hold
        other = [n for n in weights.tensors if n in loaded.tensors and carriers.differ(place.folder, n, weights, loaded)]
        yield STRAY.found(f"the usual loader takes {loaded.name.removeprefix(place.prefix)!r} and not {base!r}"
                          + (f", which holds other values for {len(other)} of the same tensors" if other else ""),
                          file=shown(weights.files[0]), evidence=", ".join((other or list(weights.tensors))[:8]),
                          severity="suspicious" if other else None)  # fmt: skip


def _adapter(place: Place) -> Iterator[Finding]:
    """An adapter's config: what it makes a loader fetch, and whether full weights lie beside it."""
    adapter = place.json("adapter_config.json")
    base = adapter.get("base_model_name_or_path")
    full = [w for w in place.weights if role_of(w.name.removeprefix(place.prefix)) == "model"]
    file = shown(place.prefix + "adapter_config.json")
    if adapter and full:
        yield ADAPTER.found(f"a loader takes {base!r:.100} with this adapter in place of {full[0].name!r}", file=file,
                            evidence=f"base_model_name_or_path: {base!r:.200}")  # fmt: skip
    elif isinstance(base, str) and base:
        yield BASE.found(f"the adapter belongs to {base!r:.100}", file=file, place="$.base_model_name_or_path")
    more = adapter.get("adapters")
    for name, other in more.items() if isinstance(more, dict) else ():
        if isinstance(other, str) and other:
            yield BASE.found(f"the adapter {name!r:.40} is {other!r:.100}", file=file, place="$.adapters")
    for key in _OTHERS:
        value: Any = place.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and (key != "backbone" or ":" in value or "/" in value) and value:  # else it is an architecture
            yield BASE.found(f"{key} names {value!r:.100}", file=shown(place.prefix + "config.json"), place=f"$.{key}")


def _versioned(place: Place) -> Iterator[Finding]:
    """Files that a loader takes in the place of others, depending on its version."""
    for base, key in (("config.json", "configuration_files"), ("tokenizer_config.json", "fast_tokenizer_files")):
        listed = place.json(base).get(key)
        names = [n for n in listed if isinstance(n, str)] if isinstance(listed, list) else []
        others = [n for n in names if re.fullmatch(r"\w+\.[\d.]+\.json", n.rpartition("/")[2]) or leaves(n)]
        if others:
            yield VERSIONED.found(f"{key} lists {', '.join(others)[:120]}", file=shown(place.prefix + base), place=f"$.{key}",
                                  evidence=", ".join(others))  # fmt: skip


def leaves(path: str) -> bool:
    """Whether a relative path, on any platform, leads out of the folder that it is in."""
    parts = path.replace("\\", "/").split("/")
    return path.startswith(("/", "\\", "~")) or ".." in parts or "://" in path or bool(re.match(r"[A-Za-z]:|.*\0", path))


def _paths(place: Place) -> Iterator[Finding]:
    """Strings in settings files that look like paths out of the folder, where a loader could follow them."""
    for base in ("config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json",
                 "preprocessor_config.json", "processor_config.json", "modules.json", "model_index.json"):  # fmt: skip
        try:
            value = place.folder.json(place.prefix + base)
        except (WeightsmithError, OSError):  # said already, when the file was read
            continue
        for at, key, text in _strings(value):
            if key in _LEFT_OVER or len(text) > 512 or "\n" in text:
                continue
            if re.search(r"(^|[/\\])\.\.([/\\]|$)", text):
                yield LEAVES.found(f"names {text!r:.120}", file=shown(place.prefix + base), place=at, evidence=text)
            elif re.match(r"(/|~/|[A-Za-z]:\\|file://)[\w.-]", text) and base != "tokenizer_config.json":
                yield LEAVES.found(f"names a path of somebody's machine, {text!r:.120}", file=shown(place.prefix + base), place=at,
                                   evidence=text, severity="note")  # fmt: skip


def _strings(value: Any) -> Iterator[tuple[str, str, str]]:
    """``(place, key, text)`` of the strings of a JSON value.

    Raises:
        LimitExceeded: more values than a model's settings have.
    """
    pending: list[tuple[str, str, Any]] = [("$", "", value)]
    count = 0
    while pending:
        count += 1
        if count > MOST_STRINGS:
            raise LimitExceeded(f"settings of more than {MOST_STRINGS} values")
        at, key, here = pending.pop()
        if isinstance(here, str):
            yield at, key, here
        elif isinstance(here, dict):
            if key not in ("id2label", "label2id", "added_tokens_decoder", "task_specific_params"):
                pending += [(f"{at}.{str(k)[:60]}"[:200], str(k), v) for k, v in here.items() if isinstance(v, str | list | dict)]
        elif isinstance(here, list):
            pending += [(f"{at}[{i}]"[:200], key, v) for i, v in enumerate(here) if isinstance(v, str | list | dict)]


def _collisions(folder: Folder) -> Iterator[Finding]:
    """Names that are one name where case or the composition of letters does not count."""
    seen: dict[str, str] = {}
    for name in folder.items:
        base = name.rpartition("/")[2]
        if base != base.lower() and strict.is_named(base.lower()):
            yield CASE.found(f"loaders look for {base.lower()!r}", file=shown(name))
        plain = _on_windows(unicodedata.normalize("NFC", name).casefold())
        if plain.isascii() and plain.rpartition("/")[2] != base.lower() and strict.is_named(plain.rpartition("/")[2]):
            yield CASE.found(f"Windows takes it for {plain.rpartition('/')[2]!r}", file=shown(name))
        like = base if base.isascii() else unicodedata.normalize("NFKC", base).translate(_ALIKE)
        if like != base and (strict.is_named(like.lower()) or name.removesuffix(base) + like in folder.items):
            yield ALIKE.found(f"it looks like {like!r}: {ascii(base)[1:-1][:200]}", file=shown(name))
        other = seen.setdefault(plain, name)
        if other != name:
            first, second = folder.items[other], folder.items[name]
            same = first.sha256 is not None and first.sha256 == second.sha256
            harmless = same or not plain.endswith(_READ)
            yield COLLIDE.found(f"{shown(other)!r} and {shown(name)!r}", file=shown(name), severity="note" if harmless else None)


def _on_windows(name: str) -> str:
    """A name as Windows takes it: spaces and dots at the end don't count, and a colon begins another stream of the same file."""
    return "/".join(part.partition(":")[0].rstrip(" .") or part for part in name.split("/"))


def _nested(folder: Folder) -> Iterator[Finding]:
    """Folders inside that hold a model of their own."""
    if "model_index.json" in folder.items or "modules.json" in folder.items:
        return
    inside = [p for p in places(folder) if p.prefix and p.config and p.weights and not _HONEST_NESTED.match(p.prefix)]
    if inside:
        yield NESTED.found(f"{len(inside)} folders hold a model of their own", evidence=", ".join(p.prefix for p in inside[:20]))
