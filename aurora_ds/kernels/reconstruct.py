"""A of every site from V and the sites' core slices: A_c = V G_cᵀ per mode column c, all columns of a model at once.

Shapes: V (w, R) for each output width w of the model; G (columns, R, R), rows belong to U, columns to V. A site with n
output blocks has n columns and A (n·w, R), its blocks above each other; one with n input blocks has n columns and A
(w, n·R), its blocks side by side. Cost: 2·w·R² FLOPs a column, twice that backward.

The PyTorch twin makes one product per output width; `gpu/reconstruction.py` one launch for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from aurora_ds.kernels import choice


@dataclass(frozen=True)
class Plan:
    """What a model's sites are, in order: width of an output block, number of output and of input blocks."""

    widths: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    rank: int

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """Mode columns per site."""
        return tuple(max(pair) for pair in zip(self.outputs, self.inputs, strict=True))

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Of A, per site."""
        return tuple(
            (outputs * width, inputs * self.rank)
            for width, outputs, inputs in zip(self.widths, self.outputs, self.inputs, strict=True)
        )

    @cached_property
    def distinct(self) -> tuple[int, ...]:
        """The output widths, each once, ascending."""
        return tuple(sorted(set(self.widths)))

    @cached_property
    def rows(self) -> tuple[tuple[int, int, int, int], ...]:
        """Per column: its V's number and width, and where its block of A starts and how far its rows are apart, in a
        buffer that holds the sites' A one after the other."""
        found, at = [], 0
        for width, inputs, columns, (height, across) in zip(
            self.widths, self.inputs, self.columns, self.shapes, strict=True
        ):
            for column in range(columns):
                step = self.rank if inputs > 1 else width * self.rank
                found.append((self.distinct.index(width), width, at + column * step, across))
            at += height * across
        return tuple(found)


def twin(up: list[Tensor], slices: Tensor, plan: Plan) -> list[Tensor]:
    """Per site A, from V of each distinct width and G: one batched product per width."""
    mixes: list[Tensor] = [slices] * len(plan.widths)
    per_site = slices.split(plan.columns)
    for width, factor in zip(plan.distinct, up, strict=True):
        members = [i for i, own in enumerate(plan.widths) if own == width]
        stacked = torch.cat([per_site[i] for i in members])  # (columns, R of U, R of V)
        products = torch.matmul(factor, stacked.transpose(1, 2))  # (columns, width, R)
        for i, product in zip(members, products.split([plan.columns[i] for i in members]), strict=True):
            arranged = product.permute(1, 0, 2) if plan.inputs[i] > 1 else product
            mixes[i] = arranged.reshape(plan.shapes[i])
    return mixes


def _views(flat: Tensor, plan: Plan) -> list[Tensor]:
    """The sites' A in their common buffer. A split, because its backward is one concatenation."""
    sizes = [height * across for height, across in plan.shapes]
    return [part.view(shape) for part, shape in zip(flat.split(sizes), plan.shapes, strict=True)]


def _plan(widths: list[int], outputs: list[int], inputs: list[int], rank: int) -> Plan:
    return Plan(tuple(widths), tuple(outputs), tuple(inputs), rank)


@torch.library.custom_op("aurora_ds::reconstruct", mutates_args=())
def _fused(
    up: Tensor, slices: Tensor, widths: list[int], outputs: list[int], inputs: list[int], dtype: torch.dtype
) -> Tensor:
    """All A in one buffer; `up` holds the V of the distinct widths, one above the other."""
    plan = _plan(widths, outputs, inputs, slices.shape[-1])
    if not choice.triton_runs_on(up.device.type):
        mixes = twin(list(up.split(plan.distinct)), slices, plan)
        return torch.cat([mix.flatten() for mix in mixes]).to(dtype)
    from aurora_ds.kernels.gpu import reconstruction

    return reconstruction.forward(up, slices, plan, dtype)


@_fused.register_fake
def _(up, slices, widths, outputs, inputs, dtype):
    shapes = _plan(widths, outputs, inputs, slices.shape[-1]).shapes
    return up.new_empty(sum(height * across for height, across in shapes), dtype=dtype)


@torch.library.custom_op("aurora_ds::reconstruct_backward", mutates_args=())
def _fused_backward(
    gradient: Tensor, up: Tensor, slices: Tensor, widths: list[int], outputs: list[int], inputs: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of `up` and `slices`."""
    plan = _plan(widths, outputs, inputs, slices.shape[-1])
    if choice.triton_runs_on(up.device.type):
        from aurora_ds.kernels.gpu import reconstruction

        return reconstruction.backward(gradient, up, slices, plan)
    with torch.enable_grad():
        leaves = up.detach().requires_grad_(), slices.detach().requires_grad_()
        mixes = twin(list(leaves[0].split(plan.distinct)), leaves[1], plan)
    return torch.autograd.grad(mixes, leaves, [part.to(up.dtype) for part in _views(gradient, plan)])


@_fused_backward.register_fake
def _(gradient, up, slices, widths, outputs, inputs):
    return up.new_empty(up.shape), slices.new_empty(slices.shape)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.lists = inputs[2:5]


def _gradients(ctx, gradient):
    return *_fused_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.lists), None, None, None, None


_fused.register_autograd(_gradients, setup_context=_keep)


def reconstruct(up: list[Tensor], slices: Tensor, plan: Plan, dtype: torch.dtype) -> list[Tensor]:
    """A of every site in `dtype`, with graph.

    Args:
        up: V (w, R) for each of plan.distinct, fp32 or wider. slices: G (columns, R, R), in the sites' order.
    """
    if choice.path_of_reconstruction(slices) == "triton":
        lists = list(plan.widths), list(plan.outputs), list(plan.inputs)
        return _views(_fused(torch.cat(up), slices, *lists, dtype), plan)
    return [mix.to(dtype) for mix in twin(up, slices, plan)]
