"""Experts on several ranks compute, learn and are saved as those on one rank, at every stage that allows it.

The worker trains a small EVE under each setting on one global batch, with recorded noise in the place of Gumbel's; a
rank's micro-batches on 1 rank are those of 4 ranks, so that the balance loss, which is a rank's own, is the same too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

WORKER = Path(__file__).with_name("experts_worker.py")
# number of ranks -> name: method, ZeRO stage, ranks that share the experts
JOBS = {
    1: {"full": ("full", 0, 1), "aurora": ("aurora", 0, 1)},
    2: {
        **{f"full-{stage}-spread": ("full", stage, 2) for stage in range(3)},
        **{f"aurora-{stage}-spread": ("aurora", stage, 2) for stage in (0, 2)},
        **{f"full-{stage}": ("full", stage, 1) for stage in (0, 2, 3)},
        "aurora-3": ("aurora", 3, 1),
        "full-1-resumed": ("full", 1, 2),
        **{
            f"bf16-{stage}{end}": ("full", stage, n)
            for stage in (1, 2)
            for end, n in (("", 1), ("-spread", 2))
        },
    },
    4: {  # two groups of two: each expert is on two ranks, which average its gradients
        "full-0-two-groups": ("full", 0, 2),
        "full-1-two-groups": ("full", 1, 2),
        "aurora-2-two-groups": ("aurora", 2, 2),
        "full-2-over-four": ("full", 2, 4),
    },
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COMPARED = [name for ranks in (2, 4) for name in JOBS[ranks] if not name.startswith("bf16")]


@pytest.fixture(scope="module")
def found(launch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Name -> losses, norms, answers, and the state after two steps and at the end."""
    folder, results = tmp_path_factory.mktemp("experts"), {}
    for ranks, jobs in JOBS.items():
        listed: list[tuple[str, dict[str, Any]]] = []
        for name, (method, stage, spread) in jobs.items():
            settings = {"method": method, "zero_stage": stage, "expert_parallel": spread}
            if name.endswith("resumed"):
                save_file(state_in_the_middle(results["full"]), folder / "start.safetensors")
                settings["start"] = str(folder / "start.safetensors")
            if name.startswith("bf16"):
                settings["precision"] = "bf16"
            listed.append((name, settings))
        (folder / "jobs.json").write_text(json.dumps(listed))
        run = launch([WORKER, folder], ranks)
        assert run.wait(1500) == [0] * ranks, run.output()[-6000:]
        results |= {name: load_file(folder / f"{name}.safetensors") for name in jobs}
    return results


def state_in_the_middle(run: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the run had saved after two of its four steps."""
    state = {name.removeprefix("step1/"): value for name, value in run.items() if name.startswith("step1/")}
    return {name: value for name, value in state.items() if name not in ("losses", "figures")}


@pytest.mark.parametrize("name", COMPARED)
def test_equals_one_rank(found, name: str) -> None:
    run, alone = found[name], found[name.partition("-")[0]]
    if name.endswith("resumed"):  # its first two steps are the other's
        alone = {
            key: value for key, value in alone.items() if not key.startswith(("step0/", "step1/", "judged"))
        }
    assert run.keys() == alone.keys() and len(run) > 40
    for key in run.keys() - {"held/experts"}:
        torch.testing.assert_close(
            run[key], alone[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize(
    ("name", "share"),
    [("full-2-spread", 2), ("aurora-0-spread", 2), ("full-1-two-groups", 2), ("full-2-over-four", 4)],
)
def test_each_rank_holds_its_share_of_the_experts(found, name: str, share: int) -> None:
    assert int(found[name]["held/experts"]) * share == int(found["full"]["held/experts"])


@pytest.mark.parametrize("stage", [1, 2])
def test_in_bf16_only_rounding_differs(found, stage: int) -> None:
    spread, held = found[f"bf16-{stage}-spread"], found[f"bf16-{stage}"]
    torch.testing.assert_close(spread["step0/losses"], held["step0/losses"], rtol=1e-4, atol=0)
    for step in range(4):
        for figure in ("losses", "figures"):
            name = f"step{step}/{figure}"
            torch.testing.assert_close(spread[name], held[name], rtol=0.02, atol=0)
