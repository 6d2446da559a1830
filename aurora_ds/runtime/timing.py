"""Where the time of a training step goes: data, forward, backward, communication, optimizer, other.

Every moment of a measured step belongs to one part: the innermost one that is open, `other` where none is. So a
collective inside backward counts as communication and not as backward, and the parts add up to the step.

Communication is the time that the step stands still in a collective call of its process groups or in the wait for
one's result, which is where all of them pass that this package, DeepSpeed or torch makes. On a CPU that is the main
thread, which also waits there for ranks that are slower. On a GPU it is the stream that the step runs on; collectives
that overlap with it on another stream cost the step nothing and are not counted.

On a CPU every step is measured, by the clock. On a GPU only the steps asked for are, by events on the stream, with a
synchronization before and after: elsewhere the host runs ahead of the device, and must not be held back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist

PARTS = ("data", "forward", "backward", "communication", "optimizer", "other")
# Methods of a process group that communicate, as far as this build of torch has them. NCCL may do so inside the call,
# on the caller's stream, gloo does in a thread of its own, for which `Work.wait` waits.
_CALLS = (
    *(
        "allreduce",
        "allreduce_coalesced",
        "reduce",
        "broadcast",
        "barrier",
        "send",
        "recv",
        "gather",
        "scatter",
    ),
    *("allgather", "_allgather_base", "all_gather_single", "allgather_coalesced"),
    *("allgather_into_tensor_coalesced", "all_gather_single_coalesced", "_end_coalescing"),
    *("reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single", "reduce_scatter_single_coalesced"),
    *("reduce_scatter_tensor_coalesced", "alltoall", "alltoall_base", "all_to_all_single"),
)
# Prefix of the ranges that a profiler sees.
RANGE = "aurora"


class StepTimes:
    """The clock of one run's steps. `profiling`: parts are also marked for torch's profiler."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.profiling = False
        self._part, self._marks, self._stream = "other", [], None
        self._counted = True
        self._reset()

    def _reset(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._measured, self._total, self._slowest = 0, 0.0, 0.0

    @contextmanager
    def step(self, measure: bool = True) -> Iterator[None]:
        """One optimizer step. On a GPU its parts are timed when `measure` says so, on a CPU always.

        A step that fails, or that was given up with `forget`, counts for nothing.
        """
        measured = measure or not self.on_gpu
        with ExitStack() as while_measured:
            if measured:
                self._synchronize()
                while_measured.enter_context(self._watching())
            self._counted = True
            began = time.perf_counter()
            yield
            if measured:
                self._mark("other")
                self._synchronize()
            seconds = time.perf_counter() - began
        if not self._counted:
            return
        self._slowest = max(self._slowest, seconds)
        if measured:
            self._measured += 1
            self._total += seconds
            for (part, since), (_, until) in zip(self._marks, self._marks[1:], strict=False):
                self._seconds[part] += self._between(since, until)

    def forget(self) -> None:
        """The step that is under way is none."""
        self._counted = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside belongs to `name`, except for parts opened inside. Costs nothing in other steps."""
        if self._stream is None:
            yield
            return
        outer = self._part
        self._mark(name)
        try:
            if self.profiling:
                with torch.profiler.record_function(f"{RANGE}/{name}"):
                    yield
            else:
                yield
        finally:
            self._mark(outer)

    def figures(self) -> dict[str, float]:
        """Seconds a step by part and in total, of the steps measured since the last call; and the longest of all steps.

        Nothing where no step was. `time/own`: without communication, what this rank itself took.
        """
        if not self._measured:
            return {}
        found = {f"time/{part}": seconds / self._measured for part, seconds in self._seconds.items()}
        total = self._total / self._measured
        found |= {
            "time/step": total,
            "time/own": total - found["time/communication"],
            "time/slowest_step": self._slowest,
        }
        self._reset()
        return found

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Inside, parts are marked and every wait for a collective is one of communication."""
        self._stream = torch.cuda.current_stream() if self.on_gpu else "cpu"
        self._part, self._marks = "other", []
        self._mark("other")
        waits = [(dist.Work, "wait", vars(dist.Work)["wait"])]
        group = vars(dist.ProcessGroup)
        waits += [(dist.ProcessGroup, name, group[name]) for name in _CALLS if name in group]
        for place, name, call in waits:
            setattr(place, name, self._as_communication(call))
        try:
            yield
        finally:
            for place, name, call in waits:
                setattr(place, name, call)
            self._stream = None

    def _as_communication(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self.on_gpu and torch.cuda.current_stream() != self._stream:
                return call(*arguments, **keywords)
            with self.part("communication"):
                return call(*arguments, **keywords)

        return timed

    def _mark(self, part: str) -> None:
        """From here on it is `part`."""
        self._part = part
        if self.on_gpu:
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record(self._stream)
        else:
            stamp = time.perf_counter()
        self._marks.append((part, stamp))

    def _between(self, since: Any, until: Any) -> float:
        return since.elapsed_time(until) / 1e3 if self.on_gpu else until - since

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
