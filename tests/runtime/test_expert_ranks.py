"""What cannot be spread is refused in words, before any group is made; an idle expert does not end a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toy_task import ToyTask, global_batch

from aurora_ds.backbones.experts import ExpertFeedForward
from aurora_ds.config import TrainConfig
from aurora_ds.config.eve import ExpertConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.expert_ranks import spread
from aurora_ds.runtime.guards import Guards


@pytest.mark.parametrize(
    ("ranks", "train", "zero", "said"),
    [
        (3, {"expert_parallel": 2}, {"stage": 0}, "3 ranks are no multiple of it"),
        (
            4,
            {"expert_parallel": 4},
            {"stage": 0},
            "the 6 experts of moe.experts cannot be shared equally by 4 ranks",
        ),
        (2, {"expert_parallel": 2}, {"stage": 3}, "works with ZeRO stages 0 to 2.*train.zero_stage=2"),
        (2, {"expert_parallel": 2, "precision": "bf16"}, {"stage": 0}, "needs ZeRO stage 1 or 2"),
        (
            2,
            {"expert_parallel": 2},
            {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            "do not go together",
        ),
    ],
)
def test_what_cannot_be_spread(
    monkeypatch: pytest.MonkeyPatch, ranks: int, train: dict[str, Any], zero: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(process_group, "world_size", lambda: ranks)
    layer = ExpertFeedForward(4, 8, ExpertConfig(experts=6))
    with pytest.raises(AuroraError, match=said):
        spread(layer, TrainConfig(**train), {"zero_optimization": zero})


def test_a_backbone_without_experts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "world_size", lambda: 2)
    with pytest.raises(AuroraError, match="this backbone has no experts"):
        spread(ToyTask(), TrainConfig(expert_parallel=2), {"zero_optimization": {"stage": 0}})


class WithExperts(ToyTask):
    """Every token goes to the first of three experts, or, `broken`, to none."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.broken = broken

    def forward(self, batch: dict[str, torch.Tensor], what: str = "loss") -> Any:
        out = super().forward(batch, "features")
        rows = out.split([0 if self.broken else len(out), 0, len(out) if self.broken else 0])
        used = torch.cat([expert(block) for expert, block in zip(self.experts, rows, strict=True)])
        return {"loss": (out + (0 if self.broken else 1) * used).square().mean()}


@pytest.mark.parametrize("broken", [False, True])
def test_an_idle_expert_has_not_failed_to_learn_but_all_of_them_have(
    make_engine: Callable, broken: bool
) -> None:
    engine = make_engine(task=WithExperts(broken), weight_decay=0.0, moved_after=2)
    guards = Guards(engine, 2)
    for step in range(2):
        report = engine.backward_and_step(engine.forward(global_batch(step))["loss"])
        if step == 1 and broken:
            with pytest.raises(AuroraError, match=r"have not moved: experts\.0\.bias, experts\.0\.weight"):
                guards.after_step(report)
        else:
            guards.after_step(report)
