"""Gated query transformation: a small residual after each multimodal text layer, from what its two
attentions gave.

out = layer(x) + 0.1 · (a_self ∘ scale_self + shift_self) + 0.1 · (a_cross ∘ scale_cross + shift_cross);
Aurora (arXiv 2305.08381) §3.3 as its released code computes it: vectors, no gate function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from aurora_ds.prompts.attach import Prompts

GATE_SCALE = 0.1


class QueryTransform:
    """The residual of one layer; a plain callable, because its vectors live in the adapter."""

    def __init__(self, prompts: Prompts, index: int) -> None:
        self.prompts, self.index = prompts, index

    def __call__(self, self_attention: Tensor, cross_attention: Tensor) -> Tensor | None:
        """Both (batch, tokens, H), after their LayerNorms -> the residual (batch, tokens, H), or None
        without adapter."""
        values = self.prompts.values
        if values is None:
            return None
        scale_self, shift_self, scale_cross, shift_cross = (GATE_SCALE * values.gates[self.index]).unbind(0)
        return (
            (self_attention * scale_self)
            .addcmul_(cross_attention, scale_cross)
            .add_(shift_self + shift_cross)
        )
