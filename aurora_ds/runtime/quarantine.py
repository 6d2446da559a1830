"""bad_samples.jsonl in the run's folder: every unreadable sample that training met, of all ranks, once; counts, limit.

Ranks hand in what they met at the same points of the run, so the file has one writer. A line: dataset, shard, key (null
where it cannot be read either), number of the medium, reason, message, epoch. A sample is in it once, however often it
was met, also after the run was resumed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.data.unreadable import Limit
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.metrics_log import read
from aurora_ds.runtime.monitor import Monitor
from aurora_ds.runtime.run_folder import replace_file, writing

FILE = "bad_samples.jsonl"


class Quarantine:
    """What one run met. Every rank makes one; only rank 0 writes."""

    def __init__(self, output: str | Path, limit: Limit, fresh: bool = True) -> None:
        """`limit`: of all ranks together. `fresh`: the run begins anew, and so does the list."""
        self.path, self.limit = Path(output) / FILE, limit
        if fresh and process_group.rank() == 0:
            self.path.unlink(missing_ok=True)
        self._mine: list[dict[str, Any]] = []
        self._next: dict[str, Any] = {"bad": []}
        self._wrong = ""
        self._listed: set[tuple[Any, ...]] | None = None
        self.reasons: Counter[str] = Counter()  # over all ranks, since this process began
        self.shards: Counter[tuple[str, str]] = Counter()  # (shard, reason)

    def read(self, batches: Iterator[dict[str, Any]]) -> None:
        """Read the next batch for `take`. What is wrong with the data is kept until then."""
        try:
            self._next, self._wrong = next(batches), ""
        except AuroraError as error:
            self._next, self._wrong = {"bad": getattr(error, "bad", [])}, str(error)

    @property
    def unreadable(self) -> bool:
        """Whether the batch that `read` asked for could not be had here."""
        return bool(self._wrong)

    def take(self, unreadable_somewhere: bool) -> dict[str, Any]:
        """The batch. What is wrong with the data on one rank, as all know by then, stops all of them with its message:
        then collective."""
        self._mine += self._next["bad"]
        if unreadable_somewhere:
            self._gather()
            process_group.stop_together(not self._wrong, self._wrong)
        return self._next

    def collect(self, monitor: Monitor, step: int, samples: int) -> None:
        """List what all ranks met since the last call, show the counts, and stop above the limit. Collective.

        Figures are counts by reason, a table has them by shard. Raises AuroraError on every rank alike.
        """
        met = self._gather()
        monitor.scalars({f"bad_samples/{reason}": n for reason, n in self.reasons.items()}, step, samples)
        rows = [f"{count:8d}  {reason:14s} {shard}" for (shard, reason), count in sorted(self.shards.items())]
        monitor.text("bad_samples", "\n".join(["unreadable  reason  shard", *rows]), step)
        self.limit.add(met)

    def _gather(self) -> list[dict[str, Any]]:
        met = [entry for rank in process_group.gather_objects(self._mine) for entry in rank]
        self._mine = []
        for entry in met:
            self.reasons[entry["reason"]] += 1
            self.shards[f"{entry['dataset']}, {entry['shard']}", entry["reason"]] += 1
        process_group.first_rank(self._append, met)
        return met

    def _append(self, met: list[dict[str, Any]]) -> None:
        if self._listed is None:
            there = read(self.path)
            self._listed = {_place(line) for line in there}
            if there:  # a killed run may have left a torn line, which nothing can be appended to
                replace_file(self.path, "".join(json.dumps(line) + "\n" for line in there))
        lines = []
        for entry in met:
            if _place(entry) not in self._listed:
                self._listed.add(_place(entry))
                lines.append(json.dumps({key: entry[key] for key in entry if key != "substitute"}) + "\n")
        if lines:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))


def _place(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["dataset"], entry["shard"], entry["medium"]
