"""y = x Wᵀ + b + s · (mask ∘ x Uᵀ) Aᵀ, the low-rank part added into y in place; the PyTorch twin and the
CPU path.

Shapes: x (M, inputs·d_u), W (d_out, inputs·d_u), U (R, d_u), A (d_out, inputs·R), mask (M, inputs·R). With
`inputs` > 1 the input is cut into equal blocks and U maps each of them (the second MLP projection: four
blocks).

Cost beyond the frozen projection: 2·M·R·(inputs·d_u + d_out) FLOPs forward, twice that backward. W is
frozen: it gets no gradient and x is kept only for dU. The backward adds the low-rank part of dx into dy W,
so no second (M, d_in) tensor exists.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _low_rank_input(x: Tensor, down: Tensor, inputs: int) -> Tensor:
    """x (M, inputs·d_u), down U (R, d_u) -> z (M, inputs·R), one skinny product."""
    return F.linear(x.reshape(-1, down.shape[1]), down).view(x.shape[0], inputs * down.shape[0])


def prompted_linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    mix: Tensor,
    mask: Tensor | None,
    inputs: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Returns y (M, d_out) and z = mask ∘ x Uᵀ (M, inputs·R)."""
    z = _low_rank_input(x, down, inputs)
    if mask is not None:
        z = z * mask
    y = F.linear(x, weight, bias)
    y.addmm_(z, mix.t(), alpha=scale)
    return y, z


class _PromptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, down, mix, mask, inputs, scale):
        y, z = prompted_linear_forward(x, weight, bias, down, mix, mask, inputs, scale)
        # The weight itself is saved, not a view of it: under ZeRO-3 its data is gathered again before
        # backward.
        ctx.save_for_backward(x, weight, down, mix, mask, z)
        ctx.inputs, ctx.scale = inputs, scale
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, down, mix, mask, z = ctx.saved_tensors
        rank = down.shape[0]
        dx = ddown = dmix = None
        if ctx.needs_input_grad[4]:
            dmix = dy.t() @ z
            if ctx.scale != 1.0:
                dmix *= ctx.scale
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            dz = dy @ mix  # (M, inputs·R)
            if ctx.scale != 1.0:
                dz *= ctx.scale
            if mask is not None:
                dz *= mask
            dz = dz.view(-1, rank)  # (M·inputs, R)
            if ctx.needs_input_grad[3]:
                ddown = dz.t() @ x.reshape(-1, down.shape[1])
            if ctx.needs_input_grad[0]:
                dx = dy @ weight
                dx.view(-1, down.shape[1]).addmm_(dz, down)
        return dx, None, None, ddown, dmix, None, None, None


def prompted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    mix: Tensor,
    mask: Tensor | None = None,
    inputs: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Frozen linear plus low-rank update in one pass, without forming the update of W (Aurora §3.2).

    Args:
        x: (…, inputs·d_u), any floating dtype.
        weight: (d_out, inputs·d_u), frozen, dtype of x. bias: (d_out,) or None, frozen.
        down: U (R, d_u). mix: A (d_out, inputs·R). Both get gradients.
        mask: dropout mask already divided by the keep probability, (…, inputs·R), or None.
    Returns: (…, d_out) in the dtype of x.
    """
    flat = x.reshape(-1, x.shape[-1])
    if mask is not None:
        mask = mask.reshape(flat.shape[0], -1)
    y = _PromptedLinear.apply(flat, weight, bias, down, mix, mask, inputs, scale)
    return y.view(*x.shape[:-1], weight.shape[0])
