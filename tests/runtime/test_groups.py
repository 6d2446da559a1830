"""A rate of its own for the image encoder, and parameters that do not decay: as two groups of plain AdamW, at every
stage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy_task import global_batch

from aurora_ds.config import TrainConfig
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config
from aurora_ds.runtime.groups import Group, groups_of
from aurora_ds.runtime.guards import Guards
from aurora_ds.runtime.schedule import learning_rate

SETTINGS = {"lr": 1e-2, "vision_lr": 2e-3, "no_decay": ["bias"], "weight_decay": 0.3, "warmup_steps": 2}
NAMES = ["model.visual_encoder.weight", "model.visual_encoder.bias", "model.head.weight", "model.head.bias"]


class Seeing(nn.Module):
    """Regression from 16 to 5 numbers by an image encoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"visual_encoder": nn.Linear(16, 8), "head": nn.Linear(8, 5)})

    def forward(self, batch: dict[str, Tensor], what: str = "loss") -> dict[str, Tensor]:
        out = self.model["head"](torch.tanh(self.model["visual_encoder"](batch["image"])))
        return {"loss": (out.float() - batch["target"].float()).square().mean()}


def test_names_decide_the_group():
    config = TrainConfig(**SETTINGS)
    assert groups_of(NAMES, config) == [
        Group((NAMES[0],), 2e-3, 0.3),
        Group((NAMES[1],), 2e-3, 0.0),
        Group((NAMES[2],), 1e-2, 0.3),
        Group((NAMES[3],), 1e-2, 0.0),
    ]
    assert groups_of(NAMES, TrainConfig(lr=1e-2, weight_decay=0.3)) == [Group(tuple(NAMES), 1e-2, 0.3)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_equal_plain_groups_and_a_loaded_state_continues(
    make_engine: Callable, stage: int, precision: str
):
    engine = make_engine(stage, task=Seeing(), precision=precision, clip_norm=0.0, **SETTINGS)
    guards = Guards(engine, moved_after=2)
    task, config = Seeing(), engine.config
    plain = torch.optim.AdamW(
        [
            {
                "params": [task.get_parameter(name)],
                "weight_decay": 0.0 if "bias" in name else 0.3,
                "base": base,
            }
            for name, base in zip(NAMES, (2e-3, 2e-3, 1e-2, 1e-2), strict=True)
        ]
    )
    saved = {}
    for step in range(4):
        if step == 2:
            saved = engine.optimizer_state()
        report = engine.backward_and_step(engine.forward(global_batch(step))["loss"])
        guards.after_step(report)
        for group in plain.param_groups:
            group["lr"] = learning_rate(step, config, 20, 5, group["base"])
        plain.zero_grad()
        task(global_batch(step))["loss"].backward()
        plain.step()
        assert set(report.rates) == {group["lr"] for group in plain.param_groups}
        assert report.lr == learning_rate(step, config, 20, 5)
    values = engine.trainable_values()
    tolerance = 1e-6 if precision == "fp32" else 5e-3
    for name in NAMES:
        torch.testing.assert_close(values[name], task.get_parameter(name).detach(), atol=tolerance, rtol=0)

    again = make_engine(stage, task=Seeing(), precision=precision, clip_norm=0.0, **SETTINGS)
    again.load_optimizer_state(saved)
    for step in (2, 3):
        again.backward_and_step(again.forward(global_batch(step))["loss"])
    assert all(torch.equal(again.trainable_values()[name], values[name]) for name in NAMES)


def test_a_rate_of_the_image_encoder_is_for_full_fine_tuning_alone():
    with pytest.raises(AuroraError, match="train.vision_lr is the rate of the image encoder's own weights"):
        load_config("retrieval_coco", ["train.vision_lr=1e-6"])
    assert (
        load_config("retrieval_coco", ["train.vision_lr=1e-6", "train.method=full"]).train.vision_lr == 1e-6
    )
    with pytest.raises(AuroraError, match=r"train.min_lr \(2e-06\) must not exceed train.vision_lr"):
        load_config("retrieval_coco", ["train.vision_lr=1e-6", "train.method=full", "train.min_lr=2e-6"])
