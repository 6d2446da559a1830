"""mPLUG on two ranks under every ZeRO stage, offload included, with prompts and fully fine-tuned: the losses of one
rank without ZeRO, and a whole adapter or model at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import STILL
from tiny_runs import entailment_shards, recipe

from aurora_ds.whole_model import FULL_FILE

SETTINGS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
FILES = {"aurora": "adapter_model.safetensors", "full": FULL_FILE}
STEPS = 3


@pytest.fixture(scope="module")
def trained(
    work, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """`method setting`: losses of a run, and what it saved. `method alone`: of one rank without ZeRO."""
    folder = tmp_path_factory.mktemp("zero")
    sections = {"prompts": {"query_transform": False, "dropout": 0.0}, "data": {"eval_split": "test"}}
    made = recipe(folder, "entailment", entailment_shards(folder), name="mplug", **sections)
    # a large eps, because Adam divides a gradient near zero by its size, and its rounding with it
    still = [*STILL, "backbone.mplug.vision_attention_dropout=0", "train.eps=1e-3", "evaluate.limit=2"]

    def job(method: str, setting: str, *settings: str) -> tuple[str, str, list[str]]:
        output = ["--output", str(folder / f"{method}-{setting}")]
        return (
            f"{method} {setting}",
            "train",
            [str(made), f"train.method={method}", *still, *settings, *output],
        )

    def with_file(setting: str) -> list[str]:
        stage = f"train.zero_stage={setting[4]}"
        return [stage, "--deepspeed-config", str(repository / "ds_configs" / f"{setting}.json")]

    (found,) = work([job(method, "alone") for method in FILES], 1)
    jobs = [job(method, setting, *with_file(setting)) for method in FILES for setting in SETTINGS]
    found |= work(jobs, 2)[0]
    saved = {
        name: load_file(folder / name.replace(" ", "-") / "adapter" / FILES[name.split()[0]])
        for name in found
    }
    return {name: (each.losses, saved[name]) for name, each in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)  # of the first, which runs all
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", FILES)
def test_two_ranks_under_any_stage_train_as_one_does(trained, method: str, setting: str) -> None:
    (alone, wanted), (losses, saved) = trained[f"{method} alone"], trained[f"{method} {setting}"]
    assert len(set(alone)) == STEPS
    assert losses == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(saved, wanted, rtol=1e-3, atol=1e-5)
