"""The rules of code that comes with a model."""

from __future__ import annotations

from ..rules import Rule

REMOTE = Rule(
    "remote-code", "suspicious", "A configuration asks the loader to run code that comes with the model",
    "Python code of the model's author runs on this machine with all rights of the program that loads it. Loaders ask for consent "
    "(`trust_remote_code`), and several versions of several loaders did not.",
    "Read the code that is shown. Prefer a model whose architecture your library knows; otherwise pin this revision and load it "
    "where it can hurt nothing.",
    ("CVE-2026-22807", "CVE-2026-9856", "https://huggingface.co/docs/transformers/custom_models"),
)  # fmt: skip
ELSEWHERE = Rule(
    "remote-code-elsewhere", "suspicious", "A configuration asks the loader to fetch code from another repository",
    "What runs is not in this folder: it was not scanned, and it can change at any time, whatever revision is pinned here.",
    "Fetch that repository, read it, and pin it.",
    ("CVE-2026-22807",),
)  # fmt: skip
KERNEL = Rule(
    "remote-kernel", "suspicious", "A configuration asks the loader to fetch a compiled kernel or its code",
    "A name such as `org/name` in place of an attention or kernel implementation makes a loader download and import code; some "
    "versions of transformers did so without asking.",
    "Set the implementation to a built-in one (sdpa, eager, flash_attention_2).",
    ("CVE-2026-4372", "GHSA-29pf-2h5f-8g72"),
)  # fmt: skip
CONSENT = Rule(
    "consent-in-config", "suspicious", "A configuration gives the consent to run code in the user's place",
    "Whether remote code may run is for the caller to say. Some loaders took the value from the configuration when they loaded "
    "parts of the model.",
    "Remove the key.",
    ("CVE-2026-5241",),
)  # fmt: skip
CLASS_PATH = Rule(
    "config-imports", "suspicious", "A configuration names something to import",
    "A loader that follows such a name imports any module that can be found, and calls what it finds there.",
    "Find out which program reads this key, and whether the name is part of that program.",
    ("CVE-2026-9856", "https://cwe.mitre.org/data/definitions/470.html"),
)  # fmt: skip
HOSTILE_PATH = Rule(
    "config-calls", "malicious", "A configuration names a function that runs programs or code",
    "Nothing that a model needs is called `os.system` or `builtins.exec`. A loader that instantiates by name would run what stands "
    "beside it.",
    "Do not load this model with anything, and report it to whoever published it.",
    ("https://cwe.mitre.org/data/definitions/470.html",),
)  # fmt: skip
HOSTILE = Rule(
    "python-hostile", "malicious", "Python code that acts as soon as it is imported",
    "Starting programs, running data as code or sending data while being imported is what a payload does; the code of a model "
    "defines classes.",
    "Do not import it. Report it to whoever published it.",
    ("CVE-2026-22807",),
)  # fmt: skip
RISKY = Rule(
    "python-risky", "suspicious", "Python code that does what a model need not",
    "It starts programs, uses the network, loads native code, unpickles, or hides what it does.",
    "Read the lines that are named before anything imports this file.",
)  # fmt: skip
SHADOWS = Rule(
    "python-shadows", "suspicious", "A Python file that is imported without being asked for",
    "Python imports `sitecustomize.py`, `.pth` files and modules of a library's name from the folder that a program is started in; "
    "torch.hub and inference services run `hubconf.py` and `handler.py`.",
    "Remove it, and never start Python in a model's folder.",
    ("https://docs.python.org/3/library/site.html",),
)  # fmt: skip
PATH_FILE = Rule(
    "python-path-file", "malicious", "A text file named .pth that holds a line of code",
    "Python runs lines that begin with `import` in such a file at every start, once it lies where packages lie.",
    "Delete it.",
    ("https://docs.python.org/3/library/site.html",),
)  # fmt: skip
UNREAD = Rule(
    "python-not-read", "unknown", "Python code that could not be read",
    "A loader may run what this scan could not parse.",
    "Read it with your own eyes before anything imports it.",
)  # fmt: skip
TOO_LARGE = Rule(
    "config-not-read", "unknown", "A configuration that was not read to its end",
    "A loader reads it whole, however large: what it would import or download may stand behind what this scan read.",
    "Look at why it is so large: honest configurations hold a few kilobytes.",
)  # fmt: skip
PLAIN = Rule(
    "python-code", "note", "Python code in the folder",
    "Nothing in the folder asks a loader to run it.",
    "Do not run it unless you have read it.",
)  # fmt: skip
SYNTAX = Rule(
    "python-syntax", "note", "A Python file that this version of Python does not parse",
    "It may be written for another version, or be no program at all. Nothing in the folder asks a loader to run it.",
    "Do not run it unless you have read it.",
)  # fmt: skip
REQUIREMENTS = Rule(
    "requirements", "note", "A list of packages to install",
    "Installing packages runs their code.",
    "Read the list before you install it.",
)  # fmt: skip
REQUIREMENTS_ELSEWHERE = Rule(
    "requirements-elsewhere", "suspicious", "A list of packages that come from an unusual place",
    "Packages from an address, a repository or another index than the usual one run whatever code lies there on the day of the "
    "installation.",
    "Do not install it before you have read what lies there.",
)  # fmt: skip
NOTEBOOK = Rule(
    "notebook-code", "note", "A notebook with code",
    "It runs when somebody opens it and runs its cells.",
    "Read the cells before you run them.",
)  # fmt: skip
RULES = (REMOTE, ELSEWHERE, KERNEL, CONSENT, CLASS_PATH, HOSTILE_PATH, HOSTILE, RISKY, SHADOWS, PATH_FILE, UNREAD, TOO_LARGE, PLAIN,
         SYNTAX, REQUIREMENTS, REQUIREMENTS_ELSEWHERE, NOTEBOOK)  # fmt: skip
