"""Run by test_rank_invariance.py on each rank: a few steps of the real task under many engine settings, on
one global batch.

Usage: python invariance_worker.py OUTPUT.safetensors VARIANT…  with the usual RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT. A variant is STAGE[:checkpoint][:rank64][:threshold0][:accumulate]
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

from aurora_ds.assemble import build_task
from aurora_ds.config import (
    BackboneConfig,
    PromptConfig,
    RetrievalConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from aurora_ds.runtime import process_group
from aurora_ds.runtime.engine import build

STEPS, ROWS = 3, 8


def accumulation(variant: str) -> int:
    return 2 if "accumulate" in variant else 1


def configuration(variant: str) -> RunConfig:
    options = variant.split(":")[1:]
    return RunConfig(
        backbone=BackboneConfig(
            vision=VisionConfig(image_size=32, patch_size=8, width=64, depth=2, heads=2),
            text=TextConfig(
                vocab_size=60,
                width=64,
                depth=2,
                heads=2,
                intermediate=128,
                max_positions=20,
                dropout=0.0,
                attention_dropout=0.0,
                cls_id=1,
                sep_id=2,
                bos_id=58,
                enc_id=59,
            ),
            embed_dim=16,
            activation_checkpointing="checkpoint" in options,
        ),
        prompts=PromptConfig(rank=64 if "rank64" in options else 32, dropout=0.0),
        retrieval=RetrievalConfig(queue_size=20, max_tokens=12, alpha=0.4),
        train=TrainConfig(
            global_batch_size=ROWS,
            accumulation=accumulation(variant),
            lr=1e-4,  # the largest published one
            # Where a gradient is smaller than its own rounding, Adam's direction is the rounding's unless eps is
            # larger; half batches leave a handful of such entries in the core.
            eps=1e-6 if "accumulate" in variant else 1e-8,
            zero_stage=int(variant[0]),
            epochs=1,
            weight_decay=0.05,
        ),
    )


def global_batch(step: int) -> dict:
    generator = torch.Generator().manual_seed(100 + step)
    lengths = torch.randint(4, 12, (ROWS,), generator=generator)
    ids = torch.randint(3, 58, (ROWS, 12), generator=generator)
    ids[:, 0] = 1
    mask = (torch.arange(12) < lengths[:, None]).long()
    media = torch.randint(0, 6, (ROWS,), generator=generator)  # some rows show the same medium
    return {
        "image": torch.randn(ROWS, 3, 32, 32, generator=generator),
        "input_ids": ids * mask,
        "attention_mask": mask,
        "media_index": media,
        "sample_index": torch.randint(0, 10_000, (ROWS,), generator=generator),
    }


def micro_batches(batch: dict, count: int) -> list[dict]:
    """Consecutive rows, as the reading plan cuts a step."""
    size = ROWS // count
    return [{name: value[i * size : (i + 1) * size] for name, value in batch.items()} for i in range(count)]


def own_rows(batch: dict, rank: int, world: int) -> dict:
    """Rows i with i % world == rank, texts cut to the longest among them."""
    own = {name: value[rank::world] for name, value in batch.items()}
    longest = int(own["attention_mask"].sum(1).max())
    return own | {name: own[name][:, :longest] for name in ("input_ids", "attention_mask")}


def run(variant: str) -> dict[str, torch.Tensor]:
    config = configuration(variant)
    task = build_task(config).task
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # V is born zero; with values in it every factor gets a gradient in the first step
        for name, parameter in task.prompts.bank.named_parameters():
            if name.startswith("up_"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    settings = {"zero_optimization": {"stage": config.train.zero_stage}}
    if "threshold0" in variant:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    engine = build(task, config.train, settings, STEPS, STEPS)
    engine.train()
    found = {}
    for step in range(STEPS):
        total: dict[str, float] = {}
        for batch in micro_batches(global_batch(step), config.train.accumulation):
            batch = own_rows(batch, process_group.rank(), process_group.world_size())
            losses = engine.forward(batch, what="loss", step=step, alpha=0.4)
            table = process_group.gather_numbers([float(value) for value in losses.values()])
            for name, column in zip(losses, zip(*table, strict=True), strict=True):
                total[name] = total.get(name, 0.0) + sum(column) / len(column)
            engine.backward_and_step(losses["loss"])
        found |= {
            f"{variant}/step{step}/{name}": torch.tensor(value / config.train.accumulation)
            for name, value in total.items()
        }
    found |= {f"{variant}/{name}": value for name, value in engine.trainable_values().items()}
    found |= {f"{variant}/{name}": value.clone() for name, value in task.buffers_to_save().items()}
    return {name: value.contiguous() for name, value in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    process_group.start()
    try:
        found: dict[str, torch.Tensor] = {}
        for variant in sys.argv[2:]:
            found |= run(variant)
        if process_group.rank() == 0:
            save_file(found, sys.argv[1])
    finally:
        process_group.stop()


if __name__ == "__main__":
    main()
