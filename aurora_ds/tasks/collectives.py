"""Row exchange between ranks, as the losses need it: gather small features, fetch chosen large rows with
gradient.

Without a process group, or alone in it, everything is the identity and no collective runs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@torch.no_grad()
def gather_rows(x: Tensor, interleaved: bool) -> Tensor:
    """x (B, …) of equal B on every rank -> (world·B, …) without gradient. `interleaved`: row b of rank r
    lands at b·world + r, the order of the global batch; otherwise ranks follow each other."""
    _, size = world()
    if size == 1:
        return x
    # into one tensor: a list of them would be copied one by one, a kernel for each rank
    everyone = x.new_empty(size * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(everyone, x.contiguous())
    if interleaved:
        everyone = everyone.unflatten(0, (size, len(x))).transpose(0, 1).flatten(0, 1)
    return everyone


@torch.no_grad()
def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a small tensor over the ranks, without gradient."""
    if world()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


class RowExchange:
    """Which rows of which rank this rank wants, and which of its own rows the others want.

    Args:
        wanted: (world, B) int64 on the CPU, row r: the global indices that rank r asks for. The same on every
            rank. All-to-all needs its split sizes as numbers on the host, hence not on the device.
        interleaved: how a global index names a row (see `gather_rows`). rows: B. device: of what is fetched.
    """

    def __init__(self, wanted: Tensor, interleaved: bool, rows: int, device: torch.device) -> None:
        rank, size = world()
        owner = wanted % size if interleaved else wanted // rows
        row = wanted // size if interleaved else wanted % rows
        mine = owner == rank
        self.receive, self.send = owner[rank].bincount(minlength=size).tolist(), mine.sum(1).tolist()
        # rows come grouped by owner: the place of each request among them
        self.back = owner[rank].argsort(stable=True).argsort().to(device)
        self.rows_to_send = row[mine].to(device)  # in the order of the asking ranks

    @classmethod
    def evenly(cls, rows: int, device: torch.device) -> RowExchange:
        """As many rows from each rank, where tensors have shapes alone and nobody can say what is wanted."""
        exchange, (_, size) = cls.__new__(cls), world()
        shares = [(rank + 1) * rows // size - rank * rows // size for rank in range(size)]
        exchange.receive = exchange.send = shares
        exchange.back = exchange.rows_to_send = torch.arange(rows, device=device)
        return exchange

    def fetch(self, x: Tensor) -> Tensor:
        """x (B, …) on every rank -> the wanted rows (len(wanted[rank]), …), with gradient to their owners."""
        return _AllToAll.apply(x[self.rows_to_send], self.send, self.receive)[self.back]


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, send, receive):
        ctx.send, ctx.receive = send, receive
        out = x.new_empty(sum(receive), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), receive, send)
        return out

    @staticmethod
    def backward(ctx, dy):
        dx = dy.new_empty(sum(ctx.send), *dy.shape[1:])
        dist.all_to_all_single(dx, dy.contiguous(), ctx.send, ctx.receive)
        return dx, None, None
