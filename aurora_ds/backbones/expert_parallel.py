"""Experts spread over ranks: every rank of a group holds an equal share of them, and rows travel to where their expert
is and back, by two all-to-all exchanges of the rows that there are. Nothing is padded and nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Exchange(torch.autograd.Function):
    """Rows to the ranks of a group; in the backward pass their gradients come back the same way."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        rows: Tensor,
        sent: list[int],
        received: list[int],
        group: dist.ProcessGroup,
    ) -> Tensor:
        """rows (R, D): the first `sent[0]` for the first rank, and so on -> those that came, in the order of ranks."""
        ctx.sizes, ctx.group = (sent, received), group
        return _exchanged(rows, sent, received, group)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        sent, received = ctx.sizes
        return _exchanged(gradient, received, sent, ctx.group), None, None, None


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result


def even_shares(rows: int, experts: int) -> list[int]:
    """What experts get of `rows` where nobody knows (tensors without values): all the same, the rest to the last."""
    return [rows // experts] * (experts - 1) + [rows - rows // experts * (experts - 1)]


def computed_by_ranks(
    rows: Tensor, counts: Tensor, experts: Iterable[nn.Module], group: dist.ProcessGroup
) -> Tensor:
    """What the experts of all ranks of `group` make of their rows. Collective.

    Args:
        rows: (R, D), sorted by expert. counts: int64 (E,), rows of each expert.
        experts: those of this rank; the first rank has the first experts, and so on.
    Returns: (R, D), in the order of `rows`. On tensors without values every rank and expert gets the same.
    """
    sent = counts.view(dist.get_world_size(group), -1)
    received = torch.empty_like(sent)  # (ranks, experts here): rows that come from each rank
    dist.all_to_all_single(received, sent, group=group)
    if counts.is_meta:
        sizes = (even_shares(len(rows), len(sent)),) * 2
        shares = even_shares(len(rows), sent.shape[1])
    else:
        sizes = sent.sum(1).tolist(), received.sum(1).tolist()
        shares = received.sum(0).tolist()
    come = _Exchange.apply(rows, *sizes, group)
    # they come rank by rank, sorted by expert within each: every expert takes its own in one block
    number = torch.arange(sent.shape[1], device=rows.device).repeat(len(sent))
    numbers = number.repeat_interleave(received.flatten(), output_size=len(come))
    order = numbers.argsort(stable=True)
    blocks = come.index_select(0, order).split(shares)
    # also those without rows: each expert has a gradient
    results = torch.cat([expert(block) for expert, block in zip(experts, blocks, strict=True)])
    return _Exchange.apply(results.index_select(0, order.argsort()), *sizes[::-1], group)
