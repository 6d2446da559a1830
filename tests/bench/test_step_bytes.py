"""What two real ranks send in a training step is the size of what is trained, whatever the frozen backbone's size."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "integration"))

import separate_hosts
import step_bytes
import torch


def test_the_size_of_a_call_is_that_of_its_largest_tensor() -> None:
    ones = torch.ones(6)
    assert step_bytes.moved("all_reduce", (ones,), {}) == 24
    assert step_bytes.moved("all_gather", ([ones, ones], ones), {"group": None}) == 48
    assert step_bytes.moved("all_gather_into_tensor", (torch.ones(12),), {"input_tensor": ones}) == 48
    assert step_bytes.moved("all_to_all_single", (torch.ones(2), ones, [1, 1], [3, 3]), {}) == 24


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", step_bytes.STAGES)
def test_bytes_per_step_are_those_of_the_trainables_at_two_sizes_of_the_backbone(
    stage: int, tmp_path: Path
) -> None:
    if separate_hosts.missing() or shutil.which("unshare") is None:
        pytest.skip(separate_hosts.missing() or "a network of its own needs unshare (util-linux)")
    small, large = (step_bytes.measured(tmp_path, size, stage) for size in step_bytes.SIZES)
    assert large["frozen"] > 5 * small["frozen"]
    for found in (small, large):
        assert found["gradients"] == pytest.approx(found["trained"], rel=0.02), found["calls"]
        # the partitioned optimizer hands out what it has updated; at stage 0 every rank has updated all
        assert found["values"] == pytest.approx(found["trained"] if stage else 0, rel=0.02), found["calls"]
        # nothing large moves that is not counted: of the hard negatives a drawn part stays, and there are headers
        expected = step_bytes.expected_link(found)
        assert 0.8 * expected < found["link"] < 1.2 * expected + 20_000, found
        # one agreement a step: with three of them there were 5 calls a step
        assert found["calls"]["run all_reduce"] <= 3.5 * step_bytes.STEPS, found["calls"]
    assert large["task"] == pytest.approx(small["task"], rel=0.1)
    assert large["run"] == pytest.approx(small["run"], rel=0.1) and small["run"] < 2000
