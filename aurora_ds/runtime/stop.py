"""A run that is asked to end (preemption): it finishes the step, saves, and ends; all ranks after the same step, which
is the one that is under way, or the next where that one's agreement (ahead.py) is past.

SIGTERM and SIGUSR1 to any rank ask for it (SLURM sends the second one ahead of the time limit with
`--signal=USR1@90`), and so does the death of the launcher (heartbeat.py).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aurora_ds.runtime import process_group

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this rank was asked to end, and whether all ranks do."""

    def __init__(self) -> None:
        self.reason = ""

    def ask(self, reason: str) -> None:
        """End at the end of a step. The first reason is the one that is told."""
        if self.reason:
            return
        self.reason = reason
        # not print: a signal may come in the middle of one
        os.write(
            2,
            f"aurora-ds: {reason}: the run ends after the step it is in or the next one, and saves it.\n".encode(),
        )

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Inside, SIGTERM and SIGUSR1 ask this run to end. Signals can only be caught by the main thread: a run in
        another one is left as it is."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._received) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> str:
        """The reasons of all ranks that were asked, or nothing where none was. Collective, between steps."""
        if not process_group.any_rank(bool(self.reason)):
            return ""
        reasons: dict[str, list[int]] = {}
        for rank, reason in enumerate(process_group.gather_objects(self.reason)):
            if reason:
                reasons.setdefault(reason, []).append(rank)
        if process_group.world_size() == 1:
            return self.reason
        return "; ".join(f"{reason} (rank {', '.join(map(str, ranks))})" for reason, ranks in reasons.items())

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)
