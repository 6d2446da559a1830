"""Recorded rules of mPLUG's visual grounding that need no model: boxes, their places in evaluation, phrases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.data.placement import Placement, centred, exchanged_sides
from aurora_ds.tasks.boxes import centres, corners, generalised_overlap, overlap, quantised
from aurora_ds.verify.golden import Check

INSIDE_WORDS = "exchanged inside a word too, as published; ours changes words alone"


def boxes(record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Check]:
    """Conversions, overlaps, bins."""
    predicted, true = corners(torch.tensor(record["cxcywh_pred"])), corners(torch.tensor(record["cxcywh_gt"]))
    yield _close("corners of boxes", predicted, record["pred_xyxy"])
    yield _close("centres of boxes", centres(predicted), record["back_to_cxcywh"])
    yield _close("GIoU", generalised_overlap(predicted[:, None], true), record["giou_matrix"])
    yield _close("IoU", overlap(predicted, true), record["eval_iou_after_clamping_pred"])
    recorded = record["quantise"]
    bins = quantised(torch.tensor(recorded["boxes"]), recorded["n_bins"] - 1)
    same = (bins + recorded["first_bin_id"]).tolist() == recorded["token_ids"]
    yield Check("tokens of boxes", float(not same), float(not same), "exact", same)


def places(record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Check]:
    """Where images and boxes lie in evaluation, and when mirrored."""
    for number, case in enumerate(record["eval_resize_long_side_then_centre_pad"]):
        placement = centred(case["width"], case["height"], case["size"])
        found = centres(torch.tensor(placement.into(tuple(case["box_xyxy"]))))
        yield _close(f"place of box {number}", found, case["out_box_cxcywh"])
    for number, case in enumerate(record["horizontal_flip"]):
        width, height = case["width"], case["height"]
        mirrored = Placement(width, (0, 0, width, height), 1.0, width, height, 0, 0, mirrored=True)
        found = torch.tensor(mirrored.into(tuple(case["box_xyxy"])))
        yield _close(f"mirrored box {number}", found, [each / width for each in case["out_box"]])
        name, words = f"mirrored phrase {number}", case["text"].split()
        if any(
            side in word and exchanged_sides(word) == word for side in ("left", "right") for word in words
        ):
            yield Check(name, 0.0, 0.0, "-", True, INSIDE_WORDS)
            continue
        same = exchanged_sides(case["text"]) == case["out_text"]
        yield Check(name, float(not same), float(not same), "exact", same)


def phrases(record: list[dict[str, Any]], tokenizer: Tokenizer) -> Iterator[Check]:
    """Ids of phrases; padding to the full length is left out, as nothing attends to it."""
    for number, case in enumerate(record):
        ids, _ = tokenizer.encode([case["text"].lower()], case["max_query_len"])
        wanted = case["input_ids"][: sum(case["mask"])]
        same = ids[0].tolist() == wanted
        yield Check(f"phrase {number}", float(not same), float(not same), "exact", same)


RULES = {"grounding_boxes": boxes, "grounding_transforms": places, "grounding_query": phrases}


def _close(name: str, found: Tensor, recorded: list[Any]) -> Check:
    difference = float((found - torch.tensor(recorded)).abs().max())
    return Check(name, difference, difference, "1e-6", difference <= 1e-6)
