"""h = LayerNorm(x) and z = h Uᵀ in one pass: the skinny product rides in the epilogue of the LayerNorm before a site.

Shapes: x (M, d), γ and β (d,), U (R, d), h (M, d), z (M, R). Forward: x is read and h written as a LayerNorm does; the
tile of h that is in registers is multiplied there and then, and h is not read again for z. Backward: the gradient of h
is what came through W plus dz U, added up in registers and taken through the LayerNorm: dx = (g - mean(g) -
x̂·mean(g∘x̂))/σ with g = γ∘(dh + dz U); dU = dzᵀ h. γ and β are frozen and get no gradient. Kept: x and h (both are kept
anyway, by the LayerNorm and by the site), mean and 1/σ. Cost beyond the LayerNorm: 2·M·R·d FLOPs forward, three times
that backward (dz U twice, as each of the two passes over a row's tiles makes it).

The twin is PyTorch's layer_norm and linear; `gpu/norming.py` has the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.kernels import choice


def twin(x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """h and z."""
    h = F.layer_norm(x, weight.shape, weight, bias, eps)
    return h, F.linear(h, down)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@torch.library.custom_op("aurora_ds::norm_low_rank", mutates_args=())
def _fused(
    x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, z, and mean and 1/σ (M,) in fp32 or wider."""
    if choice.triton_runs_on(x.device.type):
        from aurora_ds.kernels.gpu import norming

        return norming.forward(x, weight, bias, down, eps)
    wide = x.to(_wide(x))
    h, z = twin(x, weight, bias, down, eps)
    return h, z, wide.mean(1), (wide.var(1, correction=0) + eps).rsqrt()


@_fused.register_fake
def _(x, weight, bias, down, eps):
    rows = x.new_empty(x.shape[0], dtype=_wide(x))
    return x.new_empty(x.shape), x.new_empty(x.shape[0], down.shape[0]), rows, rows.new_empty(rows.shape)


@torch.library.custom_op("aurora_ds::norm_low_rank_backward", mutates_args=())
def _fused_backward(
    dh: Tensor,
    dz: Tensor,
    x: Tensor,
    h: Tensor,
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor,
    down: Tensor,
    needs_x: bool,
    needs_down: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and U; empty tensors for those that are not needed. `deviation` is 1/σ."""
    if choice.triton_runs_on(x.device.type):
        from aurora_ds.kernels.gpu import norming

        found = norming.backward(dh, dz, x, h, mean, deviation, weight, down, (needs_x, needs_down))
    else:
        found = twin_backward(dh, dz, x, h, mean, deviation, weight, down, (needs_x, needs_down))
    return tuple(x.new_empty(0) if each is None else each for each in found)


def twin_backward(
    dh: Tensor,
    dz: Tensor,
    x: Tensor,
    h: Tensor,
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor,
    down: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The formula of the backward pass, for where the op is asked for and no Triton is there."""
    dx = None
    if needs[0]:
        normed = (x.to(mean) - mean[:, None]) * deviation[:, None]
        g = (dh + dz @ down).to(mean) * weight.to(mean)
        centred = g - g.mean(1, keepdim=True) - normed * (g * normed).mean(1, keepdim=True)
        dx = (centred * deviation[:, None]).to(x)
    return dx, dz.t() @ h if needs[1] else None


@_fused_backward.register_fake
def _(dh, dz, x, h, mean, deviation, weight, down, needs_x, needs_down):
    return x.new_empty(x.shape if needs_x else 0), down.new_empty(down.shape if needs_down else 0)


def _keep(ctx, inputs, output):
    x, weight, _, down, _ = inputs
    h, _, mean, deviation = output
    ctx.save_for_backward(x, h, mean, deviation, weight, down)


def _gradients(ctx, dh, dz, _dmean, _ddeviation):
    needs = ctx.needs_input_grad
    dx, ddown = _fused_backward(dh, dz, *ctx.saved_tensors, needs[0], needs[3])
    return dx if needs[0] else None, None, None, ddown if needs[3] else None, None


_fused.register_autograd(_gradients, setup_context=_keep)


def norm_low_rank(x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm and the low-rank image of its result.

    Args:
        x: (…, d), any strides. weight, bias: (d,), frozen. down: U (R, d). Gradients flow to x and down.
    Returns: h (…, d) and z = h Uᵀ (…, R), in the dtype of x.
    """
    h, z, _, _ = _fused(x.reshape(-1, x.shape[-1]), weight, bias, down, eps)
    return h.view(x.shape), z.view(*x.shape[:-1], down.shape[0])
