"""Boxes: conversions, overlaps and bins are the recorded ones, and the exact ones where arithmetic is easy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aurora_ds.tasks.boxes import centres, corners, generalised_overlap, overlap, quantised

GOLDENS = Path(__file__).parents[1] / "goldens" / "mplug" / "h_text_and_data"
RECORDED = json.loads((GOLDENS / "grounding_boxes.json").read_text())
PREDICTED, TRUE = (torch.tensor(RECORDED[name]) for name in ("cxcywh_pred", "cxcywh_gt"))


def test_recorded_conversions():
    assert torch.equal(corners(PREDICTED), torch.tensor(RECORDED["pred_xyxy"]))
    assert torch.equal(centres(corners(PREDICTED)), torch.tensor(RECORDED["back_to_cxcywh"]))


def test_recorded_overlaps():
    every = generalised_overlap(corners(PREDICTED)[:, None], corners(TRUE))
    assert torch.allclose(every, torch.tensor(RECORDED["giou_matrix"]), atol=1e-6, rtol=0)
    found = overlap(corners(PREDICTED), corners(TRUE))
    assert torch.allclose(found, torch.tensor(RECORDED["eval_iou_after_clamping_pred"]), atol=1e-6, rtol=0)
    assert (found >= 0.5).float().mean().item() == pytest.approx(RECORDED["acc_at_0_5"])


def test_recorded_bins():
    recorded = RECORDED["quantise"]
    bins = quantised(torch.tensor(recorded["boxes"]), recorded["n_bins"] - 1)
    assert (bins + recorded["first_bin_id"]).tolist() == recorded["token_ids"]
    assert torch.equal(bins / 336, torch.tensor(recorded["dequantised"]))


def test_overlaps_of_quarters():
    """Two squares of half a side, shifted by a quarter both ways: 1/16 of 7/16; their hull is 9/16."""
    one, other = torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    assert overlap(one, other).item() == pytest.approx(1 / 7)
    assert generalised_overlap(one, other).item() == pytest.approx(1 / 7 - 2 / 9, abs=1e-4)


def test_only_the_predicted_box_is_cut_to_the_square():
    reaching = torch.tensor([[0.5, 0.0, 1.5, 1.0]])
    assert overlap(reaching, torch.tensor([[0.5, 0.0, 1.0, 1.0]])).item() == pytest.approx(1)
    assert overlap(torch.tensor([[0.5, 0.0, 1.0, 1.0]]), reaching).item() == pytest.approx(0.5)
