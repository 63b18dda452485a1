"""The map from a model's final hidden states to its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputHead:
    """The map from final hidden states to logits: `softcap * tanh(scale * (h W^T + b) / softcap)`.

    Args:
        weight (`Tensor` of shape (vocabulary, hidden)): output embedding.
        bias (`Tensor` of shape (vocabulary,), *optional*): output bias.
        scale (`float`, *optional*, defaults to 1.0): factor on the logits (Cohere's, Granite's).
        softcap (`float`, *optional*): bound of the logits (Gemma's).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits of shape (tokens, vocabulary) for hidden states (tokens, hidden), in float32 or
        wider.

        Args:
            hidden (`Tensor` of shape (tokens, hidden))
            out (`Tensor` of shape (tokens, vocabulary), *optional*): where they are written;
                without gradients.
        """
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(self.weight.dtype)
        if out is not None and out.dtype == hidden.dtype == self.weight.dtype:
            torch.mm(hidden, self.weight.T, out=out)
            logits = out if self.bias is None else out.add_(self.bias)
        else:
            logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
            logits = logits if out is None else out.copy_(logits)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.scale != 1.0:
            logits = torch.mul(logits, self.scale, out=out)
        if self.softcap is not None:
            logits = torch.tanh(torch.div(logits, self.softcap, out=out), out=out)
            logits = torch.mul(logits, self.softcap, out=out)
        return logits

    def slope(self, logits: Tensor) -> Tensor | float | None:
        """d logits / d (h W^T + b) at these logits, shape (tokens, vocabulary); `None` where it is
        1.
        """
        if self.softcap is not None:
            return (1 - (logits / self.softcap).square()).mul_(self.scale)
        return None if self.scale == 1.0 else self.scale

    def cast(self, hidden: Tensor) -> OutputHead:
        """The head as it multiplies hidden states of this device: in autocast's precision where
        that is on.
        """
        if not torch.is_autocast_enabled(hidden.device.type):
            return self
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return OutputHead(
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            self.scale,
            self.softcap,
        )

    def to(self, device: torch.device) -> OutputHead:
        """The same on that device."""
        return OutputHead(
            self.weight.to(device),
            None if self.bias is None else self.bias.to(device),
            self.scale,
            self.softcap,
        )

    def frozen(self) -> OutputHead:
        """A copy that later training steps do not change."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return OutputHead(self.weight.detach().clone(), bias, self.scale, self.softcap)
