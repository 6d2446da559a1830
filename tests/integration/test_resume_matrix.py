"""A checkpoint of any number of ranks and ZeRO stage goes on at any other: the same batches, the same losses.

All 144 pairs of (1, 2 or 4 ranks; stage 0 to 3) would take most of an hour. Of them 20 are run: every stage to every
stage, and every number of ranks to every other one and itself at least once; a checkpoint holds whole tensors, so ranks
and stages can only meet in writing and reading them, and all 12 of each are among the 20.
"""

from __future__ import annotations

import json
from itertools import product, zip_longest
from pathlib import Path

import pytest
from small_run import STEPS_PER_EPOCH, free_port

from aurora_ds.runtime.metrics_log import FILE, read

RANKS, STAGES = (1, 2, 4), (0, 1, 2, 3)
SAVED, LAST = STEPS_PER_EPOCH - 2, STEPS_PER_EPOCH + 2
SETTINGS = ["prompts.dropout=0", "backbone.text.dropout=0", "backbone.text.attention_dropout=0"]
SETTINGS += ["train.save_every=100", "evaluate.limit=4"]
Setup = tuple[int, int]  # ranks, stage


def cover() -> list[tuple[Setup, Setup]]:
    """(saved with, resumed with): see the top of this file."""
    changes = list(product(RANKS, RANKS))
    pairs = [
        ((changes[n % 9][0], before), (changes[n % 9][1], after))
        for n, (before, after) in enumerate(product(STAGES, STAGES))
    ]
    setups = list(product(RANKS, STAGES))
    savers, resumers = (
        [setup for setup in setups if all(setup != pair[n] for pair in pairs)] for n in (0, 1)
    )
    pairs += zip_longest(savers, resumers, fillvalue=setups[0])
    return pairs


def test_the_cover_has_every_change_of_stage_and_of_ranks() -> None:
    pairs = cover()
    assert {(before[1], after[1]) for before, after in pairs} == set(product(STAGES, STAGES))
    assert {(before[0], after[0]) for before, after in pairs} == set(product(RANKS, RANKS))
    for side in (0, 1):
        assert {pair[side] for pair in pairs} == set(product(RANKS, STAGES))


def figures(output: Path) -> dict[int, dict[str, float]]:
    names = ("train/loss", "train/loss_ita", "train/loss_itm", "train/gradient_norm")
    return {
        line["step"]: {name: line[name] for name in names}
        for line in read(output / FILE)
        if "train/loss" in line
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_resumed_on_other_ranks_at_another_stage(launch, recipe: Path, tmp_path: Path) -> None:
    here = Path(__file__).parent

    def run(ranks: int, jobs: list[list[object]]) -> None:
        place = tmp_path / f"jobs-{ranks}.json"
        made = [{"arguments": [str(recipe), *map(str, job)], "port": free_port()} for job in jobs]
        place.write_text(json.dumps(made))
        processes = launch([here / "resume_worker.py", place], ranks)
        assert processes.wait(900) == [0] * ranks, processes.output()[-6000:]

    def start(setup: Setup) -> Path:
        return tmp_path / f"start-{setup[0]}-{setup[1]}"

    def job(output: Path, stage: int, steps: int, *more: object) -> list[object]:
        return ["--output", output, *SETTINGS, f"train.zero_stage={stage}", f"train.max_steps={steps}", *more]

    pairs = cover()
    whole = tmp_path / "whole"
    for ranks in RANKS:
        jobs = [job(start((ranks, stage)), stage, SAVED) for stage in STAGES]
        run(ranks, jobs + [job(whole, 0, LAST)] * (ranks == 1))
    wanted = figures(whole)
    assert list(wanted) == list(range(1, LAST + 1))
    for ranks in RANKS:
        jobs = []
        for number, (before, after) in enumerate(pairs):
            if after[0] == ranks:
                jobs.append(job(tmp_path / f"{number}", after[1], LAST, "--resume", start(before)))
        run(ranks, jobs)
    for setup in product(RANKS, STAGES):
        assert_close(figures(start(setup)), {step: wanted[step] for step in range(1, SAVED + 1)}, f"{setup}")
    for number, (before, after) in enumerate(pairs):
        found = figures(tmp_path / f"{number}")
        assert_close(
            found, {step: wanted[step] for step in range(SAVED + 1, LAST + 1)}, f"{before} -> {after}"
        )


def assert_close(found: dict, wanted: dict, where: str) -> None:
    assert found.keys() == wanted.keys(), where
    for step, values in wanted.items():
        assert found[step] == pytest.approx(values, rel=1e-5, abs=1e-5), f"{where}, step {step}"
