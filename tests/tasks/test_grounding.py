"""The loss of grounding weighs tokens by how far off their box is, and only tokens of boxes are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aurora_ds.config import GroundingConfig
from aurora_ds.data.placement import SHARE
from aurora_ds.tasks.boxes import corners, generalised_overlap
from aurora_ds.tasks.grounding import GroundingTask

OPTIONS = {"bins": 8, "prefix_id": 3, "first_bin_id": 5}
WORDS = 20


class Scripted(nn.Module):
    """A backbone whose decoder scores tokens as told: of row r and step t, `scores[r, t]`."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.told, self.text_decoder = scores, self
        self.seen: list[Tensor] = []

    def image_tokens(self, image: Tensor) -> Tensor:
        return image

    def read(self, ids: Tensor, mask: Tensor, tokens: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(ids), 1, 2), mask

    def context_kv(self, states: Tensor) -> Tensor:
        return states

    def forward(self, ids: Tensor, mask: None, kv: Any, seen: Tensor, cache: Any = None) -> Tensor:
        self.seen.append(ids)
        first = len(self.seen) - 1 if cache is not None else 0
        return self.told[:, first : first + ids.shape[1]]

    def scores(self, states: Tensor) -> Tensor:
        return states


def batch_of(boxes: list[list[float]]) -> dict[str, Tensor]:
    box = (torch.tensor(boxes, dtype=torch.float64) / SHARE).round().long()
    ids = torch.ones(len(boxes), 3, dtype=torch.long)
    return {"image": torch.zeros(len(boxes), 3, 4, 4), "input_ids": ids, "attention_mask": ids, "box": box}


def scripted(rows: int, weighting: str = "sample") -> tuple[GroundingTask, Scripted]:
    torch.manual_seed(1)
    model = Scripted(torch.randn(rows, 4, WORDS, requires_grad=True))
    return GroundingTask(model, None, GroundingConfig(weighting=weighting, **OPTIONS)), model


BOXES = [[0.5, 0.5, 0.25, 0.5], [0.3, 0.71, 0.4, 0.2]]


def by_hand(model: Scripted, row: int) -> tuple[Tensor, Tensor]:
    """(token losses (4,), weights (4,)) of a box."""
    scores, true = model.told[row, :, 5:14], torch.tensor(BOXES[row])
    targets = (true * 8).floor().long()
    losses = scores.logsumexp(-1) - scores[torch.arange(4), targets]
    found = scores.argmax(-1) / 8
    apart = 1 - generalised_overlap(corners(found), corners(true))
    return losses, ((found - true).abs() * apart).detach()


def test_each_box_weighs_its_own_tokens():
    task, model = scripted(2)
    found = task(batch_of(BOXES), what="loss")
    parts = [by_hand(model, row) for row in (0, 1)]
    expected = torch.stack([losses * weights for losses, weights in parts]).mean()
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert found["loss_tokens"].item() == pytest.approx(
        torch.stack([one for one, _ in parts]).mean().item(), rel=1e-6
    )


def test_as_released_the_weights_of_all_boxes_meet_the_tokens_of_each():
    task, model = scripted(2, "batch")
    (first, one), (second, other) = (by_hand(model, row) for row in (0, 1))
    expected = torch.stack([first * one, first * other, second * one, second * other]).mean()
    assert task(batch_of(BOXES), what="loss")["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_weights_have_no_gradient_and_other_words_no_part():
    task, model = scripted(2)
    task(batch_of(BOXES), what="loss")["loss"].backward()
    losses, weights = zip(*(by_hand(model, row) for row in (0, 1)), strict=True)
    (expected,) = torch.autograd.grad((torch.stack(losses) * torch.stack(weights)).mean(), model.told)
    assert torch.allclose(model.told.grad, expected, atol=1e-7)
    assert not model.told.grad[..., :5].any() and not model.told.grad[..., 14:].any()


def test_in_training_a_step_sees_the_true_tokens_before_it():
    task, model = scripted(2)
    task(batch_of(BOXES), what="loss")
    assert model.seen[0].tolist() == [[3, 5 + 4, 5 + 4, 5 + 2], [3, 5 + 2, 5 + 5, 5 + 3]]


def test_a_box_is_the_likeliest_tokens_of_boxes_one_after_the_other():
    task, model = scripted(2)
    with torch.no_grad():
        model.told[..., 0] = 50  # a word, which no box has
    batch = batch_of(BOXES)
    found = task(batch, what="boxes")
    best = model.told[..., 5:14].argmax(-1)
    assert torch.equal(found["box"], best / 8)
    share = model.told[..., 5:14].softmax(-1).amax(-1).prod(-1)
    assert found["probability"].tolist() == pytest.approx(share.tolist(), rel=1e-5)
    assert [ids.flatten().tolist() for ids in model.seen] == [[3, 3], *(best.T[:3] + 5).tolist()]


def test_whole_numbers_of_boxes_survive_a_cast_of_fractions():
    """bf16 has steps of 1/256 there: what an engine casts must not be a box."""
    assert batch_of(BOXES)["box"].dtype == torch.int64
    assert (torch.tensor(0.71) / SHARE).round().long() * SHARE == pytest.approx(0.71, abs=1e-7)
