"""With every parameter cut up (ZeRO stage 3), answering, captioning and image pairs compute what they compute whole:
the projection to words, which reads the word embedding's weight, included."""

from __future__ import annotations

import os

import pytest
import torch
from tiny_language import asked, captions, pairs, texts, tiny

from aurora_ds.config import CaptionConfig, GenerationConfig, TrainConfig, VqaConfig

os.environ.setdefault("DS_ACCELERATOR", "cpu")

GENERATION = GenerationConfig(max_length=9, min_length=4)
OPTIONS = {"vqa": VqaConfig(k_test=4, generation=GENERATION), "caption": CaptionConfig(generation=GENERATION)}
STAGES = {
    "whole": {"zero_optimization": {"stage": 0}},
    "cut": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
}


@pytest.fixture(scope="module", autouse=True)
def group():
    from aurora_ds.runtime import process_group

    process_group.start()
    yield
    process_group.stop()


def run(head: str, setting: dict) -> dict[str, torch.Tensor]:
    """Three steps of training, then every piece of evaluation."""
    from aurora_ds.runtime.engine import build

    batch = {"vqa": asked, "caption": captions, "nlvr": pairs}[head]()
    # a large eps, because Adam divides a gradient near zero by its size, and its rounding with it
    config = TrainConfig(global_batch_size=len(batch["image"]), lr=1e-2, eps=1e-3)
    engine = build(tiny(head, "aurora", OPTIONS.get(head)), config, setting, total_steps=9, steps_per_epoch=9)
    held = sum(parameter.numel() for parameter in engine.task.model.parameters())
    assert (held == 0) == (engine.zero_stage == 3), "outside of a forward nothing is whole"
    found = {}
    engine.train()
    for step in range(3):
        found[f"loss {step}"] = engine.forward(batch)["loss"]
        engine.backward_and_step(found[f"loss {step}"])
    engine.eval()
    with torch.no_grad():
        engine.forward(batch, what="prepare_evaluation")
        for what in {"vqa": ("generate",), "caption": ("generate",), "nlvr": ("predict",)}[head]:
            found |= engine.forward(batch, what=what)
        if head == "vqa":
            found |= engine.forward(batch, what="rank", answers=texts(9, 6, seed=4))
    found |= engine.trainable_values()
    engine.close()
    return {name: value.detach().clone() for name, value in found.items()}


@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
def test_cut_parameters_give_the_same_numbers(head):
    whole, cut = (run(head, setting) for setting in STAGES.values())
    assert whole["loss 2"] < whole["loss 0"]
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)
