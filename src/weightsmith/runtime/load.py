"""From a checkpoint to a running model: nothing that came with the model is executed, nothing is fetched."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ..architecture import Architecture
from ..checkpoint import RECORD, Checkpoint, read_json, refuse_remote_code, runnable
from ..errors import (
    FormatError,
    ManifestMismatch,
    MissingExtra,
    OutOfMemory,
    UnsupportedModel,
    WeightsmithError,
)
from ..options import RunOptions
from ..records import ModelIdentity
from ..trust.gate import Shield, pass_gate
from ..trust.pins.guard import Used, describe, lasting
from ..trust.pins.lock import find_lock, guarded
from .head import Head
from .spread import device_names, layout, need_accelerate

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .packed import Packed

Conversation = list[dict[str, str]]
_DATED = "{%- macro strftime_now(format) -%}{{ dates[format] }}{%- endmacro -%}"
TODAY = datetime(2025, 1, 1, 12)  # an answer that depends on the day it is asked could not be repeated
_END_NAMES = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")  # tokens that end an answer
#: what a chat template, which is a small program, raises when it fails
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def need_torch() -> None:
    """Raise :class:`MissingExtra` with one line to install when torch or transformers is not there."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"running a model needs {error.name}", hint="pip install 'weightsmith[model]'"
        ) from error
    del torch


def choose_device(wish: str | None) -> str:
    """The device asked for (the first of several), or the fastest one there is.

    Raises:
        UnsupportedModel: a device that can't be used here.
    """
    import torch

    for name in (wished := device_names(wish)):
        try:
            if torch.device(name).type == "meta":
                raise RuntimeError("holds no values")
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UnsupportedModel(f"the device {name!r} can't be used here", hint="leave --device out") from error
    if wished:
        return wished[0]
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(device: str, wish: str | None) -> torch.dtype:
    """The dtype asked for, or the fastest that is exact enough for the device.

    CPUs without bf16 units compute bf16 2.6 to 3.6 times slower than fp32, and fp32 is exact for every stored type;
    on CUDA bf16 is native from Ampere on, older cards use fp16; MPS runs fp32 exactly and fast enough.
    """
    import torch

    names = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
             "float16": torch.float16, "fp16": torch.float16}  # fmt: skip
    if wish:
        if wish not in names:
            raise UnsupportedModel(f"unknown dtype {wish!r}", hint=f"one of {', '.join(names)}")
        return names[wish]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def quick(options: RunOptions) -> RunOptions:
    """The options with bf16 where no dtype was asked for and the processor multiplies matrices of it itself (AMX, or
    AVX-512's bf16 products).

    That is about twice to four times as fast as fp32, and changes a model's answers by rounding (about 3e-4 nats per token between
    two layouts of one batch): for work that stands it, as a search does, and that is not compared with other runs.
    """
    import torch

    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    native = any(getattr(torch.cpu, name, lambda: False)() for name in units)
    wanted = options.dtype is None and choose_device(options.device) == "cpu" and native
    return replace(options, dtype="bfloat16") if wanted else options


@dataclass
class RunningModel:
    """A loaded model with its tokenizer; ``stack`` is the module that runs the blocks, without the ``lm_head``.

    ``today`` is what a chat template hears that asks for the date; ``None`` is the clock's.
    """

    checkpoint: Checkpoint
    model: Any  # a transformers model; its classes are built at run time
    tokenizer: Any
    device: str
    dtype: torch.dtype
    identity: ModelIdentity
    prefix: str
    options: RunOptions
    notes: list[str] = field(default_factory=list)
    today: datetime | None = TODAY
    steered: list[Any] = field(default_factory=list, repr=False)  # the hooks that are in place
    shield: Shield | None = None
    devices: tuple[str, ...] = ()  # all that its layers lie on, where they are several
    packed: Packed | None = field(default=None, repr=False)  # weights laid out for answering, once that was worth it
    product: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, repr=False)  # the head's, while they are used

    @property
    def architecture(self) -> Architecture:
        """Roles of the tensors."""
        return self.checkpoint.architecture

    @property
    def stack(self) -> Any:
        """The module whose output is the final, normed hidden state ``[batch, tokens, d_model]``."""
        return self.model.get_submodule(self.prefix.rstrip(".")) if self.prefix else self.model

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks, in order."""
        pattern = self.prefix + self.architecture.family.block
        return [self.model.get_submodule(pattern.format(i=i)) for i in range(self.architecture.n_layers)]

    def module(self, disk_path: str) -> nn.Module:
        """The module that the architecture data call ``disk_path`` (its prefix may differ in memory)."""
        module: nn.Module = self.model.get_submodule(self.prefix + disk_path.removeprefix(self.architecture.prefix))
        return module

    @property
    def head(self) -> Head:
        """The ``lm_head`` of this model, in its memory."""
        return Head.of(self.model.get_output_embeddings(), self.model.config.get_text_config())

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 logits ``[..., vocab]`` of final hidden states ``[..., d_model]``, scale and soft cap included."""
        return self.head.logits(hidden, self.product)

    @property
    def ran(self) -> dict[str, str]:
        """How the model runs, for records."""
        import torch
        import transformers

        return {"device": ",".join(self.devices) or self.device, "dtype": str(self.dtype).removeprefix("torch."),
                "torch": torch.__version__, "transformers": transformers.__version__,
                "threads": str(torch.get_num_threads())}  # fmt: skip

    @property
    def has_template(self) -> bool:
        """Whether prompts go through a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def context_length(self) -> int:
        """Longest input in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 20)

    @property
    def stop_tokens(self) -> set[int]:
        """Ids that end an answer."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        listed = ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]
        if odd := [e for e in listed if type(e) is not int or e >= 1 << 31]:
            raise FormatError(f"eos_token_id holds {odd[0]!r:.40}, which is no token", where=self.checkpoint.path)
        found = set(listed)
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        known = self._known(_END_NAMES)
        if self._known(("<|channel|>",)):  # there it ends a message, and the answer is the message after the thought
            known.pop("<|end|>", None)
        return found | set(known.values())

    def _known(self, names: tuple[str, ...]) -> dict[str, int]:
        """The ids of those names that the tokenizer knows; asked one by one, since a whole vocabulary takes long to list."""
        ids = {n: self.tokenizer.convert_tokens_to_ids(n) for n in names}  # of an unknown one: that of the unknown token
        return {n: i for n, i in ids.items() if i is not None and self.tokenizer.convert_ids_to_tokens(i) == n}

    def render(self, messages: Conversation) -> str:
        """The text that the model reads for ``messages``, up to where its answer begins."""
        if not self.has_template:
            return "\n\n".join(m["content"] for m in messages)
        try:
            return self._apply(messages)
        except _TEMPLATE_ERRORS as first:
            error: Exception = first
            if messages and messages[0]["role"] == "system" and len(messages) > 1:
                merged = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
                self.note("the chat template knows no system message: it was put before the first user message")
                try:
                    return self._apply([merged, *messages[2:]])
                except _TEMPLATE_ERRORS as again:
                    error = again
            raise FormatError(f"the chat template fails: {error}", where=self.checkpoint.path,
                              hint="`weightsmith scan` tries it; take the template of the model's base") from error  # fmt: skip

    def _apply(self, messages: Conversation) -> str:
        told: dict[str, Any] = {}
        template = self.tokenizer.chat_template
        if self.today is not None and isinstance(template, str) and "strftime_now" in template:
            # the library lets no function into a template: its own is hidden by a macro that looks dates up
            formats = re.findall(r"""(['"])([^'"]*%[^'"]*)\1""", template)
            told = {"chat_template": _DATED + template, "dates": {f: self.today.strftime(f) for _, f in formats}}
            self.note(f"the chat template asks for the date: it was told {self.today:%d %B %Y}, so that a run can be repeated")
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **told))

    def encode(self, messages: Conversation) -> list[int]:
        """Token ids of ``messages``, up to where the answer begins."""
        return self.tokens(self.render(messages), special=not self.has_template)

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text."""
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)


def load(checkpoint: Checkpoint, options: RunOptions | None = None) -> RunningModel:
    """Load a checkpoint to run it: safetensors only, no code of the model's own, no network.

    Raises:
        MissingExtra: torch or transformers is not installed.
        UnsafeModel, NotAnalysed: what the scan found (:mod:`weightsmith.trust.gate`).
        DigestMismatch, NotPinned: what the lock says (:mod:`weightsmith.trust.pins.lock`).
        RemoteCode: the model asks for code that comes with it.
        UnsupportedModel: an unknown family.
        NonFinite: NaN or infinity in the weights.
        ManifestMismatch: weights that the model needs are missing.
        OutOfMemory: it does not fit.
    """
    options = options or RunOptions()
    need_torch()
    refuse_remote_code(checkpoint, options)
    refuse_adapter(checkpoint)
    shield = pass_gate(checkpoint, options)
    with guarded(checkpoint, find_lock(explicit=options.lock), frozen=options.frozen, progress=options.progress) as used:
        guard = used.origin or used
        if isinstance(guard, Used):
            guard.require_scanned(shield.record.files)
            shield = replace(shield, pinned=describe(guard))
        running = _load(used, options, shield)
        running.checkpoint = lasting(running.checkpoint)  # the copy goes when the block ends
    if options.tell is not None:
        options.tell(f"{checkpoint.title}: {shield.line}")
    return running


def _load(checkpoint: Checkpoint, options: RunOptions, shield: Shield) -> RunningModel:
    """:func:`load`, of files that passed the gate."""
    refuse_remote_code(checkpoint, options)  # these bytes, not those that lay there when the gate looked
    refuse_adapter(checkpoint)
    checkpoint = runnable(checkpoint, dequantize=options.dequantize, progress=options.progress)
    checkpoint.check_record()
    _ = checkpoint.architecture  # refuse an unknown family before anything heavy happens
    digest = checkpoint.digest(options.progress)
    checkpoint.check_finite()
    _quiet()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = choose_dtype(device, options.dtype)
    devices = names if len(names := device_names(options.device)) > 1 else []
    model, tokenizer = _build(checkpoint, devices or [device], dtype)
    running = RunningModel(checkpoint, model, tokenizer, device, dtype, identity(checkpoint, digest),
                           _memory_prefix(checkpoint.architecture, model, checkpoint.path), options,
                           shield=shield, devices=tuple(devices))  # fmt: skip
    if not running.has_template:
        running.note("the model has no chat template: prompts are given as plain text")
    return running


def refuse_adapter(checkpoint: Checkpoint) -> None:
    """Refuse a folder with an adapter beside its weights: a loader would add it to them, silently where PEFT is installed.

    Raises:
        UnsupportedModel: there is one.
    """
    if checkpoint.kind == "folder" and (checkpoint.path / "adapter_config.json").is_file():
        raise UnsupportedModel(
            "an adapter lies beside the weights, and a loader would add it to them: what runs would not be what was digested",
            where=checkpoint.path, hint="merge the adapter into the weights, or move adapter_* out of the folder",
        )  # fmt: skip


def identity(checkpoint: Checkpoint, digest: str | None = None) -> ModelIdentity:
    """Which weights a checkpoint holds."""
    arch = checkpoint.architecture
    return ModelIdentity(ref=checkpoint.ref, digest=digest or checkpoint.digest(), family=arch.family.name,
                         n_layers=arch.n_layers, d_model=arch.d_model)  # fmt: skip


def _build(checkpoint: Checkpoint, devices: list[str], dtype: torch.dtype) -> tuple[nn.Module, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, told = str(checkpoint.path), dict[str, Any]()
    if len(devices) > 1:
        need_accelerate()
        arch = checkpoint.architecture
        told = {"device_map": layout(checkpoint.path, arch.family.block, arch.n_layers, devices)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True,
            output_loading_info=True, **told,
        )  # fmt: skip
        model = model.eval() if told else model.to(devices[0]).eval()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"the model does not fit on {', '.join(devices)}", where=path,
                          hint="try --dtype bfloat16, or several devices: --device cuda:0,cuda:1") from error  # fmt: skip
    except WeightsmithError:
        raise
    except Exception as error:  # on a stranger's config and tokenizer the library raises anything at all
        said = " ".join(str(error).split()) or type(error).__name__
        raise UnsupportedModel(f"transformers can't load it: {said[:300]}", where=path) from error
    for kind in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(str(k) for k in info.get(kind) or ()):
            raise ManifestMismatch(f"{len(wrong)} weights that the model needs are missing or misshapen, e.g. "
                                   f"{wrong[0]}; a loader would make them up at random", where=path)  # fmt: skip
    model.requires_grad_(False)
    return model, tokenizer


def _memory_prefix(arch: Architecture, model: nn.Module, where: Path) -> str:
    """What stands before ``layers.…`` in the module tree; it can differ from the names on disk."""
    suffix = f"{arch.family.block.format(i=0)}.{arch.family.writers[0]['module']}"
    found = [n[: -len(suffix)] for n, _ in model.named_modules() if n == suffix or n.endswith("." + suffix)]
    found = [p for p in found if not any(s in p for s in ("vision", "visual", "audio"))]
    if len(found) != 1:
        raise UnsupportedModel(f"the running model has {len(found)} modules called {suffix!r}", where=where)
    return str(found[0])


def _quiet() -> None:
    """Silence the library's own progress bars and advice: only the command line talks."""
    from transformers.utils import logging as library

    library.disable_progress_bar()
    library.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def folder_record(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The ``weightsmith.json`` of an edited model, or ``None``."""
    file = checkpoint.path / RECORD
    return dict(read_json(file)) if checkpoint.kind == "folder" and file.is_file() else None
