"""Learning-rate schedules against the published values, and the per-step cosine's own shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.config import TrainConfig
from aurora_ds.runtime.schedule import (
    cosine_lr_schedule,
    itc_alpha,
    learning_rate,
    step_lr_schedule,
    warmup_lr_schedule,
)


@pytest.fixture
def published(goldens: Path) -> dict:
    return json.loads((goldens / "blip" / "schedules.json").read_text())


def test_cosine_per_epoch_equals_the_published_values(published: dict) -> None:
    for case in published["cosine_lr_schedule"]:
        assert case.pop("lr") == pytest.approx(cosine_lr_schedule(**case), rel=1e-12, abs=1e-20)


def test_warmup_equals_the_published_values(published: dict) -> None:
    for case in published["warmup_lr_schedule"]:
        assert case.pop("lr") == pytest.approx(warmup_lr_schedule(**case), rel=1e-12)


def test_step_decay_equals_the_published_values(published: dict) -> None:
    for case in published["step_lr_schedule"]:
        assert case.pop("lr") == pytest.approx(step_lr_schedule(**case), rel=1e-12)


def test_alpha_ramp_equals_the_published_values(published: dict) -> None:
    for case in published["itc_alpha"]["values"]:
        assert case.pop("value") == pytest.approx(itc_alpha(**case), rel=1e-12)


def test_cosine_epoch_recipe_is_constant_within_an_epoch_and_equals_the_published_values(
    published: dict,
) -> None:
    for case in published["cosine_lr_schedule"]:
        config = TrainConfig(
            schedule="cosine_epoch", lr=case["init_lr"], min_lr=case["min_lr"], epochs=case["max_epoch"]
        )
        first = case["epoch"] * 100
        for step in (first, first + 50, first + 99):
            rate = learning_rate(step, config, 100 * case["max_epoch"], 100)
            assert rate == pytest.approx(case["lr"], rel=1e-12, abs=1e-20)


def test_cosine_per_step_warms_up_linearly_then_falls_to_the_floor() -> None:
    config = TrainConfig(schedule="cosine", lr=1.0, min_lr=0.1, warmup_steps=10, warmup_lr=0.5)
    rates = [learning_rate(step, config, 110, 10) for step in range(111)]
    assert rates[0] == 0.5 and rates[5] == pytest.approx(0.75) and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(earlier >= later for earlier, later in zip(rates[10:], rates[11:], strict=False))


def test_steps_after_the_last_keep_the_floor() -> None:
    config = TrainConfig(schedule="cosine", lr=1.0, min_lr=0.1)
    assert learning_rate(500, config, 100, 10) == pytest.approx(0.1)


def test_constant_keeps_the_rate_after_warmup() -> None:
    config = TrainConfig(schedule="constant", lr=0.3, warmup_steps=2)
    assert [learning_rate(step, config, 10, 5) for step in (0, 1, 2, 9)] == [0.0, 0.15, 0.3, 0.3]
