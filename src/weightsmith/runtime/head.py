"""The ``lm_head`` by itself: log-probabilities from final hidden states, without the model that made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..checkpoint import Checkpoint


@dataclass(frozen=True)
class Head:
    """The unembedding ``[vocab, d_model]``, its bias, and the scale and soft cap of some families.

    ``scale`` multiplies the logits (Cohere), ``divisor`` divides them (Granite), ``cap`` bounds them (Gemma 2).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float | None = None
    divisor: float | None = None
    cap: float | None = None

    @classmethod
    def of(cls, module: Any, config: Any) -> Head:
        """The head of a loaded model, sharing its memory."""
        return cls(module.weight, getattr(module, "bias", None), *_settings(lambda name: getattr(config, name, None)))

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> Head:
        """The head from a checkpoint's files: the one tensor is read, nothing else."""
        from safetensors import safe_open
        from transformers import AutoConfig

        arch = checkpoint.architecture
        name = arch.unembed if arch.unembed is not None and not arch.tied else arch.embedding
        found: dict[str, torch.Tensor] = {}
        bias = name.removesuffix("weight") + "bias"
        for file in checkpoint.weight_files:
            with safe_open(file, "pt") as handle:
                for wanted in {name, bias} & set(handle.keys()):
                    found[wanted] = handle.get_tensor(wanted).to(device, dtype)
        # from the library's own class: a setting that the file leaves out has the default of its family
        config = AutoConfig.from_pretrained(str(checkpoint.path), local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
        return cls(found[name], found.get(bias), *_settings(lambda key: getattr(text, key, None)))

    def logits(self, hidden: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """fp32 logits ``[..., vocab]`` of final hidden states ``[..., d_model]``, scale and soft cap included; ``product``
        multiplies by the weight and adds the bias in its own way."""
        import torch

        hidden = hidden.to(self.weight.device, self.weight.dtype)
        out = (product(hidden) if product else torch.nn.functional.linear(hidden, self.weight, self.bias)).float()
        if self.scale is not None:
            out = out * self.scale
        if self.divisor is not None:
            out = out / self.divisor
        capped: torch.Tensor = torch.tanh(out / self.cap) * self.cap if self.cap else out
        return capped


def _settings(get: Any) -> tuple[float | None, float | None, float | None]:
    return get("logit_scale"), get("logits_scaling"), get("final_logit_softcapping")
