"""`aurora-ds verify` on recorded grounding: all within tolerance, in double precision too; wrong weights are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_ds.cli import main
from aurora_ds.verify.golden import Golden
from aurora_ds.verify.mplug_grounding import grounding_batch, grounding_task

FOLDER = Path(__file__).parents[1] / "goldens" / "mplug" / "f_grounding"


def test_everything_recorded_is_within_tolerance(capsys):
    assert main(["verify", str(FOLDER)]) == 0
    said = capsys.readouterr().out
    assert "28 of 28 within tolerance" in said and "OUT OF" not in said


def test_a_wrong_weight_is_found(tmp_path, capsys):
    shutil.copytree(FOLDER, tmp_path / "changed")
    path = tmp_path / "changed" / "weights.safetensors"
    weights = load_file(path)
    weights["text_decoder.cls.predictions.transform.dense.weight"][0, 0] += 0.02
    save_file(weights, path)
    assert main(["verify", str(tmp_path / "changed")]) == 1
    assert "loss_as_coded " in next(
        l for l in capsys.readouterr().out.splitlines() if "OUT OF" in l and "loss" in l
    )


def test_boxes_by_way_of_tokens_of_images_are_the_same():
    """As evaluation asks: images once, phrases by the number of their image."""
    golden = Golden.read(FOLDER)
    task, batch = grounding_task(golden, torch.float64), grounding_batch(golden)
    batch["image"] = batch["image"].double()
    tokens = task(batch, what="encode_images")["tokens"]
    order = torch.tensor([2, 0, 0, 1])
    asked = {name: batch[name][order] for name in ("input_ids", "attention_mask")}
    found = task(asked | {"tokens": tokens, "image_index": order}, what="boxes")
    assert torch.equal(found["box"], golden.outputs["eval.pred_box"][order])
    assert found["probability"].tolist() == pytest.approx(
        task(batch, what="boxes")["probability"][order].tolist()
    )


def test_losses_in_double_precision_are_those_recorded():
    golden = Golden.read(FOLDER)
    task, batch = grounding_task(golden, torch.float64), grounding_batch(golden)
    batch["image"] = batch["image"].double()
    loss = task(batch, what="loss")["loss"]
    assert loss.item() == pytest.approx(golden.outputs["loss_as_coded"].item(), rel=2e-6)
