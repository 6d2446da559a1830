"""One training step followed through PyTorch's dispatcher on tensors without memory (the meta device).

Every tensor that the step makes is counted when it appears and when its storage dies, in forward and backward, so the
peak holds what autograd keeps, what is recomputed, and what gradients take, whatever the model. Parameters that modules
use and rows that ranks exchange are counted too, for ZeRO-3 and for the traffic.

What an op takes only while it computes (libraries' workspace) is not seen.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Shapes(TorchDispatchMode):
    """Counts the bytes of living tensors, and gives an answer where an op's answer depends on values: a number is 1,
    and everything that is asked for is found (`nonzero`), as in a batch without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        if "generator" in keywords:  # of the CPU, which shapes do not take
            del keywords["generator"]
            if op._overloadname.startswith("generator"):
                op = op._overloadpacket.default
        if op is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if op is torch.ops.aten.nonzero.default:
            result = args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        else:
            result = op(*args, **keywords)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.living or not size:
            return
        self.living[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.now -= self.living.pop(key, 0)


class _FusedAttention(torch.autograd.Function):
    """What a GPU's fused attention keeps: its inputs, its output, a logarithm per query. No score matrix."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(
            query, key, value, mask, out, query.new_empty(batch, heads, length, dtype=torch.float32)
        )
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _gpu_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> Tensor:
    """In the place of F.scaled_dot_product_attention."""
    return _FusedAttention.apply(query, key, value, attn_mask)


class _SilentRanks:
    """`torch.distributed` for the tasks' collectives: as many ranks as are planned for, and nothing is sent."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.sent = ranks, 0.0

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return self.ranks

    def all_gather_into_tensor(self, out: Tensor, x: Tensor) -> None:
        self.sent += x.nbytes * (self.ranks - 1)

    def reduce_scatter_tensor(self, out: Tensor, x: Tensor) -> None:
        self.sent += x.nbytes * (self.ranks - 1) / self.ranks

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        self.sent += x.nbytes * (self.ranks - 1)

    def all_reduce(self, x: Tensor) -> None:
        self.sent += 2 * x.nbytes * (self.ranks - 1) / self.ranks

    def all_to_all_single(self, out: Tensor, x: Tensor, receive: list[int], send: list[int]) -> None:
        self.sent += x.nbytes * (self.ranks - 1) / self.ranks


@contextmanager
def _silent(ranks: int) -> Iterator[_SilentRanks]:
    """In the place of `torch.distributed` in all modules of the tasks."""
    silent = _SilentRanks(ranks)
    modules = [module for name, module in sys.modules.items() if name.startswith("aurora_ds.tasks.")]
    with ExitStack() as stack:
        for module in modules:
            if getattr(module, "dist", None) is torch.distributed:
                stack.enter_context(patch.object(module, "dist", silent))
        yield silent


@dataclass
class Uses:
    """The parameters that each call of a module needed, in the order of the calls: (number of it, elements)."""

    calls: list[tuple[tuple[int, int], ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """One training step of one rank. Bytes.

    parameters: (elements, trained) of each. beside: what stays over the steps beside parameters (queue, momentum
    copies, buffers). activations: the most that a step adds to what stays, gradients that autograd made included.
    forward: what is kept at the end of the forward. sent: by the task's own exchange between ranks.
    uses: (number, elements) of the parameters that each call of a module needs, backward calls included.
    """

    parameters: tuple[tuple[int, bool], ...]
    beside: int
    activations: int
    forward: int
    sent: float
    uses: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def total(self) -> int:
        """Elements of all parameters."""
        return sum(size for size, _ in self.parameters)

    @property
    def trained(self) -> int:
        """Elements of the trained ones."""
        return sum(size for size, trained in self.parameters if trained)


@contextmanager
def _watched(task: nn.Module) -> Iterator[Uses]:
    """Counts the modules' calls, and their backward calls: those whose output has a gradient."""
    uses, handles = Uses(), []
    numbers = {id(parameter): number for number, parameter in enumerate(task.parameters())}

    def called(own: tuple[tuple[int, int], ...], output: Any) -> None:
        uses.calls.append(own)
        if any(isinstance(value, Tensor) and value.requires_grad for value in tree_leaves(output)):
            uses.calls.append(own)

    for module in task.modules():
        own = tuple((numbers[id(p)], p.numel()) for p in module.parameters(recurse=False))
        if own:
            handles.append(
                module.register_forward_hook(lambda _module, _args, output, own=own: called(own, output))
            )
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def trace_step(assembled: Any, make_batch: Any, shapes: Shapes, ranks: int, device: str) -> Trace:
    """Follow one step. `make_batch()` gives a micro-batch on the meta device; `shapes` saw the task being built;
    `device`: cpu or cuda, whose attention it is. On a CPU attention with dropout forms its score matrix, on a GPU none
    does."""
    task, wiring = assembled.task, assembled.wiring
    attention = (
        patch.object(F, "scaled_dot_product_attention", _gpu_attention) if device == "cuda" else nullcontext()
    )
    with torch.device("meta"), shapes, _silent(ranks) as silent, attention, _watched(task) as uses:
        task.train()
        shapes.peak = shapes.now
        loss = task(make_batch(), what="loss", **wiring.loss_arguments(0, 0, 1))["loss"]
        kept = shapes.now
        loss.backward()
        del loss
        for parameter in task.parameters():
            parameter.grad = None
    gc.collect()
    own = {id(p): p for p in task.parameters()}
    return Trace(
        tuple((p.numel(), p.requires_grad) for p in own.values()),
        shapes.now - sum(p.nbytes for p in own.values()),
        shapes.peak - shapes.now,
        kept - shapes.now,
        silent.sent,
        tuple(uses.calls),
    )
