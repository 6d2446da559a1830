"""Bytes that this rank hands to torch.distributed, as a ring sends them (an all-reduce of S: 2·S·(W-1)/W).

Counted at the dispatcher, where every collective passes, DeepSpeed's and the tasks' alike, whatever called it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# c10d op -> which argument is the rank's own share, and how much of it a ring sends
_OPS = {
    "allreduce_": (0, lambda size, ranks: 2 * size * (ranks - 1) / ranks),
    "allreduce_coalesced_": (0, lambda size, ranks: 2 * size * (ranks - 1) / ranks),
    "reduce_scatter_": (0, lambda size, ranks: size * (ranks - 1)),
    "_reduce_scatter_base_": (1, lambda size, ranks: size * (ranks - 1) / ranks),
    "allgather_": (1, lambda size, ranks: size * (ranks - 1)),
    "_allgather_base_": (1, lambda size, ranks: size * (ranks - 1)),
    "allgather_into_tensor_coalesced_": (1, lambda size, ranks: size * (ranks - 1)),
    "allgather_coalesced_": (1, lambda size, ranks: size * (ranks - 1)),
    "alltoall_": (1, lambda size, ranks: size * (ranks - 1) / ranks),
    "broadcast_": (0, lambda size, ranks: size * (ranks - 1) / ranks),
    "reduce_": (0, lambda size, ranks: size * (ranks - 1) / ranks),
}


class Sent(TorchDispatchMode):
    """`bytes` so far, and `by_op`."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.by_op = 0.0, {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "c10d":
            self._count(op._opname, args)
        return op(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        if name == "alltoall_base_":
            self._add(name, _leaving(*args[:5]))
        elif name in _OPS:
            which, share = _OPS[name]
            size = sum(each.nbytes for each in tree_leaves(args[which]) if isinstance(each, Tensor))
            if name == "reduce_scatter_":
                size = sum(each.nbytes for each in tree_leaves(args[0]) if isinstance(each, Tensor))
            self._add(name, share(size, dist.get_world_size()))
        elif name not in ("barrier", "monitored_barrier_"):
            raise RuntimeError(f"c10d::{name} sends bytes that nobody counts; add it to sent.py")

    def _add(self, name: str, sent: float) -> None:
        self.bytes += sent
        self.by_op[name] = self.by_op.get(name, 0.0) + sent


def _leaving(out: Tensor, x: Tensor, group: Any, receive: list[int], send: list[int]) -> float:
    """Bytes of `x` that are for other ranks. `send`: rows for each rank, or none where all get as many."""
    ranks = dist.ProcessGroup.unbox(group)
    size, rank = ranks.size(), ranks.rank()
    if not send:
        return x.nbytes * (size - 1) / size
    return x.nbytes * (sum(send) - send[rank]) / sum(send) if sum(send) else 0.0


@contextmanager
def counting() -> Iterator[Sent]:
    """What is sent inside the block, by this thread."""
    with Sent() as sent:
        yield sent
