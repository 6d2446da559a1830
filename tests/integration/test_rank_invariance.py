"""Losses, gradients' work and state do not depend on the number of ranks, on the ZeRO stage, or on recomputation.

The worker takes three steps under each setting, once on 1 rank and once on 2, of one global batch: every loss, trained
value and buffer must agree to 1e-5. With accumulation the contrastive loss sees one micro-batch at a time, so
`train.accumulation=2` is another run than 1 (the same on every number of ranks, though): it equals itself, not its
unaccumulated neighbour.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TOLERANCE = 1e-5
STAGES = [f"{stage}{suffix}" for stage in range(4) for suffix in ("", ":checkpoint")]
OTHERS = ["0:rank64", "3:rank64:threshold0", "3:checkpoint:threshold0", "0:accumulate", "3:accumulate"]
VARIANTS = [*STAGES, *OTHERS]


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, torch.Tensor]]:
    """World size -> everything the worker found, named VARIANT/WHAT."""
    folder, found = tmp_path_factory.mktemp("invariance"), {}
    worker = Path(__file__).with_name("invariance_worker.py")
    for ranks in (1, 2):
        run = launch([worker, folder / f"{ranks}.safetensors", *VARIANTS], ranks)
        assert run.wait() == [0] * ranks, run.output()[-6000:]
        found[ranks] = load_file(folder / f"{ranks}.safetensors")
    return found


def part(found: dict[str, torch.Tensor], variant: str) -> dict[str, torch.Tensor]:
    return {name.partition("/")[2]: value for name, value in found.items() if name.startswith(f"{variant}/")}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() and len(found) > 20
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_equal_one(runs, variant: str) -> None:
    assert_same(part(runs[2], variant), part(runs[1], variant))


@pytest.mark.parametrize("variant", STAGES[1:])
def test_every_stage_with_and_without_checkpointing_equals_stage_0(runs, variant: str) -> None:
    assert_same(part(runs[2], variant), part(runs[1], "0"))


def test_accumulation_is_the_same_at_every_stage_and_another_run_than_without(runs) -> None:
    accumulated, plain = part(runs[1], "0:accumulate"), part(runs[1], "0")
    assert_same(part(runs[2], "3:accumulate"), accumulated)
    assert abs(float(accumulated["step2/loss"] - plain["step2/loss"])) > 1e-3
