"""Settings that start programs or fetch packages, names that another system reads otherwise, escapes in names of PDF files."""

from __future__ import annotations

import json
from pathlib import Path

from . import Case
from .layout import folder
from .weights import Build


def _with(name: str, text: str | bytes) -> Build:
    """A sound model and one more file."""

    def build(path: Path) -> None:
        folder(path)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return build


def _copied(name: str, of: str = "config.json") -> Build:
    """A sound model with a copy of one of its files, changed at the end."""

    def build(path: Path) -> None:
        folder(path)
        (path / name).write_bytes((path / of).read_bytes() + b"\n")

    return build


def _adapter(core: object) -> Build:
    told = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "megatron_config": {"x": 1},
            "base_model_name_or_path": "org/base", "megatron_core": core}  # fmt: skip
    return lambda path: (path / "adapter_config.json").write_text(json.dumps(told)) and None


_PDF = b"%%PDF-1.7\n1 0 obj << /Type /Catalog %s >> endobj\ntrailer << /Root 1 0 R >>\n%%%%EOF\n"
_RUNS = ("folder-runs-command",)
_EDITOR = {"terminal.integrated.env.linux": {"LD_PRELOAD": "./x.so"}}
CASES: list[Case] = [
    Case("codex-starts-server", _with(".codex/config.toml", '[mcp_servers.x]\ncommand = "sh"\n'), "suspicious", _RUNS),
    Case("opencode-starts-server", _with("opencode.json", '{"mcp": {"x": {"type": "local", "command": ["sh"]}}}'), "suspicious",
         _RUNS),
    Case("vscode-preloads", _with(".vscode/settings.json", json.dumps(_EDITOR)), "suspicious", _RUNS),
    Case("vscode-interpreter-inside", _with(".vscode/settings.json", '{"python.defaultInterpreterPath": "./bin/tool"}'),
         "suspicious", _RUNS),
    Case("pip-index-elsewhere", _with("pip.conf", "[global]\nindex-url = http://packages.invalid/simple\n"), "suspicious", _RUNS),
    Case("pipfile-source-elsewhere", _with("Pipfile", '[[source]]\nurl = "http://packages.invalid"\nname = "x"\n'), "suspicious",
         (*_RUNS, "requirements-elsewhere")),
    Case("uv-index-like-the-usual-one", _with("uv.toml", 'index-url = "https://pypi.org.invalid/simple"\n'), "suspicious", _RUNS),
    Case("adapter-imports-module", _adapter("evil.core"), "suspicious", ("adapter-imports",)),
    Case("modelfile-from-the-system", _with("Modelfile", "FROM /etc/passwd\n"), "suspicious", ("modelfile-elsewhere",)),
    Case("name-ends-with-space", _copied("config.json "), "suspicious", ("name-other-case", "names-collide")),
    Case("name-ends-with-dot", _copied("config.json."), "suspicious", ("name-other-case", "names-collide")),
    Case("name-with-stream", _copied("config.json:x"), "suspicious", ("name-other-case", "names-collide")),
    Case("name-looks-alike", _copied("c\u043enfig.json"), "suspicious", ("name-looks-alike",)),
    Case("weights-look-alike", _copied("m\u043edel.safetensors", "model.safetensors"), "broken", ("name-looks-alike",)),
    Case("pdf-name-escaped", _with("paper.pdf", _PDF % b"/Open#41ction << /S /J#61vaScript /J#53 (x) >>"), "suspicious",
         ("active-content",)),
    Case("pdf-name-escaped-honest", _with("paper.pdf", _PDF % b"/Font << /Times#20New#20Roman 2 0 R >>")),
    Case("vscode-settings-honest", _with(".vscode/settings.json", json.dumps({
        "python.defaultInterpreterPath": "${workspaceFolder}/.venv/bin/python", "editor.formatOnSave": True,
        "terminal.integrated.env.linux": {"HF_HOME": "/data"}}))),
    Case("pipfile-honest", _with("Pipfile", '[[source]]\nurl = "https://pypi.org/simple"\nverify_ssl = true\nname = "pypi"\n')),
    Case("uv-pytorch-honest", _with("uv.toml", '[[index]]\nname = "pytorch"\nurl = "https://download.pytorch.org/whl/cu124"\n')),
    Case("opencode-honest", _with("opencode.json", '{"command": {"test": {"template": "Run the tests."}}}')),
    Case("adapter-core-honest", _adapter("megatron.core")),
    Case("modelfile-of-the-publisher-honest", _with("Modelfile", "FROM /home/user/models/tiny.gguf\n")),
    Case("name-of-other-letters-honest", _with("\u043f\u0440\u0438\u043c\u0435\u0440.txt", "text\n")),
]  # fmt: skip
