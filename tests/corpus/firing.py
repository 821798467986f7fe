"""Loads hostile folders with the real, unsafe loaders, each in a fork of this process, to prove that their payloads fire.

Reads JSON lines ``{"name", "folder", "marker", "fires"}`` and answers ``{"name", "fired", "said"}``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback


def one(job: dict[str, str]) -> str:
    """Run a case's loader in a fork; what it printed or raised."""
    begin, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(begin)
        os.environ["WEIGHTSMITH_MARKER"] = job["marker"]
        os.chdir(job["folder"])
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                import pathlib

                exec(job["fires"], {"folder": pathlib.Path(job["folder"]), "__name__": "__main__"})
            except BaseException:  # noqa: BLE001 - a payload may end in anything; what counts is the marker
                said.write(traceback.format_exc())
        os.write(end, said.getvalue()[-2000:].encode())
        os._exit(0)
    os.close(end)
    with os.fdopen(begin, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    for name in ("numpy", "torch", "joblib", "jinja2"):
        with contextlib.suppress(ImportError):
            __import__(name)
    for line in sys.stdin:
        job = json.loads(line)
        said = one(job)
        sys.stdout.write(json.dumps({"name": job["name"], "fired": os.path.exists(job["marker"]), "said": said}) + "\n")
        sys.stdout.flush()
