"""Every test session has a cache of its own, no network, and one torch thread (pico models run fastest on one)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# before anything imports huggingface_hub or torch: both read these once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
_CACHE = tempfile.mkdtemp(prefix="weightsmith-tests-")
os.environ["WEIGHTSMITH_CACHE"] = _CACHE


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[Path]:
    """The session's cache folder, gone when it ends."""
    yield Path(_CACHE)
    shutil.rmtree(_CACHE, ignore_errors=True)
