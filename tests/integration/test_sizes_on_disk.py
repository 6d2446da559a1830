"""What a BLIP-base run leaves on disk at rank 32: adapter at most 3 MB, checkpoint without queues at most 12 MB."""

import pytest

from aurora_ds.assemble import build_task
from aurora_ds.config import PromptConfig, RunConfig, TrainConfig, VisionConfig
from aurora_ds.prompts.adapter import describe, save_adapter
from aurora_ds.runtime import checkpoint, process_group
from aurora_ds.runtime.engine import build

MEGABYTE = 10**6


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def base_task():
    config = RunConfig(prompts=PromptConfig(rank=32), train=TrainConfig(global_batch_size=8))
    config.backbone.vision = VisionConfig(image_size=224)
    return build_task(config).task


def test_adapter_and_checkpoint_sizes(base_task, tmp_path):
    process_group.start()
    try:
        engine = build(base_task, base_task.config.train, None, 1, 1)
        base_task.prompts.refresh(momentum=0.995)  # the momentum slot exists from the first step on
        identity = {"name": "random", "sha256": "0" * 64}

        def adapter_files(values):
            prefix = "prompts.banks.default."
            tensors = {name.removeprefix(prefix): value for name, value in values.items()}
            return tensors, describe(base_task.prompts, "default", identity)

        buffers = base_task.buffers_to_save(with_queue=False)
        path = checkpoint.save(tmp_path, 1, engine, adapter_files, {}, buffers)
        save_adapter(tmp_path / "adapter", *adapter_files(engine.trainable_values()))
    finally:
        process_group.stop()
    assert any(name.startswith("momentum.") for name in buffers)
    assert MEGABYTE < bytes_in(tmp_path / "adapter") <= 3 * MEGABYTE
    assert 4 * MEGABYTE < bytes_in(path) <= 12 * MEGABYTE
