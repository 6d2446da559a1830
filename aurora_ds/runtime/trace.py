"""Profiler traces of the steps asked for: profile/rank-00000.step-00000020.pt.trace.json in the run's folder.

Chrome's tracing page, Perfetto and TensorBoard's profiler plugin open these files. The parts of the step (timing.py)
are in them as ranges `aurora/forward`, … around torch's own operators, kernels and collectives.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.timing import StepTimes

FOLDER = "profile"


class Traces:
    """The traces of one rank. Without steps to trace, nothing happens and nothing is imported."""

    def __init__(
        self, output: str | Path, times: StepTimes, steps: Sequence[int], ranks: Sequence[int]
    ) -> None:
        """`steps`: optimizer steps, counted from 1. Raises AuroraError when a rank is named that there is not."""
        world = process_group.world_size()
        strangers = [rank for rank in ranks if rank >= world]
        if steps and strangers:
            raise AuroraError(
                f"monitor.profile_ranks names rank {', '.join(map(str, strangers))}, but this run has {world} "
                f"(0 to {world - 1}). Name ranks among these."
            )
        self.folder, self.times = Path(output) / FOLDER, times
        self.steps = frozenset(steps) if process_group.rank() in ranks else frozenset()

    def wanted(self, step: int) -> bool:
        """Whether this rank traces that step."""
        return step in self.steps

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Inside is optimizer step `number`; its trace is written afterwards where it was asked for. A disk that
        refuses it makes a warning."""
        if not self.wanted(number):
            yield
            return
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if self.times.on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self.times.profiling = True
        try:
            with profile(activities=activities, record_shapes=True) as trace:
                yield
        finally:
            self.times.profiling = False
        self._write(trace, file_of(self.folder.parent, process_group.rank(), number))

    def _write(self, trace: torch.profiler.profile, path: Path) -> None:
        temporary = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(temporary))
            os.replace(temporary, path)
        except OSError as error:  # of this rank alone: the others are in the next step already
            warnings.warn(
                f"The trace {path} cannot be written: {error.strerror or error}. The run goes on.",
                stacklevel=2,
            )


def file_of(output: str | Path, rank: int, step: int) -> Path:
    """Where the trace of a rank's step is."""
    return Path(output) / FOLDER / f"rank-{rank:05d}.step-{step:08d}.pt.trace.json"
