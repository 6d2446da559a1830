"""The engine in one process: equal to a plain torch loop at every stage, and its state whole, exact and "
"portable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from toy_task import ToyTask, global_batch

from aurora_ds.config import TrainConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.engine import Engine, StepReport
from aurora_ds.runtime.schedule import learning_rate

STAGES = [0, 1, 2, 3]


def train(engine: Engine, first: int, last: int, measure: bool = False) -> list[StepReport]:
    return [
        engine.backward_and_step(engine.forward(global_batch(step))["loss"], measure_update=measure)
        for step in range(first, last)
    ]


def plain_loop(steps: int, config: TrainConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """What the engine should do, in ten lines of torch."""
    task = ToyTask()
    trainables = {name: value for name, value in task.named_parameters() if value.requires_grad}
    adam = torch.optim.AdamW(
        trainables.values(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    norms = []
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, config, 20, 5)
        adam.zero_grad()
        task(global_batch(step))["loss"].backward()
        norms.append(float(nn.utils.clip_grad_norm_(list(trainables.values()), config.clip_norm)))
        adam.step()
    return {name: value.detach().clone() for name, value in trainables.items()}, norms


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close({name: left[name]}, {name: right[name]}, atol=tolerance, rtol=0)


@pytest.mark.parametrize("stage", STAGES)
def test_steps_equal_a_plain_loop_with_clipping_decay_and_schedule(make_engine: Callable, stage: int) -> None:
    engine = make_engine(stage)
    reports = train(engine, 0, 4)
    values, norms = plain_loop(4, engine.config)
    assert_close(engine.trainable_values(), values, 1e-6)
    assert [report.grad_norm for report in reports] == pytest.approx(norms, rel=1e-5)
    assert [report.lr for report in reports] == [
        learning_rate(step, engine.config, 20, 5) for step in range(4)
    ]
    assert [report.step for report in reports] == [1, 2, 3, 4] and engine.step == 4


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loaded_state_continues_bit_for_bit(make_engine: Callable, stage: int, precision: str) -> None:
    first = make_engine(stage, precision=precision)
    train(first, 0, 3)
    state = first.optimizer_state()
    second = make_engine(stage, precision=precision)
    second.load_optimizer_state(state)
    loss_first, loss_second = (engine.forward(global_batch(3))["loss"] for engine in (first, second))
    assert torch.equal(loss_first, loss_second), "the first forward must use the loaded values"
    for engine, loss in ((first, loss_first), (second, loss_second)):
        engine.backward_and_step(loss)
        train(engine, 4, 6)
    after_first, after_second = first.optimizer_state(), second.optimizer_state()
    assert all(torch.equal(after_first[name], after_second[name]) for name in after_first)
    assert second.step == 6


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_state_of_stage_0_continues_at_other_stages_and_back(make_engine: Callable, stage: int) -> None:
    whole = make_engine(0)
    train(whole, 0, 6)
    start = make_engine(0)
    train(start, 0, 2)
    middle = make_engine(stage)
    middle.load_optimizer_state(start.optimizer_state())
    train(middle, 2, 4)
    end = make_engine(0)
    end.load_optimizer_state(middle.optimizer_state())
    train(end, 4, 6)
    assert_close(end.optimizer_state(), whole.optimizer_state(), 1e-6)


def test_the_state_names_every_trainable_and_nothing_frozen(make_engine: Callable) -> None:
    state = make_engine(1).optimizer_state()
    names = {"bank.core", "bank.factor", "bank.mode", "head.weight", "head.bias"}
    expected = {f"{name}.{part}" for name in names for part in ("master", "exp_avg", "exp_avg_sq")}
    assert state.keys() == expected | {"step", "adam_step"}
    assert state["bank.core.exp_avg"].shape == (64, 64, 64) and not state["bank.core.exp_avg"].any()


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_masters_start_from_the_values_before_the_cast(make_engine: Callable, stage: int) -> None:
    task = ToyTask()
    before = {name: value.detach().clone() for name, value in task.named_parameters() if value.requires_grad}
    engine = make_engine(stage, task=task, precision="bf16")
    assert_close(engine.trainable_values(), before, 0.0)
    assert task.trunk.weight.dtype == torch.bfloat16 and task.queue.dtype == torch.float32


def test_bf16_steps_are_the_same_at_every_stage(make_engine: Callable) -> None:
    results = []
    for stage in STAGES:
        engine = make_engine(stage, precision="bf16")
        train(engine, 0, 3)
        results.append(engine.optimizer_state())
    for result in results[1:]:
        assert_close(result, results[0], 1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_micro_batches_equal_one_batch(make_engine: Callable, stage: int) -> None:
    whole = make_engine(stage)
    train(whole, 0, 2)
    halves = make_engine(stage, accumulation=2)
    for step in range(2):
        batch = global_batch(step)
        for part in (slice(0, 4), slice(4, 8)):
            micro_batch = {key: value[part] for key, value in batch.items()}
            report = halves.backward_and_step(halves.forward(micro_batch)["loss"])
            assert (report is None) == (part.start == 0)
    assert halves.step == 2
    # Adam divides by the gradient's size, which enlarges rounding where a gradient is nearly zero.
    assert_close(halves.trainable_values(), whole.trainable_values(), 1e-5)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_the_update_ratio_is_the_norm_of_the_change_over_the_norm_before(
    make_engine: Callable, stage: int
) -> None:
    engine = make_engine(stage)
    old = engine.trainable_values()
    report = train(engine, 0, 1, measure=True)[0]
    new = engine.trainable_values()
    change = torch.cat([(new[name] - old[name]).flatten() for name in old]).double().norm()
    size = torch.cat([value.flatten() for value in old.values()]).double().norm()
    assert report.update_ratio == pytest.approx(float(change / size), rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_frozen_scalar_keeps_its_shape(make_engine: Callable, stage: int) -> None:
    engine = make_engine(stage)
    assert engine.forward(global_batch(0))["loss"].shape == ()
    assert engine.forward(global_batch(0), what="features").shape == (8, 5)


def test_cpu_offload_works_without_compiling_an_optimizer(make_engine: Callable) -> None:
    reference = make_engine(2)
    train(reference, 0, 2)
    offloaded = make_engine(2, zero={"offload_optimizer": {"device": "cpu"}})
    train(offloaded, 0, 2)
    assert_close(offloaded.trainable_values(), reference.trainable_values(), 1e-6)


def test_values_of_another_task_are_refused_by_name(make_engine: Callable) -> None:
    engine = make_engine(0)
    values = engine.trainable_values()
    values["bank.other"] = values.pop("bank.mode")
    with pytest.raises(AuroraError, match=r"missing \['bank.mode'\], unexpected \['bank.other'\]"):
        engine.load_trainable_values(values)


def test_values_of_another_shape_are_refused(make_engine: Callable) -> None:
    engine = make_engine(3)
    values = engine.trainable_values()
    values["bank.mode"] = torch.zeros(4)
    with pytest.raises(AuroraError, match=r"shape \(4,\) for bank.mode, this task has \(3,\)"):
        engine.load_trainable_values(values)


def test_a_task_with_nothing_to_train_is_refused(make_engine: Callable) -> None:
    with pytest.raises(AuroraError, match="Nothing is trainable"):
        make_engine(0, task=ToyTask().requires_grad_(False))


def test_a_trainable_scalar_is_refused_with_the_way_out(make_engine: Callable) -> None:
    task = ToyTask()
    task.temp.requires_grad_(True)
    with pytest.raises(AuroraError, match=r"temp cannot be trained.*shape \(1,\)"):
        make_engine(0, task=task)


def test_fp16_where_the_device_has_none_is_a_clear_error(make_engine: Callable) -> None:
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().is_fp16_supported():
        pytest.skip("this CPU does fp16")
    with pytest.raises(AuroraError, match="train.precision fp16.*bf16 or fp32"):
        make_engine(1, precision="fp16")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_finds_its_loss_scale_by_skipping_and_resumes_with_it(
    make_engine: Callable, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed asks for fast fp16; this toy does not need it fast.
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    engine = make_engine(stage, precision="fp16")
    reports = train(engine, 0, 12)
    assert reports[0].skipped and not reports[-1].skipped and reports[-1].grad_norm < 100
    state = engine.optimizer_state()
    assert int(state["step"]) == 12 and int(state["adam_step"]) == sum(
        not report.skipped for report in reports
    )
    resumed = make_engine(stage, precision="fp16")
    resumed.load_optimizer_state(state)
    for each in (engine, resumed):
        train(each, 12, 14)
    wanted, found = engine.optimizer_state(), resumed.optimizer_state()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


CUT = {"stage3_param_persistence_threshold": 0}


@pytest.mark.parametrize("zero", [None, CUT], ids=["small ones stay whole", "all are cut"])
@pytest.mark.parametrize("fails", [False, True])
def test_training_goes_on_after_an_evaluation_as_if_there_had_been_none(
    make_engine: Callable, zero: dict | None, fails: bool
) -> None:
    reference, engine = make_engine(3, zero=zero), make_engine(3, zero=zero)
    for each in (reference, engine):
        train(each, 0, 3)
    held = [parameter.numel() for parameter in engine.task.parameters()]
    wanted = engine.trainable_values()
    try:
        with engine.whole(), torch.no_grad():
            assert {name: value.shape for name, value in engine.task.named_parameters()} == {
                name: value.shape for name, value in ToyTask().named_parameters()
            }
            engine.eval()
            alone = engine.task(global_batch(9), what="features")
            assert torch.equal(engine.forward(global_batch(9), what="features"), alone)
            assert_close(dict(engine.trainables), wanted, 0)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert [parameter.numel() for parameter in engine.task.parameters()] == held
    engine.train()
    for each in (reference, engine):
        train(each, 3, 6)
    expected, found = reference.optimizer_state(), engine.optimizer_state()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_importing_the_engine_does_not_import_deepspeed() -> None:
    code = "import sys, aurora_ds.runtime.checkpoint; assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
