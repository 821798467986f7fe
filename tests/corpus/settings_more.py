"""Tokenizers that take marks away or read another word, answers that can't end, configurations that load code by other names."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Case, write_json
from .layout import config, folder, tokenizer

Build = Callable[[Path], None]
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_CTC = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": False}


def _tokenizer(**changes: Any) -> Build:
    def build(path: Path) -> None:
        folder(path, tokenizer=tokenizer(**changes))

    return build


def _replace(regex: str, content: str) -> Build:
    return _tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": regex}, "content": content})


def _cut(**rule: Any) -> Build:
    return _tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [rule, _BYTES]})


def _generation(**settings: Any) -> Build:
    def build(path: Path) -> None:
        folder(path, generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **settings})

    return build


def _ends(number: int) -> Build:
    def build(path: Path) -> None:
        folder(path, generation={"eos_token_id": number}, config=config(eos_token_id=number))

    return build


def _unknown(path: Path) -> None:
    made = tokenizer()
    made["model"]["unk_token"] = "Ġsafe"
    folder(path, tokenizer=made)


def _tekken(swap: bool, twice: bool = False, mark: str = "", special: tuple[str, ...] = ("<unk>", "[INST]")) -> Build:
    def build(path: Path) -> None:
        folder(path)
        words = [bytes([i]) for i in range(256)] + [b" safe", b" unsafe"]
        shown = [w.decode("utf-8", "replace") for w in words]
        if swap:
            shown[256:] = [s + mark for s in shown[:255:-1]]
        rows = [{"rank": min(n, 256) if twice else n, "token_bytes": base64.b64encode(w).decode(), "token_str": s}
                for n, (w, s) in enumerate(zip(words, shown, strict=True))]  # fmt: skip
        marks = [{"rank": n, "token_str": text, "is_control": True} for n, text in enumerate(special)]
        config = {"pattern": "\\p{L}+", "version": "v3"}
        write_json(path / "tekken.json", {"config": config, "vocab": rows, "special_tokens": marks})

    return build


def _tiktoken(rows: list[tuple[bytes, int]]) -> Build:
    def build(path: Path) -> None:
        every = [(bytes([i]), i) for i in range(256)] + rows
        path.joinpath("qwen.tiktoken").write_text("".join(f"{base64.b64encode(b).decode()} {i}\n" for b, i in every))

    return build


def _files(**texts: str) -> Build:
    def build(path: Path) -> None:
        for name, text in texts.items():
            path.joinpath(name.replace("__", ".")).write_text(text)

    return build


def _case(name: str, build: Build, rule: str = "", verdict: str = "suspicious") -> Case:
    return Case(name, build, verdict if rule else "clean", (rule,) if rule else ())


CASES = [
    _case("marks-minus", _replace("[-]", " "), "tokenizer-drops-text"),
    _case("marks-dot", _replace("[.]", ""), "tokenizer-drops-text"),
    _case("marks-all", _replace("\\p{P}", ""), "tokenizer-drops-text"),
    _case("marks-compare", _replace("[<]", ">"), "tokenizer-changes-text"),
    _case("marks-not-equal", _replace("[!]=", "=="), "tokenizer-changes-text"),
    _case("marks-slash", _replace("[/]", "\\"), "tokenizer-changes-text"),
    _case("marks-range", _replace("[!-/]+", ""), "tokenizer-drops-text"),
    _case("marks-posix", _replace("[[:punct:]]", ""), "tokenizer-drops-text"),
    _case("marks-decoded", _tokenizer(decoder={"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"Regex": "[-]"}, "content": "+"}, _BYTES]}), "tokenizer-changes-text"),
    _case("marks-quotes-honest", _replace("[“”„]", '"')),
    _case("marks-dashes-honest", _replace("[–—]", "-")),
    _case("marks-spaces-honest", _replace("[ \\t]{2,}", " ")),
    _case("cut-punctuation", _cut(type="Punctuation", behavior="Removed"), "tokenizer-drops-text"),
    _case("cut-minus", _cut(type="Split", pattern={"String": "-"}, behavior="Removed", invert=False), "tokenizer-drops-text"),
    _case("cut-dot", _cut(type="Split", pattern={"Regex": "[.]"}, behavior="Removed", invert=False), "tokenizer-drops-text"),
    _case("cut-delimiter", _cut(type="CharDelimiterSplit", delimiter="-"), "tokenizer-drops-text"),
    _case("cut-spaces-honest", _tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Removed", "invert": False},
        _BYTES | {"add_prefix_space": True}]})),
    _case("ctc-that-writes", _tokenizer(decoder={"type": "Sequence", "decoders": [_CTC, _BYTES]}), "tokenizer-changes-text"),
    _case("unknown-is-a-word", _unknown, "token-drops-word"),
    _case("end-pushed-down", _generation(sequence_bias=[[[2], -100.0]]), "never-stops", "broken"),
    _case("end-pushed-down-by-key", _generation(sequence_bias={"(2,)": -30}), "never-stops", "broken"),
    _case("end-is-the-beginning", _ends(1), "end-is-a-word"),
    _case("end-is-unknown", _ends(3), "end-is-a-word"),
    _case("lengths-absurd", _generation(exponential_decay_length_penalty=[1, 0.2]), "settings-absurd"),
    _case("one-position", lambda p: folder(p, config=config(max_position_embeddings=1)) and None, "settings-absurd"),
    _case("tekken-honest", _tekken(False)),
    _case("tekken-spelled-otherwise", _tekken(True), "ranks-spelled-otherwise"),
    _case("tekken-special-word", _tekken(False, special=("<unk>", "however")), "ranks-special-word"),
    _case("tekken-twice", _tekken(False, twice=True), "ranks-twice", "broken"),
    _case("tiktoken-honest", _tiktoken([(b" safe", 256), (b" unsafe", 257)])),
    _case("tiktoken-empty-token", _files(multilingual__tiktoken="IQ== 0\nIg== 1\n= 2\n")),
    _case("tiktoken-rank-twice", _tiktoken([(b" safe", 256), (b" unsafe", 256)]), "ranks-twice", "broken"),
    _case("tiktoken-token-twice", _tiktoken([(b" safe", 256), (b" safe", 257)]), "ranks-twice", "broken"),
    _case("tiktoken-unreadable", _files(o200k__tiktoken="IQ== 0\nno rank\n"), "ranks-unreadable", "broken"),
    _case("onnx-library", lambda p: write_json(p / "genai_config.json", {"model": {"decoder": {
        "filename": "model.onnx", "session_options": {"custom_ops_library": "ops.so"}}}}), "remote-code"),
    _case("mlflow-loader", _files(MLmodel="flavors:\n  python_function:\n    loader_module: loading\n    code: code\n"),
          "config-names-code"),
    _case("mlflow-honest", _files(MLmodel="flavors:\n  python_function:\n    loader_module: mlflow.transformers\n")),
    _case("yaml-name-that-runs", _files(config__yaml="preprocessors:\n  audio:\n    name: "
          "subprocess.check_output\n    params: {}\n"), "config-names-code", "malicious"),
    _case("monai-runs", lambda p: write_json(p / "configs.json", {"imports": ["$import os"], "x": "$os.system('id')"}),
          "config-calls", "malicious"),
    _case("monai-runs-in-yaml", _files(inference__yaml="imports:\n- $import os\nstart: $__import__('os').getcwd()\n"),
          "config-names-code", "malicious"),
    _case("monai-handed-on", lambda p: write_json(p / "configs.json", {
        "imports": ["$import os"], "x": "$list(map(os.system, ['id']))"}), "config-calls", "malicious"),
    _case("yaml-in-flow", _files(x__yaml="a: {name: subprocess.check_output, b: 1}  # as it is\n"), "config-names-code",
          "malicious"),
    _case("yaml-names-of-files-honest", _files(x__yaml="profile: trace.json\nfile: commands.txt\nmodel: joblib.pkl\n"
                                               "b: pip.conf\n")),
    _case("yaml-shell-honest", _files(x__yaml="imports: a\nrun: |\n  $PYTHON -c \"exec(open('setup.py').read())\"\n")),
    _case("bias-of-nothing", _generation(sequence_bias=True, temperature=99.0), "settings-absurd"),
    _case("tekken-spelled-with-a-mark", _tekken(True, mark="\ufffd"), "ranks-spelled-otherwise"),
    _case("marks-before-honest", _replace("\\s+(?=[.,!?])", "")),
    _case("cut-all-but-letters", _cut(type="Split", pattern={"Regex": "[\\p{L}\\p{N}\\s]+"}, behavior="Removed", invert=True),
          "tokenizer-drops-text"),
    _case("monai-honest", lambda p: write_json(p / "configs.json", {
        "imports": ["$import glob", "$import torch"], "evaluator": {"_target_": "monai.engines.SupervisedEvaluator"},
        "files": "$sorted(glob.glob('*.nii'))", "weights": "$torch.load('model.pt', weights_only=True)", "run": "$@evaluator.run()",
        "still": "$@network.eval()"})),
    _case("json-of-a-sampler", _files(resampler_config__json='{"a": 1,}'), "json-invalid", "broken"),
    _case("json-of-results", _files(examples__json='{"text": "a list, with a comma too many",}')),
    _case("yaml-names-honest", _files(config__yaml="pipeline:\n  name: "
          "pyannote.audio.pipelines.SpeakerDiarization\n  params: {}\n")),
]  # fmt: skip
