"""Real photographs with captions, from files to trained prompts and recall: tests/data/photos through shards, readers,
BLIP at its real widths (random weights, 224 px), optimizer steps and two-stage evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aurora_ds.assemble import build_task
from aurora_ds.config import (
    BackboneConfig,
    DataConfig,
    EvalConfig,
    PromptConfig,
    RetrievalConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from aurora_ds.data.convert import convert
from aurora_ds.data.loader import train_loader
from aurora_ds.evaluate import task_forward
from aurora_ds.wiring.retrieval import evaluate_split

PHOTOS = Path(__file__).parent / "data" / "photos"
ROWS, TEST_IMAGES, TEST_TEXTS = 4, 6, 15


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    convert("folder", PHOTOS, folder, max_rejects=0)
    return folder


@pytest.fixture(scope="module")
def assembled(shards):
    """ViT-B/16 and BERT-base in width, two layers of each."""
    config = RunConfig(
        backbone=BackboneConfig(
            vision=VisionConfig(image_size=224, depth=2),
            text=TextConfig(depth=2, dropout=0.0, attention_dropout=0.0),
        ),
        prompts=PromptConfig(rank=16, dropout=0.0),
        retrieval=RetrievalConfig(queue_size=0, k_test=100),
        data=DataConfig(shards=str(shards), workers=0, augment="none", lanes=1),
        train=TrainConfig(global_batch_size=ROWS),
        evaluate=EvalConfig(image_batch_size=4),
    )
    return build_task(config)


def evaluated(assembled):
    assembled.task.eval()
    return evaluate_split(task_forward(assembled), assembled.config, assembled.tokenizer)


def test_photographs_train_and_are_found(assembled):
    """An epoch of 5 steps lowers the loss on what was seen, moves every trained tensor and nothing else; every pair of
    the test gallery is scored."""
    task, config = assembled.task, assembled.config
    before = evaluated(assembled)
    batches = list(train_loader(config, assembled.tokenizer, 1, 0, epoch=0))
    assert [tuple(b["image"].shape) for b in batches] == [(ROWS, 3, 224, 224)] * 5
    backbone = {n: t.clone() for n, t in task.model.state_dict().items()}
    trained = {n: p.detach().clone() for n, p in task.prompts.named_parameters()}
    optimizer = torch.optim.AdamW(task.prompts.parameters(), lr=1e-4, weight_decay=0.0)
    task.train()
    losses = []
    for step, batch in enumerate([*batches, *batches[:1] * 3]):
        loss = task(batch, step=0, alpha=0.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert loss.isfinite(), f"step {step}: {batch['keys']}"
    assert losses[-1] < losses[0], "the first batch, seen four times"
    assert all(torch.equal(t, backbone[n]) for n, t in task.model.state_dict().items())
    moved = {n for n, p in task.prompts.named_parameters() if not torch.equal(p, trained[n])}
    assert moved == set(trained)

    after = evaluated(assembled)
    for result in (before, after):
        assert (len(result.image_ranks), len(result.text_ranks)) == (TEST_IMAGES, TEST_TEXTS)
        assert result.pairs_scored == TEST_IMAGES * TEST_TEXTS, "k is clamped to the gallery"
        assert 0 <= int(result.image_ranks.min()) and int(result.image_ranks.max()) < TEST_TEXTS
        assert int(result.text_ranks.max()) < TEST_IMAGES and result.metrics["img_r10"] == 100.0
    assert not torch.equal(before.text_scores, after.text_scores)


@pytest.mark.slow
def test_blip_base_trains_and_evaluates_through_the_command_line(shards, tmp_path):
    """All 12 + 12 layers: `train` for two steps, then `evaluate` of what it left."""
    common = [
        "retrieval_flickr", "backbone.checkpoint=null", "backbone.vision.image_size=224", f"data.shards={shards}",
        "data.lanes=1", "data.workers=1", "train.global_batch_size=4", "train.max_steps=2", "retrieval.queue_size=64",
        "evaluate.image_batch_size=2",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def command(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "aurora_ds", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run = tmp_path / "run"
    command("train", *common, "--output", str(run))
    trained = json.loads((run / "results.json").read_text())
    command("evaluate", *common, "--adapter", str(run), "--output", str(tmp_path / "judged"))
    judged = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert judged["metrics"] == trained["metrics"] and judged["texts"] == TEST_TEXTS
    assert judged["trainable"] == 324098 + 768 * 256 + 256
    assert sum(f.stat().st_size for f in (run / "adapter").iterdir()) <= 3 * 10**6
