"""What all ranks measured since the last line of the log, brought together by one small collective.

Each rank sends a row of numbers (8 bytes each, about twenty), and every rank has the whole table: means, largest values
and sums over ranks, what each host waits for its data, and which rank is slowest. That is the one that others wait for
in collectives, so it is judged by the time that a step takes it without communication: with it, all take the same.
"""

from __future__ import annotations

import socket

from aurora_ds.runtime import process_group

# By the beginning of a figure's name: how it is reduced. Of `mean, max` the largest is named `NAME_max`.
_RULES = {
    "loss": ("mean",),
    "reward": ("mean",),
    "samples_per_second": ("mean",),
    "data_wait_share": ("mean", "max"),
    "skipped_samples": ("sum",),
    "time/slowest_step": ("max",),
    "time/saving": ("max",),
    "time/data": ("mean", "max"),
    "time/communication": ("mean", "max"),
    "time/own": ("mean", "max"),
    "time/": ("mean",),
    "memory/": ("mean", "max"),
    "experts/": ("sum",),
}
OWN, WAITING = "time/own", "data_wait_share"
# From this share on, a rank is named in the progress.
NOTABLE = 0.1


class Ranks:
    """The ranks of a run and their hosts. Made by all together."""

    def __init__(self) -> None:
        self.hosts: list[str] = process_group.gather_objects(socket.gethostname())

    def reduce(self, figures: dict[str, float]) -> dict[str, float | str]:
        """The figures over all ranks. One collective; every rank brings the same names.

        Names without a rule stay rank 0's own. With several ranks there are also `ranks/straggler` (the slowest rank),
        `ranks/straggler_host` (a name) and `ranks/spread` (how much longer its steps take than the mean rank's, without
        communication, as a share of that), and with several hosts `hosts/data_wait_share/HOST`.
        """
        rules = {name: rule for name in figures if (rule := _rule(name))}
        table = process_group.gather_numbers([float(figures[name]) for name in rules])
        by_name = {name: [row[column] for row in table] for column, name in enumerate(rules)}
        reduced: dict[str, float | str] = dict(figures)
        for name, rule in rules.items():
            values = by_name[name]
            reduced[name] = {"mean": _mean, "max": max, "sum": sum}[rule[0]](values)
            if rule[1:]:
                reduced[f"{name}_max"] = max(values)
        if len(table) > 1:
            reduced |= self._slowest(by_name.get(OWN, []))
        if len(set(self.hosts)) > 1:
            reduced |= self._waits(by_name.get(WAITING, []))
        return reduced

    def text(self) -> str:
        """Which ranks are on which host, a line each."""
        on: dict[str, list[int]] = {}
        for rank, host in enumerate(self.hosts):
            on.setdefault(host, []).append(rank)
        return "\n".join(f"{host}: rank {', '.join(map(str, ranks))}" for host, ranks in on.items())

    def _slowest(self, own: list[float]) -> dict[str, float | str]:
        if not own:
            return {}
        rank, mean = own.index(max(own)), _mean(own)
        return {
            "ranks/straggler": float(rank),
            "ranks/straggler_host": self.hosts[rank],
            "ranks/spread": max(own) / mean - 1.0 if mean else 0.0,
        }

    def _waits(self, waits: list[float]) -> dict[str, float | str]:
        by_host: dict[str, list[float]] = {}
        for host, wait in zip(self.hosts, waits, strict=False):
            by_host.setdefault(host, []).append(wait)
        return {f"hosts/{WAITING}/{host}": _mean(values) for host, values in by_host.items()}


def straggler_in_words(figures: dict[str, float | str]) -> str:
    """`rank 3 on node-1 +40%`, or nothing when no rank is notably slower than the mean."""
    if figures.get("ranks/spread", 0.0) < NOTABLE:
        return ""
    rank, host = int(figures["ranks/straggler"]), figures["ranks/straggler_host"]
    return f"rank {rank} on {host} +{100 * figures['ranks/spread']:.0f}%"


def _rule(name: str) -> tuple[str, ...]:
    return next((rule for beginning, rule in _RULES.items() if name.startswith(beginning)), ())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
