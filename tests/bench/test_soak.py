"""Three of the soak's kills on real hosts: a rank, the launcher, a host without power; and what counts as survival."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "integration"))

import separate_hosts
import soak
import soak_trials


def test_survival_needs_all_of_it() -> None:
    good = soak_trials.Trial(1, "rank", 5, 3.0, True, 0, 5, 0, 0, True)
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


def test_what_became_of_a_run_is_read_from_all_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [(step, 1.0 / step, 0.5) for step in range(1, 9)]
    for found, lost, repeated, equal in (
        (whole[:6], 0, 0, True),
        (whole[:3] + whole[4:6], 1, 0, False),
        (whole[:4] + whole[3:6], 0, 1, False),
        (whole[:5] + [(6, 0.7, 0.5)], 0, 0, False),
    ):
        monkeypatch.setattr(soak, "losses", lambda output, found=found: found)
        trial = soak_trials.Trial(1, "host 2", 5, 3.0, True, 0, 5)
        soak.settle([trial], tmp_path, whole)
        assert (trial.steps_lost, trial.steps_repeated, trial.losses_equal) == (lost, repeated, equal)


def test_trials_are_counted_by_who_was_killed() -> None:
    assert [soak_trials.family(each) for each in ("host 1", "launcher of a host", "rank")] == [
        *("host", "launcher of a host", "rank")
    ]


def test_a_run_that_does_not_go_on_is_the_fault_of_the_kill_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoProcesses:
        def __init__(self, *given: object) -> None:
            pass

        def wait(self, seconds: float) -> tuple[float, int]:
            return 0.0, 0

        def close(self) -> None:
            pass

    def killed(place: object, recipe: Path, output: Path, seed: int, commit: str) -> soak_trials.Trial:
        if seed == 3:
            raise soak.DidNotGoOn("it said nothing")
        return soak_trials.Trial(seed, "rank", 5, 3.0, True, 0, 5)

    whole = [(step, 1.0, 1.0) for step in range(1, soak.STEPS + 1)]
    for name, value in (
        *(("Run", NoProcesses), ("Place", NoProcesses), ("prepare", lambda folder: folder)),
        *(("losses", lambda output: whole), ("latest", lambda output: 5), ("kill_one", killed)),
    ):
        monkeypatch.setattr(soak, name, value)
    done = next(each for each in soak.trials(tmp_path, 3, 1, one_machine=True) if len(each) == 2)
    assert [trial.survived() for trial in done] == [True, False]


def test_trials_are_added_to_those_of_the_same_settings_alone(tmp_path: Path) -> None:
    before, path = soak_trials.Trial(4, "rank", 5, 3.0, True, 0, 5, commit="abc"), tmp_path / "soak.json"
    settings = {"hosts": 2, "steps": soak.STEPS}
    path.write_text(json.dumps(settings | {"wanted": 100, "trials": [dataclasses.asdict(before)]}))
    assert soak_trials.earlier(path, settings) == [before]
    with pytest.raises(SystemExit, match="nothing is added"):
        soak_trials.earlier(path, settings | {"hosts": 1})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_the_launcher_and_a_host_killed_at_random_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = separate_hosts.missing()
    if reason:
        pytest.skip(reason)
    # the same in fewer steps: most of a trial is its start
    epochs, between = 14, 8
    steps = soak.PAIRS // soak.BATCH * epochs
    for name, value in (("EPOCHS", epochs), ("STEPS", steps), ("MOST_STEPS_BETWEEN", between)):
        monkeypatch.setattr(soak, name, value)
    monkeypatch.setattr(soak, "LAST_KILLED", steps - 4 * between)
    *_, done = soak.trials(tmp_path, 3, first_seed=10, one_machine=False)
    assert {soak_trials.family(trial.victim) for trial in done} == {"rank", "launcher", "host"}
    assert all(trial.survived() for trial in done), done
