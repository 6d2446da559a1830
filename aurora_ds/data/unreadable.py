"""Unreadable samples in training: others take their place, up to a limit, and each is listed.

A substitute is found by the plan alone, so a batch is the same on any number of ranks and every rank keeps its number
of steps. The list goes with the batch; the run gathers it from all ranks and writes bad_samples.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aurora_ds.data.media import MediaReader
from aurora_ds.data.mixture import Row
from aurora_ds.data.plan import TrainPlan
from aurora_ds.data.reader import BadSample
from aurora_ds.errors import AuroraError

# Unreadable ones in a row that stop a run whatever the share: what is wrong is not a sample.
MOST_IN_A_ROW = 100
_SHOWN = 10


class TooManyUnreadable(AuroraError):
    """The data is damaged beyond what a run should go on with. `bad`: what was met and not handed on in a batch."""

    def __init__(self, message: str, bad: list[dict[str, Any]]):
        super().__init__(message)
        self.bad = bad


def read_or_replace(
    row: Row, epoch: int, plan: TrainPlan, media: MediaReader, skip: bool, read: Callable[[Row], Any]
) -> tuple[Any, list[dict[str, Any]]]:
    """(read(row), []), or what is read of its first readable substitute and the list of those that were not readable.

    Raises TooManyUnreadable without `skip`, and when MOST_IN_A_ROW (or all that there are) cannot be read. A shard out
    of reach is no damage, and trying the next ones would take as long again: it stops the run too.
    """
    try:
        return read(row), []
    except BadSample as error:
        bad = [_entry(row, epoch, plan, media, error, substitute=False)]
        if not skip:
            raise TooManyUnreadable(
                f"Sample {_name(bad[0])} cannot be used. {error} Set data.bad_samples=skip to go on with other samples "
                "in the place of such ones.",
                bad,
            ) from error
        if error.reason == "unreachable":
            raise TooManyUnreadable(f"Sample {_name(bad[0])} cannot be reached. {error}", bad) from error
    for other in plan.substitutes(epoch, row.position, MOST_IN_A_ROW - 1).each():
        try:
            return read(other), bad
        except BadSample as error:
            bad.append(_entry(other, epoch, plan, media, error, substitute=True))
    raise TooManyUnreadable(
        f"{len(bad)} samples in a row cannot be read: {listed(bad)}. The last of them: {bad[-1]['message']} Check the "
        "folder with `aurora-ds shards verify`.",
        bad,
    )


class Limit:
    """Raises TooManyUnreadable when more samples of an epoch than `share` of its `total` were unreadable."""

    def __init__(self, share: float, total: int):
        self.share, self.total = share, total
        self._seen: list[dict[str, Any]] = []

    def add(self, bad: list[dict[str, Any]]) -> None:
        """Count these of one epoch, or of the end of one and the beginning of the next.

        Substitutes that could not be read either do not count again.
        """
        seen = self._seen + [entry for entry in bad if not entry["substitute"]]
        self._seen = [entry for entry in seen if entry["epoch"] == seen[-1]["epoch"]]
        if len(self._seen) > self.share * self.total:
            raise TooManyUnreadable(
                f"Of an epoch's {self.total} samples {len(self._seen)} could not be read, more than data.max_bad_share "
                f"({self.share:g}) allows: {listed(self._seen)}. `aurora-ds shards verify` lists all damage; "
                "bad_samples.jsonl in the output folder has what this run met. Repair the shards, or allow a larger "
                "share, and resume.",
                bad,
            )


def listed(bad: list[dict[str, Any]]) -> str:
    """The first ones and why, in words."""
    names = [f"{_name(entry)} ({entry['reason']})" for entry in bad[:_SHOWN]]
    return ", ".join(names) + (f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")


def _entry(
    row: Row, epoch: int, plan: TrainPlan, media: MediaReader, error: BadSample, substitute: bool
) -> dict[str, Any]:
    return {
        "dataset": plan.mixture.names[row.source],
        "shard": media.shard(row.source, row.medium),
        "key": media.key(row.source, row.medium),
        "medium": row.medium,
        "reason": error.reason,
        "message": str(error),
        "epoch": epoch,
        "substitute": substitute,
    }


def _name(entry: dict[str, Any]) -> str:
    key = entry["key"] or f"number {entry['medium']}"
    return f"{key} in {entry['dataset']}, {entry['shard']}"
