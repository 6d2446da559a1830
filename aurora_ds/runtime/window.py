"""Sums over the steps between two lines of the log."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor


class Window:
    """Sums since the last line of the log: losses, samples skipped, time, time spent waiting for data."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.count = self.skipped = 0
        self.waited, self.since, self._began = 0.0, time.perf_counter(), 0.0

    def waiting(self) -> Window:
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.waited += time.perf_counter() - self._began

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
            "skipped_samples": float(self.skipped),
        }
        self._reset()
        return result
