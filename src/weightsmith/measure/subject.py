"""A model under measurement: loaded only when something has to be computed, its replies and figures kept.

A base that was measured before is never loaded again: its replies come from the store, and its log-probabilities are
rebuilt from its final hidden states with its ``lm_head``, the one tensor that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..checkpoint import Checkpoint, refuse_remote_code, runnable
from ..options import RunOptions
from ..records import ModelIdentity
from ..runtime import Continuation, RunningModel, answer_states
from ..runtime.head import Head
from ..runtime.load import choose_device, choose_dtype, identity, load, need_torch, refuse_adapter
from ..storage import digest_of
from ..trust.gate import pass_gate
from ..trust.pins.lock import find_lock, held
from .asks import THOUGHTS, Ask, Decoding, Exchange, opens_thought, split_thought
from .store import Said, Store, ask_key, companions_digest

if TYPE_CHECKING:
    import torch

Job = tuple[Ask, Decoding]


@dataclass
class Subject:
    """One model by name (``base`` or ``edited``); ``store`` is ``None`` where nothing may be kept (runtime hooks)."""

    name: str
    checkpoint: Checkpoint
    options: RunOptions
    device: str
    dtype: torch.dtype
    identity: ModelIdentity
    store: Store | None
    notes: list[str]
    hooks: tuple[Any, ...] = ()
    key: str = ""
    _said: dict[str, Said] = field(default_factory=dict)
    _running: RunningModel | None = None
    _words: list[str] = field(default_factory=list)  # the digest of the vocabulary, once known; hooks don't change it

    @classmethod
    def open(cls, name: str, checkpoint: Checkpoint, options: RunOptions) -> Subject:
        """Digest the weights and look up what is known of them; nothing is loaded.

        Raises:
            MissingExtra: torch is not installed; RemoteCode: a model that asks for code of its own; NonFinite: NaN in the
            weights; ManifestMismatch: weights that do not fit their record; UnsafeModel, NotAnalysed: what the scan found;
            NotPinned, DigestMismatch: what the lock says.
        """
        need_torch()
        refuse_remote_code(checkpoint, options)
        refuse_adapter(checkpoint)
        pass_gate(checkpoint, options)  # what was measured before is not loaded again, and goes through it all the same
        checkpoint = held(checkpoint, find_lock(explicit=options.lock), frozen=options.frozen)
        device = choose_device(options.device)
        dtype = choose_dtype(device, options.dtype)
        ready = runnable(checkpoint, dequantize=options.dequantize, progress=options.progress)
        ready.check_record()
        who = identity(ready, ready.digest(options.progress))
        ready.check_finite()
        kind, width = device.split(":")[0], str(dtype)
        key = {"model": who.digest, "companions": companions_digest(ready), "device": kind, "dtype": width,
               "versions": versions()}  # fmt: skip
        store = Store(key)
        options = replace(options, device=device, dtype=width.removeprefix("torch."))
        return cls(name, ready, options, device, dtype, who, store if options.use_cache else None, [], key=store.digest)

    def under(self, hooks: Sequence[Any], name: str) -> Subject:
        """The same model under runtime hooks; nothing of it is kept, since no digest names it."""
        return replace(self, name=name, store=None, notes=[], hooks=tuple(hooks), _said={}, _running=self.running)

    def adopt(self, running: RunningModel) -> None:
        """Use a model that is loaded already."""
        self._running = running

    def steered(self) -> AbstractContextManager[Any]:
        """The hooks in place, while something is computed."""
        from ..runtime import steering

        return steering(self.running, list(self.hooks)) if self.hooks else nullcontext()

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._running is not None

    @property
    def running(self) -> RunningModel:
        """The running model, loaded on first use."""
        if self._running is None:
            self._running = load(self.checkpoint, self.options)
        return self._running

    def release(self) -> None:
        """Give the memory of the weights back; they are loaded again when something needs them."""
        if self.store is not None:
            self._keep_notes()
            self._running = None

    def _keep_notes(self) -> None:
        """Notes are part of what was found: a base that is looked up says what it said when it ran."""
        told = {*self.notes, *(self._running.notes if self._running is not None else ())}
        if self.store is not None:
            path, before = self.store.value("notes", 1)
            told |= set(before or ())
            if self._running is not None:
                self.store.keep(path, sorted(told))
        self.notes = sorted(told)

    def all_notes(self) -> list[str]:
        """What the load and the runs had to say, this time or when they were kept."""
        self._keep_notes()
        return self.notes

    def value(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """A JSON value that is computed once for this subject."""
        if self.store is None:
            return make()
        path, found = self.store.value(kind, key)
        if found is None:
            found = make()
            self.store.keep(path, found)
        return found

    @property
    def vocabulary(self) -> str:
        """Digest of the tokens and their ids."""
        if not self._words:
            self._words.append(str(self.value("vocabulary", 1, lambda: digest_of(self.running.tokenizer.get_vocab()))))
        return self._words[0]

    @property
    def head(self) -> Head:
        """The ``lm_head``, from memory where the model is loaded, else read alone."""
        return self.running.head if self.loaded else Head.read(self.checkpoint, self.device, self.dtype)

    @property
    def thinks(self) -> bool:
        """Whether its template knows thoughts: the model may think before it answers."""
        return knows_thoughts(self.checkpoint)

    def default_decoding(self, tokens: int) -> Decoding:
        """The model's own default way to sample, from its generation settings."""
        from ..runtime.sample import default_decoding

        return Decoding(**self.value("decoding", tokens, lambda: asdict(default_decoding(self.running, tokens))))

    def answer(self, jobs: Sequence[Job], step: str, pool: Any = None) -> list[Exchange]:
        """Replies to all jobs, from the store where they are known; each new one is kept as it comes.

        Raises:
            NonFinite: NaN in the logits; RecipeError: a prompt longer than the context; OutOfMemory.
        """
        keys = [ask_key(ask, decoding) for ask, decoding in jobs]
        todo = {k: job for k, job in zip(keys, jobs, strict=True) if self._known(k) is None}
        if todo and pool is not None and not self.hooks:
            pool.answer(self.checkpoint, todo, self._keep, f"{self.name}: {step}", self.options)
        elif todo:
            with self.steered():
                answer_here(self.running, todo, self._keep, f"{self.name}: {step}")
        return self._exchanges(jobs, keys)

    def fits(self, ask: Ask, decoding: Decoding) -> bool:
        """Whether a conversation leaves room for an answer in the model's context; a note says that one does not."""
        if self._known(ask_key(ask, decoding)) is not None:
            return True
        room = len(self.running.encode([dict(m) for m in ask.messages])) < self.running.context_length
        if not room:
            self.running.note(f"turn {ask.turn} of a conversation does not fit into the model's context: it was left out")
        return room

    def _known(self, key: str) -> Said | None:
        found = self._said.get(key)
        if found is None and self.store is not None and (found := self.store.get(key)) is not None:
            self._said[key] = found
        return found

    def _keep(self, key: str, said: Said) -> None:
        self._said[key] = said
        if self.store is not None:
            self.store.put(key, said)

    def _exchanges(self, jobs: Sequence[Job], keys: Sequence[str]) -> list[Exchange]:
        found = [(ask, decoding, self._said[k]) for k, (ask, decoding) in zip(keys, jobs, strict=True)]
        return [Exchange(a, d, s.prompt, s.tokens, s.text, s.thought, s.ended) for a, d, s in found]

    def go_on(self, exchanges: Sequence[Exchange], factor: int) -> list[Exchange]:
        """The same greedy answers, read on to ``factor`` times their limit; kept like any reply."""
        from ..runtime.generate import continue_replies
        from ..runtime.sample import Reply

        jobs = [(e.ask, replace(e.decoding, max_new_tokens=e.decoding.max_new_tokens * factor)) for e in exchanges]
        keys = [ask_key(ask, decoding) for ask, decoding in jobs]
        todo = {k: e for k, e in zip(keys, exchanges, strict=True) if self._known(k) is None}
        if todo:
            rows = list(todo.values())

            def on_reply(i: int, reply: Reply) -> None:
                self._keep(list(todo)[i], said_of(self.running, rows[i].ask, list(rows[i].prompt_ids), reply))

            how = replace(rows[0].decoding, max_new_tokens=rows[0].decoding.max_new_tokens * factor)
            with self.steered():
                longer = continue_replies(self.running, [list(e.prompt_ids) for e in rows],
                                          [Reply(list(e.tokens), e.ended) for e in rows], how,
                                          f"{self.name}: reading on", on_reply=on_reply)  # fmt: skip
            for i, k in enumerate(todo):
                if self._known(k) is None:  # it had reached the end of the context: there was nothing to go on with
                    on_reply(i, longer[i])
        return self._exchanges(jobs, keys)

    def states(self, items: Sequence[Continuation], step: str) -> list[torch.Tensor]:
        """Final hidden states that predict each answer token, ``[answer, d_model]`` an item; kept."""
        key = [[list(i.prompt), list(i.answer)] for i in items]
        if self.store is None:
            with self.steered():
                return answer_states(self.running, items, f"{self.name}: {step}")
        path, found = self.store.states(key)
        if found is None or [len(s) for s in found] != [len(i.answer) for i in items]:
            found = answer_states(self.running, items, f"{self.name}: {step}")
            self.store.keep_states(path, found)
        return found


def versions() -> dict[str, str]:
    """Versions of what a reply and its figures are computed with: another one may answer, or score, otherwise."""
    import torch
    import transformers

    return {"weightsmith": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def knows_thoughts(checkpoint: Checkpoint) -> bool:
    """Whether the chat template of a checkpoint knows thoughts."""
    return any(opening in (checkpoint.chat_template or "") for opening, _ in THOUGHTS)


def answer_here(model: RunningModel, todo: Mapping[str, Job], keep: Callable[[str, Said], None], step: str) -> None:
    """Answer jobs with a loaded model, jobs of one decoding together; ``keep`` gets each reply as it ends."""
    from ..runtime.generate import replies

    groups: dict[Decoding, list[str]] = {}
    for key, (_, decoding) in todo.items():
        groups.setdefault(replace(decoding, seed=None), []).append(key)
    for decoding, keys in groups.items():
        prompts = [model.encode([dict(m) for m in todo[k][0].messages]) for k in keys]

        def on_reply(i: int, reply: Any, keys: list[str] = keys, prompts: list[list[int]] = prompts) -> None:
            keep(keys[i], said_of(model, todo[keys[i]][0], prompts[i], reply))

        seeds = None if decoding.greedy else [todo[k][1].seed or 0 for k in keys]
        replies(model, prompts, decoding, step, seeds=seeds, on_reply=on_reply)


def said_of(model: RunningModel, ask: Ask, prompt: list[int], reply: Any) -> Said:
    """A reply with its text; the thought of a thinking model is cut off."""
    tokens = list(reply.tokens)
    thought, text = "", model.decode(tokens)
    answer: str | None = text
    if knows_thoughts(model.checkpoint):
        thought, answer = read_thought(model, tokens, opened=opens_thought(model.render([dict(m) for m in ask.messages])))
    return Said(tuple(prompt), tuple(tokens), bool(reply.ended), answer, thought)


def read_thought(model: RunningModel, tokens: list[int], *, opened: bool) -> tuple[str, str | None]:
    """Thought and answer of a thinking model's reply, without special tokens.

    Some models mark a thought with special tokens, so it is cut before these are dropped.
    """
    thought, answer = split_thought(str(model.tokenizer.decode(tokens)), opened=opened)
    for token in model.tokenizer.all_special_tokens:
        thought, answer = thought.replace(token, ""), None if answer is None else answer.replace(token, "")
    return thought.strip(), None if answer is None else answer.strip()
