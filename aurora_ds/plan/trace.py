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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from aurora_ds.kernels import philox
from aurora_ds.runtime.expert_ranks import to_spread


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
        elif op is torch.ops.aten.index.Tensor:
            result = op(args[0], [each for index in args[1] for each in _numbers(index)])
        elif op is torch.ops.aten.bincount.default:
            result = args[0].new_empty((keywords.get("minlength", args[-1]),), dtype=torch.int64)
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


def _numbers(index: Tensor | None) -> list[Tensor | None]:
    """An index of truth values as the numbers of all that it asks for."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.int64)] * index.dim()


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps: its inputs, its output, a logarithm per query. No score matrix."""

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


_composed_attention = F.scaled_dot_product_attention  # what it is on tensors without memory


def _cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **keywords: Any,
) -> Tensor:
    """In its place on a CPU, where it is fused but for dropout and masks that learn."""
    if dropout_p or (attn_mask is not None and attn_mask.requires_grad):
        return _composed_attention(query, key, value, attn_mask, dropout_p, **keywords)
    return _FusedAttention.apply(query, key, value, attn_mask)


def _without_autocast(device_type: str, *_: Any, **__: Any) -> Any:
    """In the place of torch.autocast, which does not know the meta device; the engine never turns it on."""
    return nullcontext()


class ExpertGroup(NamedTuple):
    """In the place of a process group of ranks that together hold every expert once."""

    ranks: int


class _SilentRanks:
    """`torch.distributed` for the tasks' collectives: as many ranks as are planned for, and nothing is sent. sent: by
    all ranks together; tokens: within groups of experts."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.sent, self.tokens = ranks, 0.0, 0.0

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_rank(self) -> int:
        return 0

    def get_world_size(self, group: ExpertGroup | None = None) -> int:
        return self.ranks if group is None else group.ranks

    def all_gather_into_tensor(self, out: Tensor, x: Tensor) -> None:
        self.sent += x.nbytes * (self.ranks - 1)

    def reduce_scatter_tensor(self, out: Tensor, x: Tensor) -> None:
        self.sent += x.nbytes * (self.ranks - 1) / self.ranks

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        self.sent += x.nbytes * (self.ranks - 1)

    def all_reduce(self, x: Tensor) -> None:
        self.sent += 2 * x.nbytes * (self.ranks - 1) / self.ranks

    def all_to_all_single(
        self,
        out: Tensor,
        x: Tensor,
        receive: list[int] | None = None,
        send: list[int] | None = None,
        group: ExpertGroup | None = None,
    ) -> None:
        ranks, rows = self.get_world_size(group), len(x)
        if group is None:
            # a row's negative is any of all ranks' rows but itself, so that more than an even share is elsewhere
            self.sent += x.nbytes * (ranks - 1) * rows / (ranks * rows - 1)
        else:
            self.tokens += x.nbytes * (ranks - 1) / ranks


@contextmanager
def _silent(ranks: int) -> Iterator[_SilentRanks]:
    """In the place of `torch.distributed` in all modules of the tasks, and of experts."""
    silent = _SilentRanks(ranks)
    places = ("aurora_ds.tasks.", "aurora_ds.backbones.expert_parallel")
    modules = [module for name, module in sys.modules.items() if name.startswith(places)]
    with ExitStack() as stack:
        for module in modules:
            if getattr(module, "dist", None) is torch.distributed:
                stack.enter_context(patch.object(module, "dist", silent))
        yield silent


class Event(NamedTuple):
    """Something that DeepSpeed's hooks act on. kind: `forward` or `backward` before a module's, `forward_end` or
    `backward_end` after it, or `gradient` of a parameter, which is whole then. number: of the module or the parameter.
    recomputed: a forward inside the backward. now, peak: bytes that the step holds beside what stays, without trained
    parameters' gradients; the most of them since the event before."""

    kind: str
    number: int
    recomputed: bool
    now: int
    peak: int


@dataclass(frozen=True)
class Spread:
    """Experts of which each rank holds a share. ranks: that hold every one once together. trained: elements of this
    rank's that are trained; absent: of those on the other ranks. sent: bytes of tokens that leave in a step."""

    ranks: int = 1
    trained: int = 0
    absent: int = 0
    sent: float = 0.0


@dataclass(frozen=True)
class Trace:
    """One training step of one rank. Bytes.

    parameters: (elements, trained) of each that this rank has. beside: what stays over the steps beside parameters
    (queue, momentum copies, buffers; on a CPU the loader's batch). activations: the most that a step adds to what
    stays, gradients that autograd made included. forward: what is kept at the end of the forward. sent: by the task's
    own exchange between ranks. modules: numbers of the parameters that each has itself. events: what ZeRO-3 sees of the
    step, in order.
    """

    parameters: tuple[tuple[int, bool], ...]
    beside: int
    activations: int
    forward: int
    sent: float
    modules: tuple[tuple[int, ...], ...]
    events: tuple[Event, ...]
    experts: Spread = Spread()

    @property
    def total(self) -> int:
        """Elements of all parameters."""
        return sum(size for size, _ in self.parameters)

    @property
    def trained(self) -> int:
        """Elements of the trained ones."""
        return sum(size for size, trained in self.parameters if trained)

    def share(self, ranks: int) -> float:
        """Elements of the trained ones that stay with one of `ranks` when those that hold the same ones divide them."""
        alike = self.trained - self.experts.trained
        return alike / ranks + self.experts.trained * self.experts.ranks / ranks


class _Passing(torch.autograd.Function):
    """A tensor as it is; `called` when its gradient passes."""

    @staticmethod
    def forward(ctx, x, called):
        ctx.called = called
        return x.detach()

    @staticmethod
    def backward(ctx, gradient):
        ctx.called()
        return gradient, None


class _Watch:
    """Puts hooks where DeepSpeed has its own, and notes when they are called: before and after each module's forward,
    when a gradient comes to its outputs, and when all have left its inputs."""

    def __init__(self, task: nn.Module, shapes: Shapes) -> None:
        self.shapes, self.events, self.handles = shapes, [], []
        self.numbers = {id(parameter): number for number, parameter in enumerate(task.parameters())}
        self.own: list[tuple[int, ...]] = []
        self.leaving: dict[int, int] = {}  # gradients that a module's inputs still wait for
        for number, module in enumerate(task.modules()):
            self.own.append(tuple(sorted(self.numbers[id(p)] for p in module.parameters(recurse=False))))
            self.handles += [
                module.register_forward_pre_hook(partial(self._before, number)),
                module.register_forward_hook(partial(self._after, number)),
            ]
        for parameter in task.parameters():
            if parameter.requires_grad:
                self.handles.append(parameter.register_post_accumulate_grad_hook(self._gradient))

    def note(self, kind: str, number: int) -> None:
        shapes = self.shapes
        self.events.append(
            Event(kind, number, torch._C._current_graph_task_id() != -1, shapes.now, shapes.peak)
        )
        shapes.peak = shapes.now

    def _before(self, number: int, module: nn.Module, inputs: tuple) -> tuple:
        self.note("forward", number)
        self.leaving[number] = 0

        def left() -> None:
            self.leaving[number] -= 1
            if self.leaving[number] == 0:
                self.note("backward_end", number)

        def watched(x: Tensor) -> Tensor:
            self.leaving[number] += x.requires_grad
            return _Passing.apply(x, left)

        return tree_map_only(Tensor, watched, inputs)

    def _after(self, number: int, module: nn.Module, inputs: tuple, output: Any) -> Any:
        self.note("forward_end", number)
        return tree_map_only(
            Tensor, lambda x: _Passing.apply(x, partial(self.note, "backward", number)), output
        )

    def _gradient(self, parameter: nn.Parameter) -> None:
        parameter.grad = None
        self.note("gradient", self.numbers[id(parameter)])


@contextmanager
def _watched(task: nn.Module, shapes: Shapes) -> Iterator[_Watch]:
    watch = _Watch(task, shapes)
    try:
        yield watch
    finally:
        for handle in watch.handles:
            handle.remove()


def spread_experts(task: nn.Module, size: int, ranks: int) -> Spread:
    """Leave the first rank's share of experts in `task`, as a run on `ranks` ranks does. Raises AuroraError as it."""
    if size == 1:
        return Spread()
    lists = to_spread(task, size, ranks).values()
    before = sum(each.numel() for experts in lists for each in experts.parameters())
    for experts in lists:
        experts.hold(range(experts.total // size), ExpertGroup(size))
    own = [each for experts in lists for each in experts.parameters()]
    trained = sum(each.numel() for each in own if each.requires_grad)
    return Spread(size, trained, before - sum(each.numel() for each in own))


def trace_step(assembled: Any, make_batch: Any, shapes: Shapes, ranks: int, device: str) -> Trace:
    """Follow one step. `make_batch()` gives a micro-batch on the meta device; `shapes` saw the task being built;
    `device`: cpu or cuda, whose attention it is. On a CPU attention with dropout forms its score matrix, on a GPU none
    does."""
    task, wiring = assembled.task, assembled.wiring
    experts = spread_experts(task, assembled.config.train.expert_parallel, ranks)
    attention = _gpu_attention if device == "cuda" else _cpu_attention
    with (
        torch.device("meta"),
        shapes,
        _silent(ranks) as silent,
        patch.object(F, "scaled_dot_product_attention", attention),
        patch.object(torch, "autocast", _without_autocast),
        patch.object(philox, "ROUNDS", 2),  # the others take and free the same memory again
        _watched(task, shapes) as watch,
    ):
        task.train()
        shapes.peak = shapes.now
        loss = task(make_batch(), what="loss", **wiring.loss_arguments(0, 0, 1))["loss"]
        kept = shapes.now
        loss.backward()
        del loss
        watch.note("backward_end", 0)
    gc.collect()
    experts = replace(experts, sent=silent.tokens)
    own = tuple(task.parameters())
    stays = shapes.now
    events = tuple(each._replace(now=each.now - stays, peak=each.peak - stays) for each in watch.events)
    return Trace(
        tuple((p.numel(), p.requires_grad) for p in own),
        stays - sum(p.nbytes for p in own),
        _most(events, own),
        kept - stays,
        silent.sent,
        tuple(watch.own),
        events,
        experts,
    )


def _most(events: tuple[Event, ...], parameters: tuple[nn.Parameter, ...]) -> int:
    """The most bytes of a step, the gradients of trained parameters kept as they come."""
    most = gradients = 0
    seen: set[int] = set()
    for event in events:
        most = max(most, event.peak + gradients)
        if event.kind == "gradient" and event.number not in seen:
            seen.add(event.number)
            gradients += parameters[event.number].nbytes
    return most
