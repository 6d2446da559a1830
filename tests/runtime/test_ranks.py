"""What all ranks measured, brought together: the collective is replaced by a table that the tests write."""

from __future__ import annotations

import pytest

from aurora_ds.runtime import process_group
from aurora_ds.runtime.ranks import Ranks, straggler_in_words

HOSTS = ["node-a", "node-a", "node-b", "node-b"]
OWN, WAIT = [1.0, 1.1, 1.5, 1.2], [0.0, 0.1, 0.4, 0.2]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Rank 1 of four on two hosts; every other figure is the same on all."""
    calls = []

    def gathered(row: list[float]) -> list[list[float]]:
        calls.append(row)
        columns = {OWN[1]: OWN, WAIT[1]: WAIT}
        return [[columns.get(value, [value] * 4)[rank] for value in row] for rank in range(4)]

    monkeypatch.setattr(process_group, "gather_objects", lambda value: HOSTS)
    monkeypatch.setattr(process_group, "gather_numbers", gathered)
    made = Ranks()
    made.calls = calls
    return made


FIGURES = {"time/own": OWN[1], "data_wait_share": WAIT[1], "skipped_samples": 3.0, "loss": 2.0, "lr": 0.5}


def test_means_largest_values_and_sums_come_from_one_collective(ranks: Ranks) -> None:
    found = ranks.reduce(FIGURES)
    assert len(ranks.calls) == 1 and len(ranks.calls[0]) == 4, "lr is the same everywhere and is not sent"
    assert found["time/own"] == pytest.approx(1.2) and found["time/own_max"] == 1.5
    assert found["skipped_samples"] == 12.0 and found["loss"] == 2.0 and found["lr"] == 0.5


def test_the_slowest_rank_is_named_with_its_host(ranks: Ranks) -> None:
    found = ranks.reduce(FIGURES)
    assert (found["ranks/straggler"], found["ranks/straggler_host"]) == (2.0, "node-b")
    assert found["ranks/spread"] == pytest.approx(0.25)
    assert straggler_in_words(found) == "rank 2 on node-b +25%"
    assert straggler_in_words(found | {"ranks/spread": 0.05}) == ""


def test_each_host_has_its_own_wait_for_data(ranks: Ranks) -> None:
    found = ranks.reduce(FIGURES)
    assert found["hosts/data_wait_share/node-a"] == pytest.approx(0.05)
    assert found["hosts/data_wait_share/node-b"] == pytest.approx(0.3)
    assert ranks.text() == "node-a: rank 0, 1\nnode-b: rank 2, 3"


def test_alone_there_is_no_straggler_and_no_host() -> None:
    found = Ranks().reduce({"time/own": 1.0, "data_wait_share": 0.5, "memory/process_mb": 7.0})
    assert found["memory/process_mb"] == found["memory/process_mb_max"] == 7.0
    assert not [name for name in found if name.startswith(("ranks/", "hosts/"))]
    assert straggler_in_words(found) == ""
