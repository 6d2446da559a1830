"""Three of the soak's kills on real processes; and what it counts as survival."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def soak():
    sys.path.insert(0, str(BENCH))
    try:
        import soak
    finally:
        sys.path.remove(str(BENCH))
    return soak


def test_survival_needs_all_of_it(soak) -> None:
    good = soak.Trial(1, "rank", 5, 3.0, True, 5, 0, 0, True, 0)
    assert good.survived()
    for change in (
        {"ended_seconds": 61.0},
        {"said_why": False},
        {"steps_lost": 1},
        {"steps_repeated": 1},
        {"losses_equal": False},
        {"left_behind": 1},
    ):
        assert not dataclasses.replace(good, **change).survived(), change


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_host_a_rank_and_the_launcher_killed_at_random_moments(soak, tmp_path: Path) -> None:
    done = soak.trials(tmp_path, 3, first_seed=11, ranks=2)
    assert all(trial.survived() for trial in done), done
