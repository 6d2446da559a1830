"""y = x Wᵀ + b + s · (mask ∘ z) Aᵀ: a prompted linear that goes on from z = x Uᵀ (low_rank.py), which others read too.

Shapes, blocks and forms as in prompted_linear.py, with z (M, inputs·R) in place of U. Cost beyond the frozen linear:
2·M·R·inputs·d_out FLOPs forward, twice that backward; what U costs is low_rank's. Kept for the backward pass is z, the
same for all its sites, and the seed of this site's own mask: masks differ between sites as if none shared anything.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.kernels import choice
from aurora_ds.kernels.prompted_linear import dense_mix, masked, split_gradient

# ---- the PyTorch twin ----------------------------------------------------------------------------------------------


def twin_forward(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mix: Tensor,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """y (M, d_out), from A."""
    y = F.linear(x, weight, bias)
    y.addmm_(masked(z, inputs, dropout, seed), mix.t(), alpha=scale)
    return y


def twin_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    mix: Tensor,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (through W alone), z and A; None for those that `needs` leaves out."""
    dx = dz = dmix = None
    if needs[0]:
        dx = dy @ weight
    if needs[1]:
        dz = dy @ mix
        if scale != 1.0:
            dz *= scale
        dz = masked(dz, inputs, dropout, seed)
    if needs[2]:
        dmix = dy.t() @ masked(z, inputs, dropout, seed)
        if scale != 1.0:
            dmix *= scale
    return dx, dz, dmix


class _Twin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, z, weight, bias, mix, inputs, scale, dropout, seed):
        # The weight itself is saved, not a view of it: under ZeRO-3 its data is gathered again before backward.
        ctx.save_for_backward(z, weight, mix, seed)
        ctx.inputs, ctx.scale, ctx.dropout = inputs, scale, dropout
        return twin_forward(x, z, weight, bias, mix, inputs, scale, dropout, seed)

    @staticmethod
    def backward(ctx, dy):
        z, weight, mix, seed = ctx.saved_tensors
        needed = ctx.needs_input_grad
        needs = (needed[0], needed[1], needed[4])
        dx, dz, dmix = twin_backward(dy, z, weight, mix, ctx.inputs, ctx.scale, ctx.dropout, seed, needs)
        return dx, dz, None, None, dmix, None, None, None, None


# ---- the op --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("aurora_ds::prompted_linear_from", mutates_args=())
def _fused(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    if not choice.triton_runs_on(x.device.type):
        mix = dense_mix(mix, diagonal, inputs)
        return twin_forward(x, z, weight, bias, mix, inputs, scale, dropout, seed)
    from aurora_ds.kernels.gpu import projection

    return projection.forward_from(x, z, weight, bias, mix, diagonal, inputs, scale, dropout, seed)


@_fused.register_fake
def _(x, z, weight, bias, mix, diagonal, inputs, scale, dropout, seed):
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("aurora_ds::prompted_linear_from_backward", mutates_args=())
def _fused_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    needs_x: bool,
    needs_z: bool,
    needs_mix: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (through W alone), z, A or V, and g; empty tensors for those that are not needed."""
    needs = (needs_x, needs_z, needs_mix)
    if choice.triton_runs_on(dy.device.type):
        from aurora_ds.kernels.gpu import projection

        found = projection.backward_from(dy, z, weight, mix, diagonal, inputs, scale, dropout, seed, needs)
    else:
        dense = dense_mix(mix, diagonal, inputs)
        dx, dz, dmix = twin_backward(dy, z, weight, dense, inputs, scale, dropout, seed, needs)
        found = (dx, dz, *(split_gradient(dmix, mix, diagonal, inputs) if needs_mix else (None, None)))
    return tuple(dy.new_empty(0) if each is None else each for each in found)


@_fused_backward.register_fake
def _(dy, z, weight, mix, diagonal, inputs, scale, dropout, seed, needs_x, needs_z, needs_mix):
    return (
        dy.new_empty((dy.shape[0], weight.shape[1]) if needs_x else 0),
        dy.new_empty(z.shape if needs_z else 0),
        mix.new_empty(mix.shape if needs_mix else 0),
        dy.new_empty(0) if diagonal is None or not needs_mix else diagonal.new_empty(diagonal.shape),
    )


def _keep(ctx, inputs, output):
    _, z, weight, _, mix, diagonal, ctx.inputs, ctx.scale, ctx.dropout, seed = inputs
    ctx.save_for_backward(z, weight, mix, diagonal, seed)


def _gradients(ctx, dy):
    z, weight, mix, diagonal, seed = ctx.saved_tensors
    needed = ctx.needs_input_grad
    needs = (needed[0], needed[1], needed[4] or needed[5])
    dx, dz, dmix, ddiagonal = _fused_backward(
        dy, z, weight, mix, diagonal, ctx.inputs, ctx.scale, ctx.dropout, seed, *needs
    )
    return (
        dx if needed[0] else None,
        dz if needed[1] else None,
        None,
        None,
        dmix if needed[4] else None,
        ddiagonal if needed[5] else None,
        *(None,) * 4,
    )


_fused.register_autograd(_gradients, setup_context=_keep)


def prompted_linear_from(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mix: Tensor,
    diagonal: Tensor | None = None,
    *,
    inputs: int = 1,
    scale: float = 1.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """`prompted_linear` from x and z = low_rank(x, U) (…, inputs·R), without dropout in it: the same numbers.

    Gradients flow to x, z, mix and diagonal; what reaches x through U, it reaches through z.
    """
    flat, low = x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    path = "torch"
    if x.dtype == weight.dtype == z.dtype:
        rank = low.shape[1] // inputs
        path = choice.path_of_projection(x.device, x.dtype, *weight.shape, rank, inputs, from_z=True)
    if path == "triton":
        y = _fused(flat, low, weight, bias, mix, diagonal, inputs, scale, dropout, seed)
    else:
        mix = dense_mix(mix, diagonal, inputs)
        y = _Twin.apply(flat, low, weight, bias, mix, inputs, scale, dropout, seed)
    return y.view(*x.shape[:-1], weight.shape[0])
