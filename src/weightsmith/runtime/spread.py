"""One model over several devices: its blocks lie one after another on them, and activations travel (accelerate's hooks).

One device computes at a time, so this is for models that one device can't hold and not for speed. What is captured or steered
stays where its block is; ids go in on the first device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def device_names(wish: str | None) -> list[str]:
    """The devices that an option names: none, one, or several with commas between them.

    Raises:
        UnsupportedModel: one that is named twice, or an empty name.
    """
    names = [] if wish is None else [n.strip() for n in wish.split(",")]
    if len(set(names)) != len(names) or (len(names) > 1 and not all(names)):
        raise UnsupportedModel(f"can't spread a model over {wish!r}", hint="name each device once: cuda:0,cuda:1")
    return names


def need_accelerate() -> None:
    """Raise :class:`MissingExtra` where accelerate is not installed."""
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingExtra("a model over several devices needs accelerate", hint="pip install 'weightsmith[gpus]'") from error


def layout(path: Path, block: str, n_layers: int, devices: Sequence[str]) -> dict[str, str]:
    """Which device each module goes to, by its name: blocks in order, as even in bytes as whole blocks allow; what stands
    before them on the first device, what follows on the last. ``block`` is the name of a block in memory, with ``{i}``.

    Raises:
        UnsupportedModel: fewer blocks than devices, or blocks that aren't there.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if n_layers < len(devices):
        raise UnsupportedModel(f"{n_layers} layers can't be spread over {len(devices)} devices", where=path,
                               hint="name fewer devices")  # fmt: skip
    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    prefix = next((n.removesuffix(block.format(i=0)) for n, _ in skeleton.named_modules()
                   if n == block.format(i=0) or n.endswith("." + block.format(i=0))), None)  # fmt: skip
    if prefix is None:
        raise UnsupportedModel(f"the running model has no module called {block.format(i=0)!r}", where=path)
    return assign(skeleton, [prefix + block.format(i=i) for i in range(n_layers)], devices)


def assign(model: Any, blocks: Sequence[str], devices: Sequence[str]) -> dict[str, str]:
    """:func:`layout` of a model whose blocks have these names."""
    from torch import nn

    sizes = [sum(p.numel() for p in model.get_submodule(b).parameters()) for b in blocks]
    inner, found, passed = set(blocks), dict[str, str](), 0
    for name, size in zip(blocks, sizes, strict=True):
        # by the middle of a block, so that each device gets its share to half a block
        found[name] = devices[min(len(devices) - 1, int((passed + size / 2) / max(1, sum(sizes)) * len(devices)))]
        passed += size
    if len(set(found.values())) < len(devices):  # a very large block among small ones
        found = {name: devices[i * len(devices) // len(blocks)] for i, name in enumerate(blocks)}
    seen_blocks = False
    for name, module in model.named_modules():
        if name in inner:
            seen_blocks = True
        holds = any(b == name or b.startswith(name + ".") for b in inner) if name else True
        beneath = any(name == f or name.startswith(f + ".") for f in found)
        if holds or beneath:
            continue
        tables = any(isinstance(m, nn.Embedding) for m in module.modules())
        found[name] = devices[0] if tables or not seen_blocks else devices[-1]
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:  # those of modules that hold blocks
        if not any(name == f or name.startswith(f + ".") for f in found):
            found[name] = devices[0]
    return found
