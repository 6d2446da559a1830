"""Fixtures for tests of the runtime: a process group of one, and engines over the toy task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

# Tests of one process run on the CPU also where there are GPUs; read by DeepSpeed when it is imported.
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of size 1 for the tests of a file."""
    from aurora_ds.runtime import process_group

    process_group.start()
    yield
    process_group.stop()


@pytest.fixture
def make_engine(alone: None) -> Iterator[Callable]:
    """`make_engine(stage, task=…, **train settings)`: engines that are closed after the test."""
    from toy_task import ToyTask

    from aurora_ds.config import TrainConfig
    from aurora_ds.runtime.engine import build

    made = []

    def make(stage: int = 0, task=None, zero: dict | None = None, **settings):
        defaults = {"global_batch_size": 8, "lr": 1e-2, "clip_norm": 1.0, "zero_stage": stage}
        config = TrainConfig(**(defaults | settings))
        deepspeed_config = None if zero is None else {"zero_optimization": {"stage": stage, **zero}}
        engine = build(task or ToyTask(), config, deepspeed_config, total_steps=20, steps_per_epoch=5)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()
