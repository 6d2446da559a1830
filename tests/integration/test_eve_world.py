"""EVE's fine-tuning in the toy world: prompts and heads on the built-in EVE learn from what they see."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aurora_ds.quickstart.tasks import TASKS, make_shards

# Least accuracy above the frozen backbone, and above the same training and evaluation with grey pictures. Statements
# about two pictures come in pairs of which one is true, so words alone give 50: that baseline is not run again.
# Measured: scripts/bench/results/world_tasks.md.
MARGINS = {"eve_vqa": (10, 12), "eve_nlvr": (8, None)}
CHANCE = 50
SECONDS = 240  # of processor time


def test_every_task_of_eve_is_in_the_world() -> None:
    tasks = {name for name, task in TASKS.items() if task.family == "eve"}
    assert tasks == {"eve_retrieval", *MARGINS}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", list(MARGINS))
def test_a_task_is_learned_from_what_is_seen(task: str, tmp_path: Path) -> None:
    from aurora_ds import evaluate, train
    from aurora_ds.recipe import load_config

    settings = [f"data.shards={make_shards(task, tmp_path)}", "data.workers=0"]
    settings += ["monitor.tensorboard=false", "monitor.gallery_queries=0"]
    config = load_config(TASKS[task].recipe, settings)
    started = time.process_time()
    untrained = evaluate.run(config, None, tmp_path / "frozen")["metrics"]["accuracy"]
    trained = train.run(config, tmp_path / "aurora")["metrics"]["accuracy"]
    above_untrained, above_blind = MARGINS[task]
    assert trained >= untrained + above_untrained
    if above_blind is None:
        assert trained >= CHANCE + above_untrained
    else:
        blind = train.run(
            load_config(TASKS[task].recipe, [*settings, "data.media=blank"]), tmp_path / "blind"
        )
        assert trained >= blind["metrics"]["accuracy"] + above_blind
    assert time.process_time() - started < SECONDS
