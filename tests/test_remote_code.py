"""Code that comes with a model: every way to ask for it, and what the code is seen to do without being run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bounded import ends_within
from corpus.remote import CONFIGURATION, MODELING
from weightsmith.errors import LimitExceeded
from weightsmith.trust.items import Folder, file_item
from weightsmith.trust.kinds import kinds_of
from weightsmith.trust.scanners.python_code import LARGEST, read_code
from weightsmith.trust.scanners.remote import RemoteCode
from weightsmith.trust.scanners.remote_keys import DANGEROUS, Pairs, asks, parsed, yaml_asks


def said(value: Any, name: str = "config.json") -> list[tuple[str, str]]:
    """(rule, place) of everything that a configuration asks for."""
    return [(ask.rule.name, ask.place) for ask in asks(name, parsed(json.dumps(value).encode()))]


def scanned(folder: Path) -> dict[tuple[str, str], str]:
    """(rule, file) -> message for a folder."""
    found = Folder(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            item = file_item(path.relative_to(folder).as_posix(), path)
            item.kinds = kinds_of(item)
            found.items[item.name] = item
    return {(f.rule, f.file): f.message for f in RemoteCode().scan_folder(found)}


@pytest.mark.parametrize("depth", [0, 1, 5, 60])
def test_what_is_asked_for_is_found_at_any_depth(depth: int) -> None:
    value: Any = {"auto_map": {"AutoModel": "a.B"}}
    for n in range(depth):
        value = {"x": value} if n % 2 else [value]
    assert [rule for rule, _ in said(value)] == ["remote-code"]


def test_of_two_equal_keys_both_are_looked_at() -> None:
    text = b'{"auto_map": {"AutoModel": "a.B"}, "x": 1, "auto_map": null}'
    assert [a.rule.name for a in asks("config.json", parsed(text))] == ["remote-code"]
    assert parsed(b'{"a": 1, "a": 2}') == Pairs([("a", 1), ("a", 2)])


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{", b"nan", b'"x"'])
def test_what_is_no_configuration_asks_for_nothing(data: bytes) -> None:
    assert list(asks("config.json", parsed(data))) == []


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a": ' * 50_000])
def test_what_is_nested_too_deep_is_not_taken_for_nothing(data: bytes) -> None:
    with pytest.raises(LimitExceeded, match="too deep"):
        parsed(data)


@pytest.mark.parametrize(("key", "value", "rule"), [
    ("_attn_implementation", "sdpa", ""), ("_attn_implementation", "flash_attention_3", ""), ("attn_implementation",
          "paged|sdpa", ""),
    ("attn_implementation", "org/name", "remote-kernel"), ("attn_implementation", "org/name:fn", "remote-kernel"),
    ("experts_implementation", "org/name", "remote-kernel"), ("use_kernels", True, ""),
    ("base_model_name_or_path", "org/name", ""), ("_name_or_path", "/home/me/model", ""), ("torch_dtype", "torch.float16", ""),
    ("activation_function", "gelu_new", ""), ("activation_function", "torch.nn.modules.activation.ReLU", ""),
    ("activation_function", "mine.ReLU", "config-imports"), ("anything", "os.system", "config-calls"),
    ("anything", "subprocess.Popen", "config-calls"), ("anything", "operating.system", ""), ("version", "4.57.1", ""),
    ("tokenizer_class", "LlamaTokenizer", ""), ("tokenizer_class", "org/repo--tok.Tok", "remote-code-elsewhere"),
    ("trust_remote_code", True, "consent-in-config"), ("trust_remote_code", False, ""), ("target_modules", ["q_proj"], ""),
    ("classifier", "head.fc", ""), ("task_specific_params", {"summarization": {"prefix": "summarize: "}}, ""),
    ("model_file", "model.py", "remote-code"), ("vocab_file", "vocab.txt", ""), ("custom_pipelines", {}, ""),
])  # fmt: skip
def test_keys_and_shapes(key: str, value: object, rule: str) -> None:
    assert [name for name, _ in said({"model_type": "llama", key: value})] == ([rule] if rule else [])


@pytest.mark.parametrize("name", ["os.system", "subprocess.run", "builtins.exec", "runpy.run_path", "pty.spawn",
      "importlib.import_module"])
def test_functions_that_run_things_are_never_honest(name: str) -> None:
    assert DANGEROUS.fullmatch(name)
    assert [a.rule.severity for a in yaml_asks(f"a:\n  _target_: {name}\n")] == ["malicious"]


HOSTILE = [
    "import os\nos.system('x')", "import os as o\no.system('x')", "from os import system as s\ns('x')", "import "
    "subprocess\nsubprocess.run(['x'])",
    "__import__('os').system('x')", "import importlib\nimportlib.import_module('os').popen('x')", "import os\ngetattr(os, "
    "'system')('x')",
    "exec('x=1'+y)", "import os\nclass A:\n    os.system('x')", "import os\ndef f():\n    os.system('x')\nf()",
    "import os\nx = [os.system('x') for _ in '1']", "import os\nif True:\n    os.system('x')", "import os\nwith open('x') as "
    "f:\n    os.system('x')",
    "import base64\ndef f():\n    exec(base64.b64decode('eA=='))", "import socket\nsocket.socket().connect(('x', 1))",
    "import os\nos.__dict__['system']('x')", "import sys, os\nsys.modules['os'].system('x')", "import "
    "builtins\nbuiltins.exec('x' + y)",
    "import os\nasync def f(x=os.system('x')):\n    pass", "import os\n@os.system\nclass A:\n    pass",
    "import os\nclass M(type):\n    def __init__(cls, *a):\n        os.system('x')\nclass A(metaclass=M):\n    pass",
    "import os\nclass A:\n    def __init_subclass__(cls):\n        os.system('x')\nclass B(A):\n    pass",
    "import os\nlist(map(os.system, ['x']))", "import os, functools\nfunctools.partial(os.system, 'x')()", "import "
    "os\n[os.system][0]('x')",
    "import os\nd = {'a': os.system}\nd['a']('x')", "import os\nfor f in (os.system,):\n    f('x')", "from os import "
    "*\nsystem('x')",
    "import os\nclass A:\n    def __enter__(self):\n        os.system('x')\n    def __exit__(self, *a):\n        pass\nwith "
    "A():\n    pass",
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE)
def test_code_that_acts_when_it_is_imported(source: str) -> None:
    assert read_code(source.encode()).hostile


@pytest.mark.parametrize("source", [
    MODELING, CONFIGURATION, "", "import os\ndef f():\n    os.system('x')", "import os\nif __name__ == '__main__':\n    "
          "os.system('x')",
    "import re\nX = re.compile('x')", "import torch\nx = torch.compile(f)\nmodel.eval()", "eval('1')", "import "
    "os\nos.environ['A'] = '1'",
    "import subprocess\nsubprocess.run('pip install flash-attn', shell=True)", "import requests\nr = requests.get('https://x')",
    "from transformers import AutoModel\nm = AutoModel.from_pretrained('x')", "class A:\n    def exec(self):\n        return "
    "self.exec()",
])  # fmt: skip
def test_code_that_does_not(source: str) -> None:
    assert read_code(source.encode()).hostile == ""


def test_code_is_asked_for_through_imports(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "a.B"}}))
    (tmp_path / "a.py").write_text("from .b import x\n")
    (tmp_path / "b.py").write_text("import ctypes\ndef f():\n    ctypes.CDLL('x')\n")
    (tmp_path / "c.py").write_text("import ctypes\ndef f():\n    ctypes.CDLL('x')\n")
    found = scanned(tmp_path)
    assert ("python-risky", "b.py") in found
    assert ("python-code", "c.py") in found
    assert "config.json asks for it" in found["python-code", "a.py"]


def test_the_code_is_shown(tmp_path: Path) -> None:
    code = read_code(b"import os\nimport torch\n\nos.system('x')\n")
    assert code.summary == "imports os, torch; starts programs: os.system (line 4, at import)"


def test_code_too_large_or_not_python_is_not_taken_for_clean(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "a.B"}}))
    (tmp_path / "a.py").write_bytes(b"x = 1\n" * LARGEST)
    (tmp_path / "b.py").write_bytes(b"class\n")
    found = scanned(tmp_path)
    assert ("python-not-read", "a.py") in found
    assert ("python-syntax", "b.py") in found


@pytest.mark.parametrize("source", [b"(" * 100_000, b"a" + b".b" * 200_000, b"-" * 200_000 + b"1", b"1" + b"+1" * 200_000,
      b"\x00" * 100,
                                    b"f(" * 90 + b")" * 90, b"[" * 90 + b"]" * 90, b"x = '" + b"a" * 500_000 + b"'",
                                          b"a = b = " * 60_000,
                                    b"# coding: rot13\nvzcbeg bf\n"])  # fmt: skip
def test_any_source_ends_soon(source: bytes) -> None:
    with ends_within(30):
        read_code(source)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_code(data)
    list(asks("config.json", parsed(data)))


_JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.text(max_size=12), st.sampled_from(("os.system", "a/b",
      "a/b--c.D", "x.py"))),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from((
                         "auto_map", "type", "_target_", "_class_name", "kernel_config", "trust_remote_code",
                         "custom_generate", "x")), inner,
                         max_size=4), max_leaves=12)  # fmt: skip


@given(_JSON, st.sampled_from(("config.json", "modules.json", "model_index.json", "adapter_config.json")))
def test_any_configuration_is_read(value: Any, name: str) -> None:
    said(value, name)


@pytest.mark.parametrize(("name", "value", "place"), [
    ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "ldm.Mod"}], "$[0].type"),
    ("router_config.json", {"types": {"query": "ldm.Mod"}, "structure": {}}, "$.types.query"),
    ("model_index.json", {"_class_name": "P", "unet": ["ldm", "Net"]}, "$.unet"),
    ("config.json", {"_target_": "ldm.Mod"}, "$._target_"),
])  # fmt: skip
def test_a_file_of_the_folder_comes_before_a_library_of_its_name(name: str, value: Any, place: str) -> None:
    data = parsed(json.dumps(value).encode())
    assert list(asks(name, data)) == []
    assert [ask.place for ask in asks(name, data, frozenset({"ldm"}))] == [place]
    assert list(asks(name, data, frozenset({"other"}))) == []


@pytest.mark.parametrize("target", [
    "transformers.dynamic_module_utils.get_class_in_module", "torch.utils.collect_env.run", "torch.hub.load_state_dict_from_url",
    "numpy.testing.runstring", "pandas.read_pickle", "torch.serialization.load", "joblib.load"])  # fmt: skip
def test_functions_of_known_libraries_that_run_or_load_code(target: str) -> None:
    assert ("config-calls", "$._target_") in said({"_target_": target})
    assert [a.rule.severity for a in yaml_asks(f"a:\n  class_path: {target}\n")] == ["malicious"]
