"""A run's living tensors, walked between and inside steps: what is trained decides how many are in fp32, at any stage.

A copy of the frozen backbone in fp32, wherever it hides (optimizer, DeepSpeed, autograd), would be among them.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of size 1."""
    from aurora_ds.runtime import process_group

    process_group.start()
    yield
    process_group.stop()


def living() -> dict[int, tuple[torch.dtype, int]]:
    """Storage -> dtype and bytes, of every tensor that Python can reach and that has memory."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # looking at every object wakes deprecated ones
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    for tensor in tensors:
        if tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[storage._cdata] = (tensor.dtype, storage.nbytes())
    return found


def in_fp32(before: set[int]) -> int:
    """Bytes of fp32 that were not there before."""
    new = {key: value for key, value in living().items() if key not in before}
    return sum(size for dtype, size in new.values() if dtype in (torch.float32, torch.float64))


def run_of(width: int, stage: int):
    """(engine, batch) of answering questions with a frozen backbone of that width, in bf16."""
    from aurora_ds.assemble import build_task
    from aurora_ds.config import RunConfig
    from aurora_ds.runtime.engine import build

    config = RunConfig(task="nlvr")
    backbone, train = config.backbone, config.train
    backbone.head, backbone.embed_dim, config.prompts.rank = "nlvr", 16, 4
    backbone.vision.width, backbone.text.width, backbone.text.intermediate = width, width, 4 * width
    backbone.vision.depth = backbone.text.depth = 2
    backbone.vision.heads = backbone.text.heads = 2
    backbone.vision.image_size, config.prompts.train_heads = 32, []
    train.precision, train.global_batch_size, train.zero_stage = "bf16", 2, stage
    task = build_task(config).task
    engine = build(task, train, None, total_steps=10, steps_per_epoch=10)
    ids = torch.full((2, 6), 5)
    batch = {
        "image": torch.randn(2, 2, 3, 32, 32),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "label": torch.tensor([0, 1]),
        "sample_index": torch.arange(2),
    }
    return engine, batch


def sizes(engine) -> tuple[int, int]:
    """Elements of the frozen and of the trained parameters, whole, whatever the stage has made of them."""
    counted = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in engine.task.parameters()]
    return sum(n for n, trained in counted if not trained), sum(n for n, trained in counted if trained)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fp32_is_of_the_trained_alone_while_a_frozen_backbone_trains_in_bf16(stage: int) -> None:
    before = set(living())
    engine, batch = run_of(128, stage)
    for _ in range(2):
        loss = engine.forward(batch)["loss"]
        inside = in_fp32(before)
        engine.backward_and_step(loss)
        del loss
    after, (frozen, trained) = in_fp32(before), sizes(engine)
    assert frozen > 20 * trained
    # master, two moments, a gradient; stage 3 adds its bucket, a multiple of 1024. And the batch itself.
    allowed = 4 * (6 * trained + 2 * 1024) + batch["image"].nbytes
    assert after <= allowed, f"{after} bytes of fp32 for {trained} trained and {frozen} frozen numbers"
    assert inside < 2 * frozen, "inside a step activations in fp32 come on top, but no copy of the backbone"
    engine.close()


def test_the_walk_finds_a_copy_of_the_frozen_backbone() -> None:
    before = set(living())
    engine, _ = run_of(128, 0)
    plain = in_fp32(before)
    copies = [parameter.float() for parameter in engine.task.parameters() if not parameter.requires_grad]
    frozen, _ = sizes(engine)
    assert in_fp32(before) - plain >= 4 * frozen * 0.99 and copies
    engine.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimizer_holds_the_trained_numbers_and_no_other(stage: int) -> None:
    for width in (64, 128):
        engine, batch = run_of(width, stage)
        engine.backward_and_step(engine.forward(batch)["loss"])
        _, trained = sizes(engine)
        held = [
            value.numel()
            for state in engine.partitions.adam.state.values()
            for name, value in state.items()
            if name in ("exp_avg", "exp_avg_sq")
        ]
        masters = sum(master.numel() for master in engine.partitions.local_masters())
        # padding: at most a few numbers for each trained tensor
        padding = 8 * len(engine.trainables) + 16
        assert trained <= masters <= trained + padding and 2 * trained <= sum(held) <= 2 * (trained + padding)
        engine.close()
