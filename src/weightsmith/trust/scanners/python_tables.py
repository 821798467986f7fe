"""What the calls of a Python file do, by name, and the words that stand for what can do harm."""

from __future__ import annotations

import re
from functools import lru_cache

#: what a call does -> the calls, as dotted names; a trailing dot means everything below
GROUPS: dict[str, tuple[str, ...]] = {
    "starts programs": ("os.system", "os.popen", "os.exec*", "os.spawn*", "os.posix_spawn*", "os.startfile", "os.fork",
                        "subprocess.", "pty.", "commands.", "popen2.", "multiprocessing.Process", "asyncio.create_subprocess_exec",
                        "asyncio.create_subprocess_shell", "asyncio.subprocess.", "pexpect.", "sh.", "plumbum.",
                        "_posixsubprocess.",
                        "_winapi.CreateProcess", "multiprocessing.util.spawnv_passfds", "imaplib.IMAP4_stream", "pydoc.pipepager",
                        "pydoc.tempfilepager", "distutils.spawn.spawn", "setuptools._distutils.spawn.spawn",
                        "numpy.distutils.exec_command.", "torch.utils.collect_env.run*", "huggingface_hub.utils._subprocess.",
                        "webbrowser.GenericBrowser", "webbrowser.BackgroundBrowser", "win32com.client.Dispatch",
                        "win32api.ShellExecute", "win32process.", "fabric.", "invoke.run", "sarge.", "delegator.", "envoy."),
    "runs code made from data": ("eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile", "__import__",
                                 "builtins.__import__", "runpy.", "code.", "codeop.", "types.CodeType", "types.FunctionType",
                                 "marshal.loads", "marshal.load", "imp.", "importlib.util.spec_from_loader", "zipimport.",
                                 "cProfile.run*", "cProfile.Profile().run*", "profile.run*", "profile.Profile().run*", "bdb.",
                                 "pdb.run*", "pdb.Pdb().run*", "trace.Trace().run*", "doctest.run_docstring_examples",
                                 "doctest.debug*", "numpy.testing.runstring"),
    "reads pickles": ("pickle.loads", "pickle.load", "pickle.Unpickler", "pickle._loads", "pickle._load", "pickle._Unpickler",
                      "_pickle.", "cPickle.load*", "cloudpickle.loads", "cloudpickle.load", "dill.loads",
                      "dill.load", "joblib.load", "shelve.open", "pandas.read_pickle", "jsonpickle.decode", "yaml.unsafe_load*",
                      "yaml.UnsafeLoader"),
    "loads native code": ("ctypes.", "_ctypes.", "cffi.", "torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline",
                          "torch.ops.load_library", "torch.classes.load_library", "numpy.ctypeslib.load_library"),
    "uses the network": ("socket.", "requests.", "urllib.request.", "urllib2.", "urllib3.", "http.client.", "httpx.", "aiohttp.",
                         "ftplib.", "smtplib.", "telnetlib.", "paramiko.", "websocket.", "websockets.", "xmlrpc.", "wget.download"),
    "downloads": ("huggingface_hub.hf_hub_download", "huggingface_hub.snapshot_download", "torch.hub.load",
                  "torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "gdown.download"),
    "changes files": ("os.remove", "os.unlink", "os.rmdir", "os.removedirs", "os.rename", "os.replace", "os.chmod", "os.symlink",
                      "os.makedirs", "os.mkdir", "os.mknod", "shutil.", "tempfile."),
    "decodes data": ("base64.", "binascii.", "zlib.decompress", "gzip.decompress", "lzma.decompress", "bz2.decompress",
                     "bytes.fromhex", "bytearray.fromhex", "codecs.decode"),
    "reads the environment": ("os.environ", "os.getenv", "os.environb"),
    "reaches into the interpreter": ("sys.settrace", "sys.setprofile", "sys._getframe", "sys.meta_path", "sys.path_hooks",
                                     "gc.get_objects",
                                     "atexit.register", "signal.signal", "sys.addaudithook"),
}  # fmt: skip
HOSTILE = ("starts programs", "runs code made from data")
RISKY = (*HOSTILE, "loads native code", "uses the network", "reads pickles", "reaches into the interpreter")
_HARMLESS = re.compile(r"(?:asyncio\.)?subprocess\.(?:PIPE|STDOUT|DEVNULL|Process|SubprocessError|\w+Error|TimeoutExpired|"
                       r"CompletedProcess|list2cmdline)(?:\..*)?")  # fmt: skip
#: modules whose functions run code, start programs, or reach files and network: nothing that a model's settings need; for a pattern
RUNNERS = "|".join((
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "pty", "runpy", "importlib", "ctypes", "code", "codeop", "pickle",
    "marshal", "cloudpickle", "dill", "joblib", "webbrowser", "multiprocessing", "asyncio", "urllib", "requests", "http", "ftplib",
    "tempfile", "pathlib", "io", "functools", "operator", "types", "inspect", "timeit", "pdb", "cProfile", "profile", "trace",
    "commands", "pip", "setuptools", "distutils", "platform", "signal", "threading",
))  # fmt: skip
#: modules that are nothing but a way to act: who hands one on as a value, or asks one for a name that is made, hides what is done
STRONG = frozenset(("os", "posix", "nt", "subprocess", "pty", "builtins", "_posixsubprocess"))
#: modules that other modules hold under their names, where they are found without an import
HELD = STRONG | frozenset(("sys", "ctypes", "pickle", "marshal", "importlib", "runpy", "shutil", "socket", "_pickle", "webbrowser",
                           "_io"))  # fmt: skip
#: functions of such modules under names that little else has: told from their name alone, whatever they are asked of
DISTINCT = frozenset((
    "Popen", "check_output", "check_call", "getoutput", "getstatusoutput", "execv", "execve", "execvp", "execvpe", "execl",
          "execle",
    "execlp", "execlpe", "posix_spawn", "posix_spawnp", "spawnl", "spawnle", "spawnlp", "spawnv", "spawnve", "spawnvp", "spawnvpe",
    "fork_exec", "subprocess_shell", "subprocess_exec", "create_subprocess_shell", "create_subprocess_exec",
))  # fmt: skip
#: the same where they are asked of something that was itself looked up by a name
TELLTALE = DISTINCT | frozenset(("system", "popen", "startfile", "exec", "eval", "__import__", "spawn", "fork"))
#: functions that import by a name that is given as text
IMPORTING = frozenset(("builtins.__import__", "__import__", "importlib.import_module", "importlib.__import__",
      "pkgutil.resolve_name",
                       "pydoc.locate", "pydoc.safeimport", "importlib._bootstrap._gcd_import"))  # fmt: skip
#: a file that has none of these, as names or texts, has no way to act that is not written down plainly
WORDS = HELD | DISTINCT | frozenset(
    name for said in HOSTILE for call in GROUPS[said] for name in [call.rstrip(".*").split(".")[0]]) - {"torch",
          "numpy"} | frozenset((
        "getattr", "vars", "globals", "locals", "__dict__", "__builtins__", "builtins__", "modules", "import_module",
        "resolve_name",
        "locate", "safeimport", "_gcd_import", "attrgetter", "methodcaller", "__getattribute__", "collect_env", "exec_command",
        "pydoc", "webbrowser", "timeit", "runstring", "load_module", "exec_module", "yaml", "dill", "joblib"))  # fmt: skip
#: what a text says that is code, a pickle or a template made to act; no model needs to hold one
ACTING_TEXT = re.compile(
    r"__import__\s{0,4}\(|\bos\s{0,4}\.\s{0,4}(?:system|popen|exec[vl]p?e?)\s{0,4}\(|\bimport\s{1,4}(?:os|posix|subprocess|"
          r"pty)\b[^\n]{0,80}"
    r"[;\n][^\n]{0,80}\b(?:system|popen|Popen|check_output|spawn)\s{0,4}\(|\bc(?:posix|nt|os|subprocess|builtins|__builtin__)\n\w|"
    r"!!python/(?:object/(?:apply|new)|name|module)|__globals__\s{0,4}[\[.]|\.os\.(?:system|popen)\b|bash -i\s{0,4}>&|/dev/tcp/\d")
#: a function that acts, as the whole of a text: who looks it up by this name hides that he calls it
NAMED_TEXT = re.compile(r"(?:os|posix|nt)[.:](?:system|popen|exec[vl]p?e?|posix_spawnp?|spawn[vl]p?e?)|subprocess[.:]\w{3,16}|"
                        r"(?:builtins|__builtin__)[.:](?:exec|eval|__import__)|pty[.:]spawn|PYTHONBREAKPOINT")  # fmt: skip
#: what belongs to the user and to no model
PRIVATE_TEXT = re.compile(r"(?<!-i ~/)\.ssh/(?:id_\w|authorized_keys)|\.aws/credentials|/etc/(?:shadow|cron|ld\.so\.preload)|"
      r"\.docker/config\.json|"
                          r"\.netrc\b|\.git-credentials|/\.(?:bashrc|zshrc|bash_profile)\b")  # fmt: skip


@lru_cache(8192)
def group(name: str) -> str:
    """What a call of a dotted name does, or ``""``."""
    if not name or _HARMLESS.fullmatch(name):
        return ""
    if name.startswith(("posix.", "nt.")):
        name = "os." + name.split(".", 1)[1]
    for said, calls in GROUPS.items():
        for call in calls:
            if name == call or (call[-1] in ".*" and name.startswith(call.rstrip("*"))):
                return said
    return ""


@lru_cache(8192)
def canonical(name: str) -> str:
    """A dotted name from the module on that it is found in; ``~`` in front says that another module was asked for it."""
    mark = "~" if name.startswith("~") else ""
    parts = name.removeprefix("~").split(".")
    for at in range(len(parts) - 1, 0, -1):
        part = parts[at] if parts[at] in HELD or parts[at] == "_subprocess" else parts[at].lstrip("_")
        if part in HELD and not (part == "subprocess" and parts[at - 1] == "asyncio"):
            return "~" + ".".join([part, *parts[at + 1 :]])
    return mark + ".".join(parts)
