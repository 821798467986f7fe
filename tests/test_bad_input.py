"""Bad input, through the command line: one clear error, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clirun import World, bug_free, cli, edit_json, feature_file, flip, make_world, refused, tree
from weightsmith.direction import load_direction
from weightsmith.errors import WeightsmithError
from weightsmith.formats.safetensors import build_header, read_header
from weightsmith.storage import cache_dir

INDEX = "model.safetensors.index.json"
EDIT = """\
schema: weightsmith/edit/1
steps:
  - {{kind: remove, direction: {digest}, source: 0, layers: [0, 1], amount: 1.0}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


class Booby:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def verbs(world: World, model: object, out: Path) -> dict[str, tuple[object, ...]]:
    """Every command that opens a model, with an output where it has one."""
    return {
        "show": ("show", model),
        "edit": ("edit", model, world.direction, "--remove", "1", "-o", out, "--transfer"),
        "find": ("find", model, world.feature, "-o", out, "--no-choose"),
        "measure": ("measure", model, "--against", world.model, "--feature", world.feature, "--tokens", "2", "-o",
                    out.with_suffix(".json")),
        "against": ("measure", world.model, "--against", model, "--feature", world.feature, "--tokens", "2"),
        "convert": ("convert", model, "-o", out),
    }  # fmt: skip


def all_refuse(world: World, folder: Path, model: object, *says: str, code: Any = 2, but: str = "convert") -> None:
    """Every command but those named refuses ``model`` in the same words."""
    for name, argv in verbs(world, model, folder / "out").items():
        if name not in but.split():
            refused(folder, *argv, code=code, says=says)


# -- folders and files that are not models -----------------------------------------------------------------


def damage(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").write_bytes(text.encode())  # type: ignore[func-returns-value]


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "model.safetensors", size)


def grown(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)  # type: ignore[func-returns-value]


def index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """An index over the one weight file, with something wrong."""

    def apply(folder: Path) -> None:
        names = [t.name for t in read_header(folder / "model.safetensors").tensors]
        value = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
        (folder / INDEX).write_text(json.dumps(change(value) or value))

    return apply


def loop(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(name)

    return apply


def swap(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


BROKEN: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], 2, "holds no model"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), 2, "holds no model"),
    "no config": (lambda f: (f / "config.json").unlink(), 2, "config.json is missing"),
    "config is a list": (written("config.json", "[1]"), 2, "config.json: expected a JSON object"),
    "config is cut": (written("config.json", '{"a'), 2, "config.json: not valid JSON"),
    "config is deep": (written("config.json", "[" * 100_000), 2, "config.json: not valid JSON"),
    "config is Latin-1": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xe9"}'), 2, "config.json: not valid JSON"),
    "config of half a surrogate": (written("config.json", r'{"model_type": "\ud800"}'), 2, "config.json: not valid JSON"),
    "config is a folder": (swap("config.json", Path.mkdir), 2, "config.json is missing"),
    "config is a loop": (loop("config.json"), 2, "config.json is missing"),
    "tokenizer config is a list": (written("tokenizer_config.json", "[]"), 2, "tokenizer_config.json"),
    "generation config is cut": (written("generation_config.json", "{"), 2, "generation_config.json"),
    "shard of no bytes": (cut(0), 2, "model.safetensors: shorter than the 8 bytes"),
    "shard cut in its length": (cut(5), 2, "model.safetensors: shorter than the 8 bytes"),
    "shard cut in its header": (cut(500), 2, "model.safetensors: the header needs"),
    "shard cut in its data": (cut(60_000), 2, "model.safetensors: the data needs"),
    "shard cut by one byte": (cut(-1), 2, "model.safetensors: the data needs"),
    "shard with a tail": (grown, 2, "belong to nothing"),
    "shard is a pointer": (damage("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), 2, "git lfs pull"),
    "shard is text": (damage("<!DOCTYPE html><html>404</html>"), 2, "the header claims"),
    "shard is a folder": (swap("model.safetensors", Path.mkdir), 2, "not a plain file"),
    "shard is a loop": (loop("model.safetensors"), 2, "symbolic links"),
    "shard is a pipe": (swap("model.safetensors", os.mkfifo), 2, "not a plain file"),
    "index cut": (written(INDEX, "{"), 2, "index.json: not valid JSON"),
    "index of nothing": (index(lambda v: {"metadata": {}}), 2, "weight_map"),
    "index is a list": (index(lambda v: v.update(weight_map=[])), 2, "weight_map"),
    "index of numbers": (index(lambda v: v["weight_map"].update({"lm_head.weight": 5})), 2, "weight_map"),
    "index names an absent shard": (index(lambda v: v["weight_map"].update(x="gone.safetensors")), 1, "gone.safetensors"),
    "index names an absent tensor": (index(lambda v: v["weight_map"].update(x="model.safetensors")), 1, "promises 'x'"),
    "index forgets a tensor": (index(lambda v: v["weight_map"].pop("lm_head.weight") and None), 1, "lm_head.weight"),
    "index climbs out": (index(lambda v: v["weight_map"].update(x="../model/model.safetensors")), 1, "outside"),
    "tensor in two shards": (lambda f: shutil.copy(f / "model.safetensors", f / "two.safetensors"), 1, "in two files"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_folder_is_refused_by_every_command(world: World, tmp_path: Path, case: str) -> None:
    breaks, code, says = BROKEN[case]
    folder = world.copy(tmp_path / "m")
    if case == "shard cut by one byte":
        os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    else:
        breaks(folder)
    all_refuse(world, tmp_path, folder, says, str(folder), code=code, but="")


def test_what_is_no_model_at_all(world: World, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "m.gguf").mkdir()
    for ref, says in {
        tmp_path / "nowhere": "no such model", tmp_path / "loop": "no such model", "": "no such model",
        "not a model": "no such model", "a/b/c": "no such model", "a/b@../../c": "no such model",
        "ä/b": "no such model", "a\0b": "no such model", "http://x.y/z": "no such model", "demo:nothing": "smollm2",
        "../x": "no such model", tmp_path / "text.txt": "neither a model folder", tmp_path / "pipe": "nor a plain file",
        "/dev/zero": "nor a plain file", tmp_path / "m.gguf": "holds no model", "x" * 300: "too long",
    }.items():  # fmt: skip
        for argv in (("show", ref), ("edit", ref, world.direction, "--remove", "1", "-o", tmp_path / "out")):
            if ref == "":
                continue  # the folder that one stands in
            refused(tmp_path, *argv, says=(says,))


def test_a_direction_in_a_models_place(world: World, tmp_path: Path) -> None:
    for argv in (("edit", world.direction, world.direction, "--remove", "1", "-o", tmp_path / "out"),
                 ("convert", world.direction, "-o", tmp_path / "out"), ("chat", world.direction)):  # fmt: skip
        refused(tmp_path, *argv, says=("is a direction, not a model", str(world.direction)))


def test_offline_and_not_in_the_cache(tmp_path: Path) -> None:
    refused(tmp_path, "show", "nobody/nothing", "--offline", says=("nobody/nothing", "not in the cache"))
    refused(tmp_path, "show", "nobody/nothing@v1", "--offline", says=("not in the cache",))
    refused(tmp_path, "convert", "demo:smollm2", "--offline", "-o", tmp_path / "x", says=("demo:smollm2", "--offline"))


def test_a_damaged_demo_model_is_a_bad_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache/demo/SmolLM2-135M-Instruct.Q4_1.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"GGUF" + bytes(60))
    refused(tmp_path, "show", "demo:smollm2", code=1, says=("not the pinned one", str(kept), "remove that file"))


# -- pickles and code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl", "m.pickle"])
def test_pickles_are_told_how_to_convert_and_never_loaded(world: World, tmp_path: Path, name: str) -> None:
    folder, marker = world.copy(tmp_path / "m"), tmp_path / "fired"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Booby(marker)))
    says = (name, "not opened", "weightsmith convert")
    all_refuse(world, tmp_path, folder, *says, but="convert")
    refused(tmp_path, "convert", folder, "-o", tmp_path / "out", code=1, says=("malicious", name, "pickle-code"))
    refused(tmp_path, "show", folder / name, says=says)
    assert not marker.exists()


def test_a_pickle_under_another_name_or_beside_the_weights_does_not_fire(world: World, tmp_path: Path) -> None:
    folder, marker = world.copy(tmp_path / "m"), tmp_path / "fired"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Booby(marker)))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Booby(marker)))
    assert cli("show", folder).code == 0
    all_refuse(world, tmp_path, folder, "malicious", "pickle-code", code=1, but="show convert")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Booby(marker)))
    all_refuse(world, tmp_path, folder, "model.safetensors", but="")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "key"),
    [("config.json", "auto_map"), ("tokenizer_config.json", "auto_map"), ("generation_config.json", "custom_generate")],
)
def test_remote_code_is_refused_and_never_run(world: World, tmp_path: Path, file: str, key: str) -> None:
    folder, marker = world.copy(tmp_path / "m"), tmp_path / "fired"
    classes = {n: f"modeling_x.{n}" for n in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
    edit_json(folder / file, lambda c: c.update({key: classes}))
    (folder / "modeling_x.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    says = (file, "run code that comes with the model", "it was not run", "--ignore-remote-code")
    all_refuse(world, tmp_path, folder, *says, but="show convert")
    assert cli("show", folder).code == 0
    done = cli("find", folder, world.feature, "-o", tmp_path / "d", "--no-choose", "--ignore-remote-code")
    assert done.code == 0, done.err
    assert not marker.exists()


def test_a_base_without_template_gets_plain_prompts_and_this_is_said_once(world: World, tmp_path: Path) -> None:
    folder = world.copy(tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    said = "no chat template: prompts are given as plain text"
    found = cli("find", folder, world.feature, "-o", tmp_path / "d.safetensors")
    assert found.code == 0, found.err
    assert found.words.count(said) == 1
    compared = cli("measure", folder, "--against", folder, "--feature", world.feature, "--tokens", "2")
    assert compared.code == 0, compared.err
    assert compared.words.count(said) == 1


# -- numbers in configs, tokenizers, templates -------------------------------------------------------------

NUMBERS: dict[str, list[Any]] = {
    "hidden_size": ["a string", -1, 0, 1.5, None, 10**30, True, [32], 33],
    "num_hidden_layers": ["2", 10**9, 0, 3, -2], "model_type": ["x", None, 5, [], {}],
    "vocab_size": ["96", 95, 10**12, -1], "max_position_embeddings": ["x", None, 1e400],
    "num_attention_heads": [0, "a", 3, -4], "num_key_value_heads": [0, 3, "x"], "intermediate_size": [63, "x", None],
    "rms_norm_eps": ["x", None], "rope_parameters": [5, {"rope_type": "x"}, {"rope_type": "yarn"}],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}, 5], "text_config": [5, {"model_type": "llama"}],
    "tie_word_embeddings": ["x"], "dtype": ["zzz"], "hidden_act": ["zzz", 5], "head_dim": [7, "x", 0],
    "bos_token_id": ["x"], "pad_token_id": [10**9], "architectures": [5], "layer_types": [["x"]],
}  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
def test_absurd_configs_are_never_a_bug_of_ours(world: World, tmp_path: Path, key: str) -> None:
    folder = world.copy(tmp_path / "m")
    plain = (folder / "config.json").read_text()
    for value in NUMBERS[key]:
        (folder / "config.json").write_text(plain)
        edit_json(folder / "config.json", lambda c, value=value: c.update({key: value}))
        done = bug_free("find", folder, world.feature, "-o", tmp_path / "d", "--no-choose")
        assert done.code or key == "architectures", f"{key} = {value!r} was taken"
        assert done.code == 0 or not (tmp_path / "d").exists()
        assert done.code == 0 or str(folder) in done.err
        (tmp_path / "d").unlink(missing_ok=True)
        bug_free("show", folder)


def test_absurd_tokenizers_and_templates(world: World, tmp_path: Path) -> None:
    for number, (name, text) in enumerate([
        ("tokenizer.json", "junk"), ("tokenizer.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer.json", ""),
        ("chat_template.jinja", "{% for"), ("chat_template.jinja", "{{ raise_exception('no') }}"),
        ("chat_template.jinja", "{{ 1/0 }}"), ("chat_template.jinja", "{{ messages[9].content }}"),
        ("chat_template.jinja", "{% for i in range(10**9) %}x{% endfor %}"),
        ("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ]):  # fmt: skip
        folder = world.copy(tmp_path / str(number))
        (folder / name).write_text(text)
        refused(tmp_path, "find", folder, world.feature, "-o", tmp_path / "d", "--no-choose", code=(1, 2), says=(str(folder),))
    folder = world.copy(tmp_path / "list")
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(chat_template=[{"name": ["x"], "template": 5}, 7]))
    bug_free("find", folder, world.feature, "-o", tmp_path / "d", "--no-choose")
    bug_free("show", folder)


def test_absurd_ends_of_answers(world: World, tmp_path: Path) -> None:
    argv = ("--against", world.model, "--feature", world.feature, "--tokens", "2")
    for number, value in enumerate(["x", [10**30], {"a": 1}, True]):
        folder = world.copy(tmp_path / str(number))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        refused(tmp_path, "measure", folder, *argv, code=(1, 2), says=(str(folder), "eos_token_id"))
    for number, value in enumerate([-1, [2, -1]], 10):
        folder = world.copy(tmp_path / str(number))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert cli("measure", folder, *argv).code == 0


def test_a_model_whose_names_attack_the_terminal(world: World, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\u2066\x9b31m[bold]\r"
    folder = world.copy(tmp_path / "m")
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header[f"model.{evil}"] = header.pop("model.norm.weight")
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    edit_json(folder / "config.json", lambda c: c.update(model_type=evil, max_position_embeddings=evil))
    for argv in (("show", folder, "--tensors"), ("find", folder, world.feature, "-o", tmp_path / "d")):
        done = bug_free(*argv)
        for hidden in "\x1b\x07\u202e\u2066\x9b\r":
            assert hidden not in done.out + done.err


# -- damaged bits ------------------------------------------------------------------------------------------


def test_every_bit_of_a_header_can_flip(world: World, tmp_path: Path) -> None:
    """Flips in names and metadata leave a file that is well formed; all others are refused, none is a bug."""
    file = tmp_path / "m.safetensors"
    good = (world.model / "model.safetensors").read_bytes()
    length, dice = 8 + int.from_bytes(good[:8], "little"), random.Random(0)
    layout = [(t.dtype, t.shape, t.start) for t in read_header(world.model / "model.safetensors").tensors]
    taken = 0
    file.write_bytes(good)
    for byte in range(length):
        bad = bytearray(good[:length])
        bad[byte] ^= 1 << dice.randrange(8)
        with file.open("r+b") as out:
            out.write(bad)
        try:
            found = read_header(file)
        except WeightsmithError:
            continue
        taken += 1
        assert [(t.dtype, t.shape, t.start) for t in found.tensors] == layout
    assert taken < 0.6 * length


def test_a_flipped_header_stops_what_runs_the_model(world: World, tmp_path: Path) -> None:
    """A name with a flipped bit leaves a model that lacks a weight; a loader would make it up at random."""
    folder, dice = world.copy(tmp_path / "m"), random.Random(1)
    good = (folder / "model.safetensors").read_bytes()
    begin = good.index(b'"', good.index(b"__metadata__") + 40)
    for byte in dice.sample(range(begin, 8 + int.from_bytes(good[:8], "little")), 10):
        (folder / "model.safetensors").write_bytes(good)
        flip(folder / "model.safetensors", byte, 0)
        done = bug_free("find", folder, world.feature, "-o", tmp_path / "d", "--no-choose")
        assert done.code in (1, 2), f"byte {byte}: {good[byte - 20 : byte + 20]!r}"
        assert not (tmp_path / "d").exists()


def test_one_flipped_bit_of_an_edited_model_is_a_bad_verdict(world: World, tmp_path: Path) -> None:
    folder, dice = world.copy(tmp_path / "m", "edited"), random.Random(2)
    weights = folder / "model.safetensors"
    size, start = weights.stat().st_size, 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    for byte in [start, size - 1, *dice.sample(range(start, size), 6)]:
        time.sleep(0.02)  # a digest is remembered by the file's times, which tick every few milliseconds
        flip(weights, byte, dice.randrange(8))
        for verb in ("edit", "find", "measure", "against"):
            argv = verbs(world, folder, tmp_path / "out")[verb]
            refused(tmp_path, *argv, code=1, says=("model.safetensors", "not the file that was written", str(folder)))
        shutil.copy2(world.edited / "model.safetensors", weights)
    for byte in dice.sample(range(start), 12):
        time.sleep(0.02)
        flip(weights, byte, dice.randrange(8))
        argv = verbs(world, folder, tmp_path / "out")["edit"]
        assert bug_free(*argv).code in (1, 2)
        assert not (tmp_path / "out").exists()
        shutil.copy2(world.edited / "model.safetensors", weights)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda f: (f / "config.json").write_text("{}"), 1, "config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), 1, "tokenizer.json"),
        (lambda f: shutil.copy(f / "model.safetensors", f / "more.safetensors"), 1, "more.safetensors"),
        (lambda f: edit_json(f / "weightsmith.json", lambda r: r.update(outputs=[1])), 2, "outputs"),
        (lambda f: edit_json(f / "weightsmith.json", lambda r: r.update(outputs={"../x": "0"})), 2, "outputs"),
        (lambda f: edit_json(f / "weightsmith.json", lambda r: r["outputs"].update({"config.json": "0" * 64})), 1, "config"),
        (lambda f: (f / "weightsmith.json").write_text("{"), (1, 2), "weightsmith.json"),
    ],
)  # fmt: skip
def test_an_edited_folder_that_is_not_what_its_record_says(
    world: World, tmp_path: Path, change: Callable[[Path], Any], code: int, says: str
) -> None:
    folder = world.copy(tmp_path / "m", "edited")
    change(folder)
    all_refuse(world, tmp_path, folder, says, code=code, but="show convert")


def test_a_record_of_a_newer_schema_or_without_its_directions(world: World, tmp_path: Path) -> None:
    folder = world.copy(tmp_path / "m", "edited")
    edit_json(folder / "weightsmith.json", lambda r: r.update(directions={}))
    argv = verbs(world, folder, tmp_path / "out")["measure"]
    assert bug_free(*argv).code == 0
    (tmp_path / "out.json").unlink()
    edit_json(folder / "weightsmith.json", lambda r: r.update(schema="weightsmith/derivation/2"))
    refused(tmp_path, *argv, says=("weightsmith/derivation/2", "newer Weightsmith"))


@pytest.mark.parametrize(("dtype", "value"), [("F32", "nan"), ("BF16", "nan"), ("F16", "inf")])
def test_nan_in_weights(world: World, tmp_path: Path, dtype: str, value: str) -> None:
    import torch

    import pico

    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    folder = pico.build("llama", tmp_path / "m", kinds[dtype])
    weights = folder / "model.safetensors"
    header = read_header(weights)
    raw = {"F32": np.float32(value).tobytes(), "F16": np.float16(value).tobytes(),
           "BF16": np.float32(value).tobytes()[2:]}[dtype]  # fmt: skip
    good = weights.read_bytes()
    for name in ("model.layers.0.mlp.down_proj.weight", "model.norm.weight"):  # one that the edit touches, one not
        spec = next(t for t in header.tensors if t.name == name)
        bad = bytearray(good)
        bad[spec.start + spec.nbytes - len(raw) : spec.start + spec.nbytes] = raw
        weights.write_bytes(bad)
        time.sleep(0.02)
        all_refuse(world, tmp_path, folder, name, "NaN or infinity", str(folder), but="show convert")


# -- GGUF --------------------------------------------------------------------------------------------------


def test_gguf_files_that_are_cut_garbled_or_odd(world: World, tmp_path: Path) -> None:
    good, bad, dice = world.gguf.read_bytes(), tmp_path / "bad.gguf", random.Random(3)
    for size in (0, 3, 23, 24, 100, 5_000, len(good) // 2, len(good) - 40):
        bad.write_bytes(good[:size])
        all_refuse(world, tmp_path, bad, str(bad), but="against measure")
    for content in (dice.randbytes(4000), b"GGUF" + dice.randbytes(4000), b"GGUF\3\0\0\0" + b"\xff" * 64,
                    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" + bytes(40)):  # fmt: skip
        bad.write_bytes(content)
        all_refuse(world, tmp_path, bad, str(bad), but="against measure")
    for byte in dice.sample(range(8_000), 80):
        bad.write_bytes(good)
        flip(bad, byte, dice.randrange(8))
        out = tmp_path / "out"
        if bug_free("convert", bad, "-o", out).code:
            assert not out.exists()
        shutil.rmtree(out, ignore_errors=True)
        assert not list(tmp_path.glob(".*"))


def test_a_folder_is_not_converted_and_a_gguf_folder_asks_for_a_name(world: World, tmp_path: Path) -> None:
    refused(tmp_path, "convert", world.model, "-o", tmp_path / "x", says=("nothing to convert",))
    shutil.copy(world.gguf, tmp_path / "a.gguf")
    refused(tmp_path, "show", tmp_path, says=("name one", "a.gguf"))


# -- features ----------------------------------------------------------------------------------------------

TWO = """\
schema: weightsmith/feature/1
name: two
description: Two sides.
licence: CC0-1.0
contrast: {kind: prompt_sets}
prompts:
  shows: {shipped: harmful}
  lacks: {shipped: harmless}
split: {extract: 4, select: 2, report: 2}
site: last_template_token
"""
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]\n" for a, b in
                                                   zip("abcdefgh", "bcdefghi", strict=True))  # fmt: skip
FEATURES: dict[str, tuple[str | dict[str, str], str]] = {
    "unknown field": ({"site": "colour: blue"}, "colour: unknown field"),
    "unknown nested field": ({"split": "split: {extract: 4, select: 2, report: 2, test: 9}"}, "split.test: unknown field"),
    "newer schema": ({"schema": "schema: weightsmith/feature/2"}, "newer Weightsmith"),
    "no schema": ({"schema": "#"}, "schema: weightsmith/feature/1"),
    "an edit": ({"schema": "schema: weightsmith/edit/1"}, "this version reads"),
    "no licence": ({"licence": "#"}, "licence"),
    "empty name": ({"name": "name: ''"}, "name"),
    "identical personas": ({"contrast": "contrast: {kind: personas, shows: be sad, lacks: be  sad}"}, "identical"),
    "one persona": ({"contrast": "contrast: {kind: personas, shows: be sad}"}, "lacks"),
    "blank persona": ({"contrast": "contrast: {kind: personas, shows: be sad, lacks: ' '}"}, "lacks"),
    "unknown kind": ({"contrast": "contrast: {kind: vibes, shows: a, lacks: b}"}, "contrast.kind"),
    "unknown site": ({"site": "site: somewhere"}, "unknown site 'somewhere'"),
    "text site": ({"site": "site: text_mean"}, "labelled texts"),
    "unknown prompts": ({"prompts": "prompts: {shipped: nothing}"}, "no shipped prompts"),
    "prompts that climb": ({"prompts": "prompts: {shipped: ../../../x}"}, "no shipped prompts"),
    "no prompts": ({"prompts": "prompts: {list: []}"}, "no prompt in it"),
    "blank prompts": ({"prompts": "prompts: {list: ['', ' ']}"}, "no prompt in it"),
    "few prompts": ({"prompts": "prompts: {list: [one, two, three]}"}, "3 different prompts, and the split needs 8"),
    "two sources": ({"prompts": "prompts: {shipped: everyday, file: x.txt}"}, "exactly one of"),
    "no file": ({"prompts": "prompts: {file: gone.txt}"}, "gone.txt: no such prompt file"),
    "a folder": ({"prompts": "prompts: {file: .}"}, "no such prompt file"),
    "sides for personas": ({"prompts": "prompts: {shows: {shipped: harmful}, lacks: {shipped: harmless}}"}, "one prompt"),
    "split of nothing": ({"split": "split: {extract: 0, select: 2, report: 2}"}, "split.extract"),
    "a split too large": ({"split": "split: {extract: 4000000000}"}, "split needs"),
    "limit of none": ({"prompts": "prompts: {shipped: everyday, limit: 0}"}, "limit"),
    "limited too far": ({"prompts": "prompts: {shipped: everyday, limit: 5}"}, "5 different prompts"),
    "half a surrogate": ({"prompts": r'prompts: {list: ["\ud800 a"]}'}, "surrogates not allowed"),
    "duplicate key": ({"site": "name: other"}, "the key 'name' stands twice"),
    "not YAML": ("a: [", "not plain YAML"), "a list": ("- a\n", "mapping"), "empty": ("", "mapping"),
    "deep": ("[" * 5000, "not plain YAML"), "a tag": ("a: !!python/object/apply:os.mkdir [fired]\n", "not plain YAML"),
    "a bomb": (BOMB, "aliases"), "a bomb for schema": (BOMB.replace("h:", "schema:"), "aliases"),
    "a loop": ("a: &a [*a]\n", "aliases"), "a date": ("a: 2001-99-99\n", "not plain YAML"), "NaN": ("a: .nan\n", "YAML"),
    "control characters": ("a: \x01\n", "not plain YAML"), "tabs": ("a:\n\t- b\n", "not plain YAML"),
    "the same on both sides": (TWO.replace("harmless", "harmful"), "same prompts"),
    "one side empty": (TWO.replace("{shipped: harmless}", "{list: []}"), "no prompt in it"),
    "one side short": (TWO.replace("{shipped: harmless}", "{list: [one, two]}"), "lacks: 2 different prompts"),
    "one side missing": (TWO.replace("  lacks: {shipped: harmless}\n", ""), "prompts"),
    "uneven pairs": (TWO.replace("prompt_sets", "pairs").replace("{shipped: harmless}", "{list: [one]}"), "equal sides"),
    "identical pair": (TWO.replace("prompt_sets", "pairs").replace("{shipped: harmful}", "{list: [a, b]}")
                       .replace("{shipped: harmless}", "{list: [A!, c]}"), "identical sides"),
    "personas for sets": (TWO.replace("{kind: prompt_sets}", "{kind: prompt_sets, shows: a}"), "belong to personas"),
}  # fmt: skip


@pytest.mark.parametrize("case", FEATURES)
def test_a_bad_feature_file(world: World, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, says = FEATURES[case]
    if isinstance(given, str):
        (file := tmp_path / "feature.yaml").write_text(given)
    else:
        file = feature_file(tmp_path, **given)
    refused(tmp_path, "find", world.model, file, "-o", tmp_path / "d", says=(says,))
    if "YAML" in says or "field" in says:
        refused(tmp_path, "measure", world.model, "--against", world.model, "--feature", file, says=(says,))
    assert not (tmp_path / "fired").exists()


def test_prompt_files_that_are_not_what_they_say(world: World, tmp_path: Path) -> None:
    sixteen = "".join(f"question number {i} about {'xyzuvwrs'[i % 8] * 9}\n" for i in range(16))
    for name, content, says in [
        ("latin.txt", sixteen.encode() + b"caf\xe9\n", "latin.txt: not UTF-8 at byte"),
        ("wide.txt", sixteen.encode("utf-16"), "wide.txt: not UTF-8 at byte 0"),
        ("empty.txt", b"", "empty.txt: there is no prompt"), ("blank.jsonl", b"\n \n", "no prompt in it"),
        ("cut.jsonl", b'{"prompt": "a"}\n{"prompt', "cut.jsonl: line 2 is not JSON"),
        ("deep.jsonl", b"[" * 100_000, "line 1 is not JSON"), ("list.jsonl", b"[1]\n", "line 1 is not an object"),
        ("half.jsonl", rb'{"prompt": "\ud800"}', "half of a surrogate"),
        ("number.jsonl", b'{"prompt": 5}\n', "line 1 has no text in the column 'prompt'"),
        ("columns.csv", b"a,b\n1,2\n", "name one of its columns with `column`: a, b"),
        ("quote.csv", b'prompt\n"abc', "quote.csv: line"), ("huge.csv", b'prompt\n"' + b"x" * 200_000 + b'"\n', "huge.csv: line"),
        ("no.parquet", b"PAR1 no", "no.parquet: not a Parquet file"), ("null.csv", b"prompt\na\0b\n", ""),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        file = feature_file(tmp_path, prompts=f"prompts: {{file: {name}}}")
        refused(tmp_path, "find", world.model, file, "-o", tmp_path / "d", says=(says,))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    refused(tmp_path, "find", world.model, tmp_path / "latin.yaml", "-o", tmp_path / "d", says=("not a UTF-8 text",))
    refused(
        tmp_path, "find", world.model, "no-such-feature", "-o", tmp_path / "d", says=("no such feature", "melancholy")
    )


def test_contrasts_that_come_to_the_same_activations(world: World, tmp_path: Path) -> None:
    """A template that drops the system message makes both personas one."""
    folder = world.copy(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    refused(tmp_path, "find", folder, world.feature, "-o", tmp_path / "d", code=1, says=("template-alters-message",))
    refused(tmp_path, "find", folder, world.feature, "-o", tmp_path / "d", "--allow", "suspicious", says=("identical activations",))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("  - {kind: applause}", "no plug-in of kind scorers is called 'applause'"),
        ("  - {kind: phrases}", "needs a list of texts under 'phrases'"),
        ("  - {kind: phrases, phrases: [a], loud: true}", "has no option 'loud'"),
        ("  - {kind: sentiment, sign: 5}", "sign must be 1 or -1"),
        ("  - {kind: continuations, shows: [a]}", "under 'lacks'"),
        ("  - {shows: [a]}", "scorers.0.kind"),
    ],
)
def test_unknown_scorers_and_options(world: World, tmp_path: Path, lines: str, says: str) -> None:
    file = feature_file(tmp_path, **{"  - {kind: phrases": lines})
    argv = ("measure", world.model, "--against", world.model, "--feature", file, "-o", tmp_path / "r")
    refused(tmp_path, *argv, says=(says,))


# -- directions and edits ----------------------------------------------------------------------------------


def meta_change(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A direction file with other metadata."""

    def apply(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        meta = json.loads(header["__metadata__"]["weightsmith"])
        changed = change(meta)
        header["__metadata__"]["weightsmith"] = changed if isinstance(changed, str) else json.dumps(meta)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + raw[8 + length :]

    return apply


def numbers(value: float) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:-4] + np.float32(value).tobytes()


DIRECTIONS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "newer schema": (meta_change(lambda m: m.update(schema="weightsmith/direction/2")), "newer Weightsmith"),
    "unknown field": (meta_change(lambda m: m.update(colour=1)), "colour: unknown field"),
    "metadata not JSON": (meta_change(lambda m: "{"), "metadata is not JSON"),
    "NaN in its figures": (meta_change(lambda m: m["n"].update(x=float("nan"))), "metadata is not JSON"),
    "metadata a list": (meta_change(lambda m: "[]"), "mapping"),
    "no layers": (meta_change(lambda m: m.update(layers=[])), "layers"),
    "layers twice": (meta_change(lambda m: m.update(layers=[0, 0])), "layers"),
    "layers outside": (meta_change(lambda m: m.update(layers=[0, 7])), "layers"),
    "other width": (meta_change(lambda m: m["model"].update(d_model=31)), "the metadata say"),
    "half a surrogate": (meta_change(lambda m: r'{"schema": "\ud800"}'), "metadata is not JSON"),
    "NaN": (numbers(np.nan), "mean_lacks holds NaN"), "infinity": (numbers(np.inf), "mean_lacks holds NaN"),
    "cut": (lambda raw: raw[:-1], "the data needs"), "empty": (lambda raw: b"", "a UTF-8 text file"),
    "vectors in integers": (lambda raw: raw.replace(b'"vectors":{"dtype":"F32"', b'"vectors":{"dtype":"I32"'), "not F32"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIRECTIONS)
def test_a_bad_direction_file(world: World, tmp_path: Path, case: str) -> None:
    change, says = DIRECTIONS[case]
    bad = tmp_path / "d.safetensors"
    bad.write_bytes(change(world.direction.read_bytes()))
    says = "d.safetensors" if case == "empty" else says
    refused(tmp_path, "edit", world.model, bad, "--remove", "1", "-o", tmp_path / "out", says=(says, str(bad)))
    measure = ("measure", world.edited, "--against", world.model, "--feature", world.feature, "--direction", bad)
    refused(tmp_path, *measure, says=(says,))


def test_a_model_is_not_a_direction(world: World, tmp_path: Path) -> None:
    shard = world.model / "model.safetensors"
    refused(tmp_path, "edit", world.model, shard, "--remove", "1", "-o", tmp_path / "out", says=("not a direction",))
    empty = tmp_path / "e.safetensors"
    empty.write_bytes(build_header([], {"weightsmith": "{}"}))
    refused(tmp_path, "edit", world.model, empty, "--remove", "1", "-o", tmp_path / "out", says=("vectors",))


def test_a_direction_from_another_model(world: World, tmp_path: Path) -> None:
    import pico

    other, wide = tmp_path / "other", tmp_path / "wide"
    pico.build("llama", other, seed=5)
    pico.build("llama", wide, hidden_size=64)
    argv = ("--remove", "1", "-o", tmp_path / "out")
    refused(tmp_path, "edit", other, world.direction, *argv, says=("found on", "--transfer"))
    refused(tmp_path, "edit", wide, world.direction, *argv, "--transfer", says=("width 32", "of width 64"))
    measure = ("measure", wide, "--against", wide, "--feature", world.feature, "--direction", world.direction)
    refused(tmp_path, *measure, "--tokens", "2", says=("width 32", "of width 64"))
    done = cli("edit", other, world.direction, *argv, "--transfer", "--json")
    assert done.code == 0
    assert json.loads(done.out)["transferred"] is True


EDITS: dict[str, tuple[tuple[str, str], str]] = {
    "unknown kind": (("kind: remove", "kind: delete"), "no plug-in of kind edits is called 'delete'"),
    "unknown field": (("amount", "strength: 2, amount"), "steps.0.strength: unknown field"),
    "newer schema": (("edit/1", "edit/9"), "newer Weightsmith"),
    "no steps": (("steps:\n", "steps: []\n#"), "at least one step"),
    "NaN": (("amount: 1.0", "amount: .nan"), "nan"), "infinite": (("amount: 1.0", "amount: .inf"), "inf"),
    "too much": (("amount: 1.0", "amount: 2.5"), "from 0 to 2"),
    "no layers": (("layers: [0, 1]", "layers: []"), "at least one layer"),
    "a layer twice": (("layers: [0, 1]", "layers: [1, 1]"), "named twice"),
    "a layer outside": (("layers: [0, 1]", "layers: [2]"), "layer 2"),
    "a negative layer": (("layers: [0, 1]", "layers: [-1]"), "layer -1"),
    "a source outside": (("source: 0", "source: 9"), "no layer 9"),
    "a source in words": (("source: 0", "source: all"), "source"),
    "unknown role": (("amount", "roles: [lips], amount"), "no tensor has the role lips"),
    "unknown direction": (("direction: ", "direction: 00"), "not at hand"),
    "a direction that climbs": (("direction: ", "direction: ../../"), "not at hand"),
    "aliases": (("source: 0", "source: &x 0, layers: *x"), "aliases"),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_a_bad_edit_file(world: World, tmp_path: Path, case: str) -> None:
    (old, new), says = EDITS[case]
    text = EDIT.format(digest=load_direction(world.direction).digest())
    assert old in text
    (file := tmp_path / "edit.yaml").write_text(text.replace(old, new))
    refused(tmp_path, "edit", world.model, file, "-o", tmp_path / "out", says=(says,))
    refused(tmp_path, "edit", world.model, file, "--dry-run", says=(says,))


def test_an_edit_file_beside_broken_strangers_still_works(world: World, tmp_path: Path) -> None:
    """Only files that somebody named can be at fault."""
    digest = load_direction(world.direction).digest()
    kept = cache_dir() / "directions" / f"{digest}.safetensors"
    kept.write_bytes(b"torn")
    shutil.copy(world.direction, tmp_path / "z.safetensors")
    (tmp_path / "a.safetensors").write_bytes(DIRECTIONS["newer schema"][0](world.direction.read_bytes()))
    (tmp_path / "b.safetensors").symlink_to("b.safetensors")
    (file := tmp_path / "edit.yaml").write_text(EDIT.format(digest=digest))
    done = cli("edit", world.model, file, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert tree(tmp_path / "out").keys() == tree(world.edited).keys()
    refused(tmp_path, "edit", world.model, file, "--remove", "1", "-o", tmp_path / "o2", says=("says all of it",))
    refused(tmp_path, "edit", world.model, file, "--direction", tmp_path / "no", "-o", tmp_path / "o2",
            says=("no such direction",))  # fmt: skip


# -- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("edit M D --remove nan -o O", "finite"), ("edit M D --remove inf -o O", "finite"),
        ("edit M D --remove 1e999 -o O", "finite"), ("edit M D --remove -0.5 -o O", "from 0 to 2"),
        ("edit M D --remove 3 -o O", "from 0 to 2"), ("edit M D --remove much -o O", "a number or `auto`"),
        ("edit M D --amplify nan -o O", "finite"), ("edit M D --amplify -1 -o O", "0 or more"),
        ("edit M D --add 11 -o O", "drown"), ("edit M D --add inf -o O", "finite"),
        ("edit M D --remove auto -o O", "no chosen amount"), ("edit M D -o O", "one of --remove"),
        ("edit M D --remove 1 --add 1 -o O", "one of --remove"), ("edit M D --remove 1", "-o OUT"),
        ("edit M D --remove 1 --layers 2 -o O", "layer 2"), ("edit M D --remove 1 --layers 5-3 -o O", "layers '5-3'"),
        ("edit M D --remove 1 --layers ² -o O", "layers"), ("edit M D --remove 1 --layers 0-9999999999 -o O", "layers"),
        ("edit M D --remove 1 --layers -1 -o O", "layers"), ("edit M D --remove 1 --source 9 -o O", "no layer 9"),
        ("edit M D --remove 1 --source ³ -o O", "--source"), ("edit M D --remove 1 --roles lips -o O", "role lips"),
        ("edit M D --add 0.5 --constant loose -o O", "unknown constant"),
        ("edit M D --add 0.5 --constant as-llama -o O", "llama"), ("edit M gone --remove 1 -o O", "gone"),
        ("edit M D --remove 1 -o M/sub", "inside the base model"),
        ("find M F -o O --method magic", "extractors is called 'magic'"), ("find M F -o O --site moon", "moon"),
        ("find M F -o O --site text_mean", "text_mean"), ("find M F -o O --point mid", "unknown point 'mid'"),
        ("find M F -o O --layers 2", "between 0 and 1"), ("find M F -o O --tokens 0", "--tokens"),
        ("find M F -o O --trials 1", "--trials"), ("find M F -o O --device moon", "'moon'"),
        ("find M F -o O --device meta", "'meta'"), ("find M F -o O --dtype int3", "'int3'"),
        ("find M F -o O --batch 0", "--batch"), ("find M F -o O --threads 0", "--threads"),
        ("find M F", "--out"), ("find M", "FEATURE"), ("measure M --against M --feature F -n 1", "-n"),
        ("measure M --against M --feature F -n x", "-n"), ("measure M --suite slow", "no suite is called 'slow'"),
        ("measure M --judge http://127.0.0.1:9", "--judge-model"), ("measure M --set moon", "'moon'"),
        ("measure M --workers many", "'many'"), ("measure M --feature F --feature F", "given twice"),
        ("compare gone.json", "no such file"), ("claims M --against M --suite slow", "'slow'"),
        ("measure M --against M --feature F -o O.pdf", "'.pdf'"),
        ("measure M --against M --feature F -o .", "a folder"), ("measure M --against M --feature F -o /", "a folder"),
        ("measure M --against M --feature F --direction gone", "[usage-error]: gone: no such direction file"),
        ("claims M --against M --suite slow", "quick, standard, full, or none"), ("convert G", "--out"),
        ("show", "WHAT"), ("show M --plot", "--plot"), ("sing", "No such command"), ("edit M D --loud", "--loud"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(world: World, tmp_path: Path, argv: str, says: str) -> None:
    known = {"M": world.model, "D": world.direction, "F": world.feature, "G": world.gguf, "O": tmp_path / "out"}
    before = tree(world.folder)
    words = [str(known.get(w, w)) for w in argv.split()]
    refused(
        tmp_path, *(w.replace("M/", f"{world.model}/").replace("O.", f"{tmp_path}/O.") for w in words), says=(says,)
    )
    assert tree(world.folder) == before


# -- outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["a folder", "a file", "a dangling link", "a link to a folder", "an empty folder"])
@pytest.mark.parametrize("verb", ["edit", "find", "measure", "convert"])
def test_an_output_that_exists_is_left_alone(world: World, tmp_path: Path, verb: str, taken: str) -> None:
    if taken == "an empty folder" and verb in ("edit", "convert"):
        pytest.skip("an empty folder is a place to write a folder to")
    (tmp_path / "real").mkdir()
    (tmp_path / "real/own.txt").write_text("mine")
    out = tmp_path / ("out.json" if verb == "measure" else "out")
    if "folder" in taken and "link" not in taken:
        out.mkdir()
        if "empty" not in taken:
            (out / "own.txt").write_text("mine")
    elif taken == "a file":
        out.write_text("mine")
    else:
        out.symlink_to("real" if "folder" in taken else "nowhere")
    model = world.gguf if verb == "convert" else world.model
    argv = verbs(world, model, tmp_path / "out")[verb]
    refused(tmp_path, *argv, says=("a folder" if verb == "measure" and out.is_dir() else "exists already", out.name))


def test_outputs_in_impossible_places(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    for place, says in {"file/out": "not a folder", "file/a/out": "not a folder", "loop/out": "loop",
                        "x" * 250: "too long", "/proc/nowhere/out": "/proc"}.items():  # fmt: skip
        for verb in ("edit", "find", "measure"):
            refused(tmp_path, *verbs(world, world.model, tmp_path / place)[verb], says=(says,))
        refused(tmp_path, "convert", world.gguf, "-o", tmp_path / place, says=(says,))
    assert cli("edit", world.model, world.direction, "--remove", "1", "-o", tmp_path / "new/deep/out").code == 0


def test_parents_made_for_an_output_go_with_it(world: World, tmp_path: Path) -> None:
    """An addition whose bias overflows fp16 fails while the output is being written."""
    import torch

    import pico

    half = pico.build("llama", tmp_path / "half", torch.float16)
    direction = load_direction(world.direction)
    huge = type(direction)(direction.vectors, direction.resid_norm * 1e6, direction.mean_shows, direction.mean_lacks,
                           direction.meta)  # fmt: skip
    huge.save(tmp_path / "huge.safetensors")
    refused(tmp_path, "edit", half, tmp_path / "huge.safetensors", "--add", "1", "--transfer", "--layers", "0",
            "-o", tmp_path / "a/b/out", "--save-edit", tmp_path / "c/edit.yaml", says=("overflow F16",))  # fmt: skip
