"""Three of the soak's kills on real processes; and what it counts as survival."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import soak


def test_survival_needs_all_of_it() -> None:
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
def test_the_host_a_rank_and_the_launcher_killed_at_random_moments(tmp_path: Path) -> None:
    done = soak.trials(tmp_path, 3, first_seed=11, ranks=2)
    assert all(trial.survived() for trial in done), done
