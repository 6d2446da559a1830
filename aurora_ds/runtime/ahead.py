"""One batch is read ahead, and all ranks agree once on each: that every loss is finite, that every rank could read the
next batch, and whether a rank was asked to end.

The agreement comes after the forward and before the backward pass: weights are never updated with what is not finite.
What it says of the next batch and of the end holds from the next step on, so the step that is under way is finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aurora_ds.runtime import process_group
from aurora_ds.runtime.quarantine import Quarantine
from aurora_ds.runtime.stop import StopRequest


class Ahead:
    """The batches of one epoch. `there`: one is read. `asked_to_end`: so it was agreed that a rank is."""

    def __init__(self, batches: Iterator[dict[str, Any]], quarantine: Quarantine, stop: StopRequest) -> None:
        self._batches, self._quarantine, self._stop = batches, quarantine, stop
        self._unreadable = False
        self.there = self.asked_to_end = False

    def read(self) -> None:
        """Wait for the next batch. What is wrong with the data is told when it is taken."""
        self._quarantine.read(self._batches)
        self.there = True

    def agree(self, finite: Tensor | None = None) -> bool:
        """Whether the losses are finite on every rank; `finite`: on this one, a bool without dimensions. Collective;
        one device sync."""
        flags = [self.there and self._quarantine.unreadable, bool(self._stop.reason), False]
        here = torch.tensor(flags, device=process_group.device(), dtype=torch.int32)
        if finite is not None:
            here[2] = ~finite
        self._unreadable, asked, broken = process_group.any_of(here)
        self.asked_to_end = self.asked_to_end or asked
        return not broken

    def take(self) -> dict[str, Any]:
        """The batch that was read and agreed on. Raises AuroraError on every rank when one of them has none."""
        self.there = False
        return self._quarantine.take(self._unreadable)
