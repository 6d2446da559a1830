"""Sums over the steps between two lines of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class Window:
    """Sums since the last line of the log: losses, samples skipped, time, time spent waiting for data."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.count = self.skipped = 0
        self.waited = self.saved = 0.0
        self.since = time.perf_counter()

    def timed(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same batches; what this rank waits for each is summed, without what it then waits for other ranks."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What happens inside is the writing of a checkpoint."""
        began = time.perf_counter()
        yield
        self.saved += time.perf_counter() - began

    def add(self, losses: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value.detach()
        self.count += 1
        self.skipped += int(batch.get("skipped", 0))

    def figures(self, global_batch_size: int) -> dict[str, float]:
        """Means since the last call, which starts a new window."""
        elapsed = time.perf_counter() - self.since
        result = {name: float(value) / self.count for name, value in self.losses.items()}
        result |= {
            "samples_per_second": self.count * global_batch_size / elapsed,
            "data_wait_share": self.waited / elapsed,
            "time/saving": self.saved / self.count,
            "skipped_samples": float(self.skipped),
        }
        self._reset()
        return result
