"""y = x Wᵀ + b + s · (mask ∘ x Uᵀ) Aᵀ: a frozen linear and the low-rank update of its site, with one write of y.

Shapes: x (M, inputs·w_in), W (outputs·w_out, inputs·w_in), U (R, w_in). The update's other half is A (outputs·w_out,
inputs·R), or, in CP form, V (w_out, R) and the diagonals g (columns, R) of the site's core slices, one per block: then
A's blocks are V diag(g_c) and A is never formed. With several inputs x is cut into that many blocks, which U maps one
by one (the second MLP projection: four); with several outputs y is (qkv: three, kv: two, fc1: four).

Cost beyond the frozen projection: 2·M·R·(d_in + inputs·d_out) FLOPs forward, twice that backward. W is frozen:
it gets no gradient. Kept for the backward pass are x and z = mask ∘ x Uᵀ (M, inputs·R); the mask is made again from
its seed. dx is written once: its low-rank part is added into dy W.

The twin below is the CPU path, the reference and the fallback; `gpu/` has the Triton kernels of the same op.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.kernels import choice
from aurora_ds.kernels.low_rank import twin as low_rank
from aurora_ds.kernels.philox import dropout_mask

# ---- the PyTorch twin ----------------------------------------------------------------------------------------------


def masked(z: Tensor, inputs: int, dropout: float, seed: Tensor | None) -> Tensor:
    """z (M, inputs·R) times the mask of `seed`; as it is without dropout."""
    if not dropout:
        return z
    rows, rank = z.shape[0] * inputs, z.shape[1] // inputs
    return z * dropout_mask(seed, rows, rank, dropout, z).view(z.shape)


def dense_mix(mix: Tensor, diagonal: Tensor | None, inputs: int) -> Tensor:
    """A (d_out, inputs·R) from V and the diagonals."""
    if diagonal is None:
        return mix
    scaled = mix * diagonal[:, None].to(mix)  # (columns, w_out, R)
    return scaled.transpose(0, 1).reshape(mix.shape[0], -1) if inputs > 1 else scaled.flatten(0, 1)


def twin_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    mix: Tensor,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (M, d_out) and z (M, inputs·R), from A."""
    z = masked(low_rank(x, down), inputs, dropout, seed)
    y = F.linear(x, weight, bias)
    y.addmm_(z, mix.t(), alpha=scale)
    return y, z


def twin_backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    down: Tensor,
    mix: Tensor,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, U and A; None for those that `needs` leaves out."""
    rank, width = down.shape
    dx = ddown = dmix = None
    if needs[2]:
        dmix = dy.t() @ z
        if scale != 1.0:
            dmix *= scale
    if needs[0] or needs[1]:
        dz = dy @ mix  # (M, inputs·R)
        if scale != 1.0:
            dz *= scale
        dz = masked(dz, dz.shape[1] // rank, dropout, seed).view(-1, rank)
        if needs[1]:
            ddown = dz.t() @ x.reshape(-1, width)
        if needs[0]:
            dx = dy @ weight
            dx.view(-1, width).addmm_(dz, down)
    return dx, ddown, dmix


class _Twin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, down, mix, inputs, scale, dropout, seed):
        y, z = twin_forward(x, weight, bias, down, mix, inputs, scale, dropout, seed)
        # The weight itself is saved, not a view of it: under ZeRO-3 its data is gathered again before backward.
        ctx.save_for_backward(x, weight, down, mix, z, seed)
        ctx.scale, ctx.dropout = scale, dropout
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, down, mix, z, seed = ctx.saved_tensors
        needed = ctx.needs_input_grad
        needs = (needed[0], needed[3], needed[4])
        dx, ddown, dmix = twin_backward(dy, x, z, weight, down, mix, ctx.scale, ctx.dropout, seed, needs)
        return dx, None, None, ddown, dmix, None, None, None, None


# ---- the op --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("aurora_ds::prompted_linear", mutates_args=())
def _fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    mix: Tensor,
    diagonal: Tensor | None,
    inputs: int,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if not choice.triton_runs_on(x.device.type):
        mix = dense_mix(mix, diagonal, inputs)
        return twin_forward(x, weight, bias, down, mix, inputs, scale, dropout, seed)
    from aurora_ds.kernels.gpu import projection

    return projection.forward(x, weight, bias, down, mix, diagonal, inputs, scale, dropout, seed)


@_fused.register_fake
def _(x, weight, bias, down, mix, diagonal, inputs, scale, dropout, seed):
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], inputs * down.shape[0])


@torch.library.custom_op("aurora_ds::prompted_linear_backward", mutates_args=())
def _fused_backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    down: Tensor,
    mix: Tensor,
    diagonal: Tensor | None,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    needs_x: bool,
    needs_down: bool,
    needs_mix: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, U, A or V, and g; empty tensors for those that are not needed."""
    needs = (needs_x, needs_down, needs_mix)
    if choice.triton_runs_on(x.device.type):
        from aurora_ds.kernels.gpu import projection

        found = projection.backward(dy, x, z, weight, down, mix, diagonal, scale, dropout, seed, needs)
    else:
        inputs = x.shape[1] // down.shape[1]
        dense = dense_mix(mix, diagonal, inputs)
        dx, ddown, dmix = twin_backward(dy, x, z, weight, down, dense, scale, dropout, seed, needs)
        found = (dx, ddown, *(split_gradient(dmix, mix, diagonal, inputs) if needs_mix else (None, None)))
    return tuple(x.new_empty(0) if each is None else each for each in found)


def split_gradient(
    dmix: Tensor, up: Tensor, diagonal: Tensor | None, inputs: int
) -> tuple[Tensor, Tensor | None]:
    """From dA to the gradients of V and g; only in dtype where A itself was given."""
    if diagonal is None:
        return dmix.to(up.dtype), None
    width, rank = up.shape
    blocks = dmix.view(width, inputs, rank).transpose(0, 1) if inputs > 1 else dmix.view(-1, width, rank)
    blocks = blocks.to(torch.promote_types(dmix.dtype, torch.float32))
    return (blocks * diagonal[:, None]).sum(0).to(up), (blocks * up).sum(1).to(diagonal)


@_fused_backward.register_fake
def _(
    dy,
    x,
    z,
    weight,
    down,
    mix,
    diagonal,
    scale,
    dropout,
    seed,
    needs_x,
    needs_down,
    needs_mix,
):
    def like(tensor, needed):
        return tensor.new_empty(tensor.shape) if needed else x.new_empty(0)

    return (
        like(x, needs_x),
        like(down, needs_down),
        like(mix, needs_mix),
        like(diagonal, needs_mix) if diagonal is not None else x.new_empty(0),
    )


def _keep(ctx, inputs, output):
    x, weight, _, down, mix, diagonal, _, scale, dropout, seed = inputs
    ctx.set_materialize_grads(False)  # nothing flows into z from outside
    ctx.save_for_backward(x, output[1], weight, down, mix, diagonal, seed)
    ctx.scale, ctx.dropout = scale, dropout


def _gradients(ctx, dy, _dz):
    x, z, weight, down, mix, diagonal, seed = ctx.saved_tensors
    needed = ctx.needs_input_grad
    needs_mix = needed[4] or needed[5]
    dx, ddown, dmix, ddiagonal = _fused_backward(
        dy,
        x,
        z,
        weight,
        down,
        mix,
        diagonal,
        ctx.scale,
        ctx.dropout,
        seed,
        needed[0],
        needed[3],
        needs_mix,
    )
    return (
        dx if needed[0] else None,
        None,
        None,
        ddown if needed[3] else None,
        dmix if needed[4] else None,
        ddiagonal if needed[5] else None,
        None,
        None,
        None,
        None,
    )


_fused.register_autograd(_gradients, setup_context=_keep)


def prompted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    mix: Tensor,
    diagonal: Tensor | None = None,
    *,
    inputs: int = 1,
    scale: float = 1.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Frozen linear plus low-rank update, without forming the update of W (Aurora, arXiv 2305.08381, §3.2).

    Args:
        x: (…, inputs·w_in), any floating dtype, any strides.
        weight: (d_out, inputs·w_in), frozen, dtype of x. bias: (d_out,) or None, frozen.
        down: U (R, w_in). mix: A (d_out, inputs·R), or V (w_out, R) when `diagonal` (columns, R) is given; columns is
            the number of input or output blocks. Gradients flow to x, down, mix and diagonal.
        dropout: share of the elements of x Uᵀ that are dropped, drawn from `seed` (see philox.draw_seed).
    Returns: (…, d_out) in the dtype of x.
    """
    flat = x.reshape(-1, x.shape[-1])
    if choice.path_for(flat, weight, down, inputs) == "triton":
        y, _ = _fused(flat, weight, bias, down, mix, diagonal, inputs, scale, dropout, seed)
    else:
        mix = dense_mix(mix, diagonal, inputs)
        y = _Twin.apply(flat, weight, bias, down, mix, inputs, scale, dropout, seed)
    return y.view(*x.shape[:-1], weight.shape[0])
