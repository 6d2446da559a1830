"""Each guard stops a run that cannot learn, and names what is at fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from toy_task import ToyTask, global_batch

from aurora_ds.errors import AuroraError
from aurora_ds.runtime.guards import Guards


class WithUnused(ToyTask):
    """A trainable that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(4))


class WithDeadPath(ToyTask):
    """A trainable whose gradient is zero: it is multiplied by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, batch: dict, what: str = "loss") -> dict:
        losses = super().forward(batch, what)
        return {"loss": losses["loss"] + (self.dead * 0.0).sum()}


def run(engine, guards: Guards, steps: int) -> None:
    for step in range(steps):
        guards.after_step(engine.backward_and_step(engine.forward(global_batch(step))["loss"]))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_healthy_run_passes(make_engine: Callable, stage: int, precision: str) -> None:
    engine = make_engine(stage, precision=precision)
    run(engine, Guards(engine, moved_after=3), 4)


def test_a_trainable_outside_the_optimizer_is_named(make_engine: Callable) -> None:
    engine = make_engine(0)
    engine.task.trunk.bias.requires_grad_(True)
    with pytest.raises(AuroraError, match="left out trunk.bias"):
        Guards(engine, moved_after=3)


def test_a_parameter_frozen_after_the_engine_was_built_is_named(make_engine: Callable) -> None:
    engine = make_engine(1)
    engine.task.head.bias.requires_grad_(False)
    with pytest.raises(AuroraError, match="frozen but held head.bias"):
        Guards(engine, moved_after=3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_trainable_without_gradient_is_named_after_step_1(make_engine: Callable, stage: int) -> None:
    engine = make_engine(stage, task=WithUnused())
    with pytest.raises(AuroraError, match="After step 1 .* none for unused,"):
        run(engine, Guards(engine, moved_after=3), 1)


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_the_run(
    make_engine: Callable, stage: int, precision: str
) -> None:
    engine = make_engine(stage, precision=precision)
    before = engine.trainable_values()
    engine.trainables["bank.mode"].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(
        AuroraError, match="not finite in step 1 for bank.mode, so the weights were not updated"
    ):
        run(engine, Guards(engine, moved_after=3), 1)
    assert all(torch.equal(value, before[name]) for name, value in engine.trainable_values().items())


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_trainable_that_only_decays_has_not_moved(make_engine: Callable, stage: int) -> None:
    engine = make_engine(stage, task=WithDeadPath(), weight_decay=0.5)
    with pytest.raises(AuroraError, match=r"After 3 steps .* not moved: dead\."):
        run(engine, Guards(engine, moved_after=3), 3)


def test_a_loss_that_is_not_finite_names_the_samples(make_engine: Callable) -> None:
    guards = Guards(make_engine(0), moved_after=3)
    guards.check_losses({"loss": torch.tensor(1.0)}, ["a"], step=1)
    losses = {"loss_itc": torch.tensor(1.0), "loss": torch.tensor(float("inf"))}
    with pytest.raises(AuroraError, match="not finite in step 7: loss, on the samples cat.jpg, dog.jpg"):
        guards.check_losses(losses, ["cat.jpg", "dog.jpg"], step=7)
