"""Workers of a search: descents (:mod:`weightsmith.search.workers`), and confirmations of the finalists, one a job."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import DigestMismatch
from ..features.prompts import prompt_sets
from ..features.recipe import load_feature
from ..features.select import compile_hooks
from ..measure.workers import absolute
from ..measured import MEASUREMENTS, MeasureRecord
from ..options import RunOptions
from ..records import EditSpec, parse
from ..search.workers import Crew, Worker
from ..storage import canonical_json

if TYPE_CHECKING:
    from ..direction import Direction
    from ..measure.subject import Subject
    from ..search.run import Found, Search
    from .measure import Session
    from .search_confirm import Brief


class SearchWorker(Worker):
    """What one actor of a search does. Its base is measured with the first job, or looked up where the cache has it."""

    _session: tuple[str, Session, Subject] | None = None

    def confirm(self, brief: Brief, name: str, spec: EditSpec, directions: dict[str, Direction]) -> bytes:
        """One finalist, measured: a :class:`MeasureRecord` as JSON.

        Raises:
            DigestMismatch: a recipe is another one on this machine.
        """
        if self._session is None or self._session[0] != brief.key:
            _check(brief, self.options.offline)
            checkpoint = self.model.checkpoint
            self._session = (brief.key, *brief.session(checkpoint.origin or checkpoint, self.options))
        _, session, base = self._session
        base.adopt(self.model)
        session.measure_base()
        base.adopt(self.model)  # a base that no scorer asks was let go of
        record = session.compare_hooks(compile_hooks(self.model, spec, directions), title=name)
        return canonical_json(record.model_dump(by_alias=True))


def _check(brief: Brief, offline: bool) -> None:
    for name, digests in zip(brief.names, brief.digests, strict=True):
        spec, folder = load_feature(name)
        found = (spec.digest, prompt_sets(spec, folder, offline=offline).digest)
        if found != digests:
            raise DigestMismatch("this worker finds another feature under that name: its recipe or its prompts differ",
                                 where=name, expected=digests[0], found=found[0],
                                 hint="put the same files there, or start the worker from the same folder")  # fmt: skip


def crew(wish: str, options: RunOptions) -> Crew:
    """The workers of a search.

    Raises:
        MissingExtra: Ray is not installed; UsageError: no number and no cluster.
    """
    return Crew(wish, options, SearchWorker)


def confirm_apart(
    search: Search, mates: Crew, brief: Brief, todo: Sequence[Found], keep: Callable[[Found, MeasureRecord], None]
) -> None:
    """Measure finalists on the workers; ``keep`` gets each as it ends.

    Raises:
        ResourceError: every worker is lost, or two with the same finalist. What a worker raises is raised here.
    """
    mates.match(search.model)
    sent = mates.ray.put(replace(brief, names=tuple(map(absolute, brief.names))))
    ended: list[Found] = []

    def send(actor: Any, found: Found) -> Any:
        return actor.confirm.remote(sent, found.point.name, found.spec, found.directions)

    def take(found: Found, raw: bytes) -> None:
        ended.append(found)
        keep(found, parse(MeasureRecord, json.loads(raw), f"the worker's {found.point.name}", MEASUREMENTS))
        mates.report("confirmations on the workers", len(ended), len(todo))

    lost = mates.twice(lambda found: f"the confirmation of {found.point.name}", lambda: len(ended), len(todo))
    mates.report("confirmations on the workers", 0, len(todo))
    mates.spread(search.model.checkpoint, todo, send, take, lost)
