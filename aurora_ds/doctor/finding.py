"""A check's finding on one host, what was asked, and the check that all hosts are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NOT_REACHED = "the host was not reached"
Facts = dict[str, Any]  # of one host, as probe.py gathers them


@dataclass(frozen=True)
class Finding:
    """One check on one host. `found`: what was seen; `advice`: what to do, where it failed."""

    check: str
    host: str
    result: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Asked:
    """What was to be checked. `slots`: ranks by host, in order; the first host has rank 0."""

    slots: Mapping[str, int]
    remote: bool
    shards: tuple[str, ...] = ()
    checkpoint: str | None = None
    output: str | None = None
    port: int = 29500
    cpu: bool = False
    no_recipe: str = ""

    @property
    def hosts(self) -> list[str]:
        return list(self.slots)


def all_same(check: str, values: Mapping[str, str], absent: str, advice: str) -> dict[str, Finding]:
    """All hosts must say what most of them say (the first of those most frequent); none may lack it."""
    most = next(iter(Counter(value for value in values.values() if value).most_common(1)), ("", 0))[0]
    judged = {}
    for host, value in values.items():
        if not value:
            judged[host] = Finding(check, host, FAILED, absent, advice)
        elif value != most:
            judged[host] = Finding(check, host, FAILED, f"{value}; elsewhere {most}", advice)
        else:
            judged[host] = Finding(check, host, PASSED, value)
    return judged
