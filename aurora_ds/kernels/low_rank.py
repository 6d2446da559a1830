"""z = x Uᵀ by itself: made once for all sites that read the same x, which go on from it (prompted_linear_from.py).

Shapes: x (…, inputs·w_in), U (R, w_in), z (…, inputs·R), one R per input block. Cost: 2·M·R·d_in FLOPs forward, twice
that backward, per input and no longer per site; dz arrives as the sum over the sites, so that dU = dzᵀ x is one product
too. PyTorch's own linear is the twin; `gpu/products.py` has the Triton path.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.kernels import choice


@torch.library.custom_op("aurora_ds::low_rank", mutates_args=())
def _fused(x: Tensor, down: Tensor) -> Tensor:
    if not choice.triton_runs_on(x.device.type):
        return twin(x, down)
    from aurora_ds.kernels.gpu import products

    return products.low_rank(x, down, x.shape[1] // down.shape[1], 0.0, None)


@_fused.register_fake
def _(x, down):
    return x.new_empty(x.shape[0], x.shape[1] // down.shape[1] * down.shape[0])


@torch.library.custom_op("aurora_ds::low_rank_backward", mutates_args=())
def _fused_backward(
    dz: Tensor, x: Tensor, down: Tensor, needs_x: bool, needs_down: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and U; empty tensors for those that are not needed."""
    rank, width = down.shape
    dx = ddown = x.new_empty(0)
    dz = dz.reshape(-1, rank)
    if needs_x:
        dx = (dz @ down).view(x.shape)
    if needs_down and choice.triton_runs_on(x.device.type):
        from aurora_ds.kernels.gpu import products

        ddown = products.down_gradient(x, dz, down)
    elif needs_down:
        ddown = dz.t() @ x.reshape(-1, width)
    return dx, ddown


@_fused_backward.register_fake
def _(dz, x, down, needs_x, needs_down):
    return x.new_empty(x.shape if needs_x else 0), down.new_empty(down.shape if needs_down else 0)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, dz):
    needs = ctx.needs_input_grad
    dx, ddown = _fused_backward(dz, *ctx.saved_tensors, *needs)
    return dx if needs[0] else None, ddown if needs[1] else None


_fused.register_autograd(_gradients, setup_context=_keep)


def twin(x: Tensor, down: Tensor) -> Tensor:
    """z (M, inputs·R) of x (M, inputs·w_in)."""
    rank, width = down.shape
    return F.linear(x.reshape(-1, width), down).view(x.shape[0], x.shape[1] // width * rank)


def low_rank(x: Tensor, down: Tensor, inputs: int = 1) -> Tensor:
    """z (…, inputs·R) from x (…, inputs·w_in), any strides, and U (R, w_in); gradients flow to both."""
    flat = x.reshape(-1, x.shape[-1])
    rank, path = down.shape[0], "torch"
    if x.dtype == down.dtype:
        path = choice.path_of_start(x.device, x.dtype, x.shape[-1], rank, inputs)
    z = _fused(flat, down) if path == "triton" else twin(flat, down)
    return z.view(*x.shape[:-1], inputs * rank)
