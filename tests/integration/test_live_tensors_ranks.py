"""Living tensors of two ranks: the optimizer's and the gradients' memory of a rank is its share of what is trained, and
the frozen backbone is there once, in bf16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import environment, free_port

pytestmark = pytest.mark.slow
RANKS = 2


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> list[dict[str, int]]:
    """What each rank held at each stage."""
    folder = tmp_path_factory.mktemp("live")
    here = Path(__file__).parent
    shared = environment(repository) | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(RANKS),
        "PYTHONPATH": f"{repository}:{here}",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(here / "live_tensors_worker.py"), str(folder / f"{rank}.json")],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{rank}.log").open("w"),
        )
        for rank in range(RANKS)
    ]
    ended = [rank.wait(800) for rank in ranks]
    logs = "\n".join((folder / f"{rank}.log").read_text()[-2000:] for rank in range(RANKS))
    assert ended == [0] * RANKS, logs
    return [each for rank in range(RANKS) for each in json.loads((folder / f"{rank}.json").read_text())]


@pytest.mark.timeout(900)
def test_a_rank_has_its_share_of_masters_and_moments_and_no_others(figures: list[dict[str, int]]) -> None:
    assert [each["stage"] for each in figures] == [1, 2, 3] * RANKS
    for each in figures:
        share, padding = each["trained"] / RANKS, each["padding"]
        assert abs(each["masters"] - share) <= padding and abs(each["moments"] - 2 * share) <= 2 * padding, (
            each
        )


@pytest.mark.timeout(900)
def test_fp32_is_of_the_trained_alone(figures: list[dict[str, int]]) -> None:
    for each in figures:
        assert each["frozen"] > 20 * each["trained"]
        # a share of masters, moments and a gradient; buckets, of a multiple of 1024 numbers; the batch itself
        allowed = 4 * (4 * each["trained"] / RANKS + 2 * each["trained"] + 4 * 1024) + each["batch"]
        assert each["fp32"] <= allowed, each


@pytest.mark.timeout(900)
def test_all_that_lives_is_the_weights_once_and_what_is_trained(figures: list[dict[str, int]]) -> None:
    for each in figures:
        weights = 2 * (each["frozen"] + each["trained"])
        # gradients in bf16 and their bucket come on top of what is in fp32
        trained = each["fp32"] + 2 * 3 * (each["trained"] + 1024)
        assert each["all"] <= weights * 1.02 + trained, each
        if each["stage"] == 3:
            assert each["all"] < 0.8 * weights, "the weights of stage 3 are cut"
