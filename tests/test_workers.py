"""Answers from several workers are the answers of one; a worker that is lost loses nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import DigestMismatch, MissingExtra, NonFinite, ResourceError, UsageError
from weightsmith.measure.asks import Ask, Decoding
from weightsmith.measure.store import Said, ask_key
from weightsmith.measure.subject import answer_here
from weightsmith.measure.workers import PART, Pool, Worker, model_key
from weightsmith.runtime import load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.build("llama", tmp_path_factory.mktemp("m") / "model")


def questions(n: int, tokens: int = 8) -> dict[str, tuple[Ask, Decoding]]:
    found = {}
    for i in range(n):
        ask = Ask("g", "c", i, f"q {i}", ({"role": "user", "content": f"tell me about number {i}"},))
        how = Decoding(tokens) if i % 2 else Decoding(tokens, temperature=1.0, seed=i)
        found[ask_key(ask, how)] = (ask, how)
    return found


def local(model: Path, todo: dict[str, Any]) -> dict[str, Said]:
    found: dict[str, Said] = {}
    answer_here(load(open_checkpoint(str(model)), pico.CPU), todo, found.__setitem__, "here")
    return found


def test_a_worker_answers_as_the_process_itself(model: Path) -> None:
    todo = questions(6)
    worker = Worker(str(model), model_key(open_checkpoint(str(model))), pico.CPU)
    assert worker.answer(todo) == local(model, todo)


def test_a_worker_that_finds_other_weights_says_so(model: Path) -> None:
    with pytest.raises(DigestMismatch, match="another model"):
        Worker(str(model), "0" * 64, pico.CPU).answer({})


def test_without_ray_there_is_one_line_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="Ray") as caught:
        Pool("2", pico.CPU)
    assert "weightsmith[ray]" in str(caught.value.hint)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pytest.importorskip("ray")
    import ray

    made = Pool("2", pico.CPU)
    yield made
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
class TestRay:
    """Two local workers."""

    def test_two_workers_say_what_one_says(self, model: Path, pool: Pool) -> None:
        todo = questions(3 * PART + 5)
        found: dict[str, Said] = {}
        pool.answer(open_checkpoint(str(model)), todo, found.__setitem__, "answering")
        assert found == local(model, todo)

    def test_a_worker_that_is_killed_loses_nothing(self, model: Path, pool: Pool) -> None:
        import ray

        todo = questions(12 * PART, 48)
        found: dict[str, Said] = {}
        victims = list(pool._for(open_checkpoint(str(model))))
        ray.get([a.answer.remote({}) for a in victims])  # both have loaded
        kept = threading.Event()

        def keep(key: str, said: Said) -> None:
            found[key] = said
            kept.set()

        def kill() -> None:
            kept.wait(60)
            ray.kill(victims[0])

        thread = threading.Thread(target=kill)
        thread.start()
        pool.answer(open_checkpoint(str(model)), todo, keep, "answering")
        thread.join()
        assert found.keys() == todo.keys()
        assert len(pool._actors) == 1
        sample = dict(list(todo.items())[::16])
        assert {k: found[k] for k in sample} == local(model, sample)

    def test_when_all_are_lost_what_was_kept_stays(self, model: Path, pool: Pool) -> None:
        import ray

        for actor in pool._for(open_checkpoint(str(model))):
            ray.kill(actor)
        time.sleep(1)
        with pytest.raises(ResourceError, match="every worker is lost"):
            pool.answer(open_checkpoint(str(model)), questions(4), {}.__setitem__, "answering")
        pool.release()

    def test_what_a_worker_raises_is_raised_here(self, tmp_path: Path, pool: Pool) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        broken = pico.build("llama", tmp_path / "broken")
        tensors = load_file(broken / "model.safetensors")
        name = next(n for n in tensors if "lm_head" in n)
        tensors[name] = 1e38 * (1 + torch.rand_like(tensors[name]))  # a constant one would be broken, this is suspicious
        save_file(tensors, broken / "model.safetensors", {"format": "pt"})
        pool.options = replace(pool.options, allow=("suspicious",))
        with pytest.raises(NonFinite):
            pool.answer(open_checkpoint(str(broken)), questions(4), {}.__setitem__, "answering")

    def test_no_cluster_is_one_clear_error(self) -> None:
        with pytest.raises(UsageError, match="can't read the workers"):
            Pool("many", pico.CPU)
