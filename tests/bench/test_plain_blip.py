"""The benchmarks' plain baseline computes the same thing as the product: losses, gradients, momentum, queue, and re-
ranked scores.
"""

from __future__ import annotations

from pathlib import Path

import plain_blip
import pytest
import torch
from safetensors.torch import save_file

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.backbones.checkpoint import published_tensors
from aurora_ds.config import (
    BackboneConfig,
    PromptConfig,
    RetrievalConfig,
    RunConfig,
    TextConfig,
    VisionConfig,
)
from aurora_ds.prompts.published import from_published, to_published

ROWS, TOKENS, VOCABULARY = 4, 9, 60


@pytest.fixture
def baseline():
    """A tiny baseline without dropout whose prompts do something."""
    torch.manual_seed(3)
    sizes = plain_blip.PlainSizes(
        image_size=16,
        patch_size=8,
        width=24,
        vision_depth=2,
        vision_heads=2,
        text_depth=2,
        text_heads=3,
        intermediate=40,
        vocab_size=VOCABULARY,
        max_positions=16,
        embed_dim=12,
        queue_size=16,
        rank=5,
        dropout=0.0,
        momentum=0.9,
        enc_id=59,
    )
    model = plain_blip.PlainRetrieval(sizes, sampling="argmax")
    for name, parameter in model.named_parameters():
        if "CP_" in name or "_CP" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.copy_momentum()
    return model.train()


def product(baseline, folder: Path) -> Assembled:
    """The product's task with the `released` preset and the baseline's weights, factors and queue."""
    sizes, state = baseline.sizes, baseline.state_dict()
    frozen = {
        n: t.contiguous() for n, t in state.items() if "CP" not in n and "_m." not in n and "queue" not in n
    }
    save_file(frozen, folder / "tiny.safetensors")
    config = RunConfig(
        backbone=BackboneConfig(
            checkpoint=str(folder / "tiny.safetensors"),
            vision=VisionConfig(
                image_size=sizes.image_size,
                patch_size=sizes.patch_size,
                width=sizes.width,
                depth=2,
                heads=sizes.vision_heads,
            ),
            text=TextConfig(
                vocab_size=VOCABULARY,
                width=sizes.width,
                depth=2,
                heads=sizes.text_heads,
                intermediate=sizes.intermediate,
                max_positions=sizes.max_positions,
                dropout=0.0,
                attention_dropout=0.0,
                cls_id=1,
                sep_id=2,
                bos_id=58,
                enc_id=59,
            ),
            embed_dim=sizes.embed_dim,
        ),
        prompts=PromptConfig(preset="released", rank=sizes.rank, dropout=0.0),
        retrieval=RetrievalConfig(
            queue_size=sizes.queue_size,
            momentum=sizes.momentum,
            negatives="local",
            negative_sampling="argmax",
            momentum_dropout=False,
        ),
    )
    assembled = build_task(config)
    bank = assembled.task.prompts.bank
    bank.load_state_dict(from_published(bank, state))
    assembled.task.queue.load({n: t.clone() for n, t in state.items() if "queue" in n})
    assembled.task.train()
    return assembled


def batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 58, (ROWS, TOKENS), generator=generator)
    mask = (torch.arange(TOKENS) < torch.tensor([TOKENS, 5, 7, 4])[:, None]).long()
    return {
        "image": torch.randn(ROWS, 3, 16, 16, generator=generator),
        "input_ids": ids * mask,
        "attention_mask": mask,
        "media_index": torch.tensor([4, 7, 4, 9]) + seed,
        "sample_index": torch.arange(ROWS),
    }


def test_losses_agree_over_steps(baseline, tmp_path):
    """Three steps of plain SGD: momentum copies, queue and trained factors all move, and the losses stay together."""
    task = product(baseline, tmp_path).task
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05) for m in (baseline, task)
    ]
    for step in range(3):
        data = batch(step)
        theirs = baseline(data["image"], data["input_ids"], data["attention_mask"], data["media_index"], 0.4)
        ours = task(data, step=step, alpha=0.4)
        torch.testing.assert_close(ours["loss_ita"], theirs[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours["loss_itm"], theirs[1], rtol=1e-5, atol=1e-5)
        for optimizer, loss in zip(optimizers, (sum(theirs), ours["loss"]), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_gradients_agree(baseline, tmp_path):
    task = product(baseline, tmp_path).task
    data = batch(0)
    sum(
        baseline(data["image"], data["input_ids"], data["attention_mask"], data["media_index"], 0.4)
    ).backward()
    task(data, step=0, alpha=0.4)["loss"].backward()
    bank = task.prompts.bank
    ours = to_published(bank, {name: p.grad for name, p in bank.named_parameters()})
    theirs = {name: p.grad for name, p in baseline.named_parameters() if p.requires_grad}
    assert set(theirs) == set(ours)
    for name, expected in theirs.items():
        torch.testing.assert_close(
            ours[name],
            expected,
            rtol=1e-4,
            atol=1e-4 * float(expected.abs().max()),
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_same_number_of_trained_parameters(baseline, tmp_path):
    count = [
        sum(p.numel() for p in m.parameters() if p.requires_grad)
        for m in (baseline, product(baseline, tmp_path).task)
    ]
    assert count[0] == count[1]


def test_frozen_weights_go_over_whole(baseline, tmp_path):
    ours = published_tensors(dict(product(baseline, tmp_path).task.model.state_dict()))
    for name, value in baseline.state_dict().items():
        if "CP" not in name and "_m." not in name and "queue" not in name:
            assert torch.equal(ours[name], value), name


def test_pair_scores_agree(baseline, tmp_path):
    """Every pair's score of the one-query-at-a-time procedure equals the product's matching logit."""
    task = product(baseline, tmp_path).task.eval()
    baseline.eval()
    data = batch(1)
    image_to_text, text_to_image = baseline.score_matrices(
        [data["image"]], data["input_ids"], data["attention_mask"], k=ROWS, beta=0.0
    )
    with torch.no_grad():
        task.prepare_evaluation({})
        tokens = task.encode_images(data)["tokens"]
        ours = torch.stack(
            [
                task.match(
                    {
                        "tokens": t[None],
                        "input_ids": data["input_ids"],
                        "attention_mask": data["attention_mask"],
                    }
                )["logits"][:, 1]
                for t in tokens
            ]
        )
    torch.testing.assert_close(image_to_text, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text_to_image.t(), ours, rtol=1e-5, atol=1e-5)
