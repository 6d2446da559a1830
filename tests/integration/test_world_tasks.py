"""Every task of the toy world, from raw files to a result: the frozen small backbone learns it with Aurora prompts in
under two minutes, and better than it could without training or without seeing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aurora_ds.quickstart.tasks import TASKS, make_shards

# Points of the task's headline metric that Aurora must be above the frozen backbone, and above the same training and
# evaluation with grey pictures. Measured: scripts/bench/results/world_tasks.md.
MARGINS = {
    "vqa": (6, 20),
    "videoqa": (20, 25),
    "video_retrieval": (20, 40),
    "caption": (8, 20),
    "nlvr": (15, 15),
    "grounding": (8, 30),
    "mplug_vqa": (8, 20),
    "mplug_caption": (20, 40),
    "mplug_video_caption": (30, 10),
    "mplug_nlvr": (12, 12),
    "mplug_entailment": (12, 12),
}
# measured there alone
WITHOUT = {
    "mplug_retrieval",
    "mplug_video_retrieval",
    "mplug_videoqa",
}
ONE_FRAME = 4  # points that answers about clips lose when one frame stands for four
SECONDS = 120  # of processor time, which a busy machine does not stretch; two cores have twice that


def test_every_task_but_those_of_eve_has_its_margin() -> None:
    """EVE's have tests of their own."""
    assert MARGINS.keys() | WITHOUT == {name for name, task in TASKS.items() if task.family != "eve"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tasks of one kind of data find it drawn."""
    return tmp_path_factory.mktemp("world")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", list(MARGINS))
def test_aurora_learns_the_task_from_what_it_sees(task: str, world: Path, tmp_path: Path) -> None:
    from aurora_ds import evaluate, train
    from aurora_ds.recipe import load_config
    from aurora_ds.wiring import of

    settings = [f"data.shards={make_shards(task, world)}", "data.workers=0"]
    settings += ["monitor.tensorboard=false", "monitor.gallery_queries=0"]
    config = load_config(TASKS[task].recipe, settings)
    untrained = evaluate.run(config, None, tmp_path / "frozen")
    started = time.process_time()
    trained = train.run(config, tmp_path / "aurora")
    assert time.process_time() - started < SECONDS
    blind = train.run(load_config(TASKS[task].recipe, [*settings, "data.media=blank"]), tmp_path / "blind")

    metric = of(config).headline
    above_untrained, above_blind = MARGINS[task]
    assert (untrained["method"], trained["method"]) == ("frozen", "aurora")
    assert trained["metrics"][metric] >= untrained["metrics"][metric] + above_untrained
    assert trained["metrics"][metric] >= blind["metrics"][metric] + above_blind
    if task == "videoqa":
        middle = ["data.video.frames=1", "data.video.eval_sampling=centre"]
        still = load_config(TASKS[task].recipe, [*settings, *middle])
        one_frame = evaluate.run(still, tmp_path / "aurora", tmp_path / "one_frame")
        assert trained["metrics"][metric] >= one_frame["metrics"][metric] + ONE_FRAME
