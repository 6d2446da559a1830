"""The golden case of mPLUG's visual grounding: one training step, as released and as meant, and greedy boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.config import GroundingConfig
from aurora_ds.data.placement import SHARE
from aurora_ds.tasks.boxes import corners, overlap
from aurora_ds.tasks.grounding import GroundingTask
from aurora_ds.verify.blip_language import gradients
from aurora_ds.verify.golden import Golden
from aurora_ds.verify.mplug_model import backbone_config

OUTSIDE = -10000.0  # added to the scores of all tokens but those of boxes by the published code
_TRACED = {
    "loss_per_token": "losses",
    "weight_l1": "distance",
    "weight_giou": "apart",
    "teacher_forced_box": "found",
}


def grounding_task(golden: Golden, dtype: torch.dtype = torch.float32) -> GroundingTask:
    """With the released weighting of the loss."""
    model = load_backbone(backbone_config(golden, "grounding"), dtype).model
    return GroundingTask(model, None, GroundingConfig(weighting="batch")).eval()


def grounding_batch(golden: Golden) -> dict[str, Tensor]:
    """The recorded inputs as the task takes them."""
    inputs = golden.inputs
    return {
        "image": inputs["image"],
        "input_ids": inputs["text_ids"],
        "attention_mask": inputs["text_mask"],
        "box": (inputs["target_box"].double() / SHARE).round().long(),
    }


def grounding(golden: Golden) -> None:
    """States, losses under every weighting, gradients of the released one, greedy boxes and how they are judged."""
    task, batch = grounding_task(golden), grounding_batch(golden)
    _compare_states(golden, task, batch)
    trace: dict[str, Tensor] = {}
    loss = task(batch, what="loss", trace=trace)["loss"]
    golden.compare("loss_as_coded", loss)
    for name, value in _TRACED.items():
        golden.compare(name, trace[value])
    golden.compare("loss_unweighted", trace["losses"].mean())
    golden.compare("target_tokens", trace["targets"] + task.options.first_bin_id)
    # the fifth position is after the box, and predicts nothing
    _compare_scores(golden, task, "logits", trace["logits"], golden.outputs["logits"][:, :4])

    loss.backward()
    for name, value in gradients(task).items():
        if f"grad.{name}" in golden.outputs:
            golden.compare(f"grad.{name}", value)
    every = [p.grad.double().square().sum() for p in task.model.parameters() if p.grad is not None]
    golden.compare("grad_global_norm", torch.stack(every).sum().sqrt())

    task.options = GroundingConfig(weighting="sample")
    golden.compare("loss_per_sample_weighting", task(batch, what="loss")["loss"])
    alone = [
        {name: value[row : row + 1] for name, value in batch.items()} for row in range(len(batch["box"]))
    ]
    golden.compare(
        "loss_as_coded_batch1_each", torch.stack([task(each, what="loss")["loss"] for each in alone])
    )
    _compare_boxes(golden, task, batch)


def _compare_states(golden: Golden, task: GroundingTask, batch: dict[str, Tensor]) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    golden.compare("text_embeds", task.model.text_encoder(ids, mask))
    states, _ = task.model.read(ids, mask, task.image_tokens(batch["image"]))
    image, text = states.split([states.shape[1] - ids.shape[1], ids.shape[1]], dim=1)
    golden.compare("fusion_image_output", image)
    golden.compare("fusion_text_output", text)


def _compare_boxes(golden: Golden, task: GroundingTask, batch: dict[str, Tensor]) -> None:
    trace: dict[str, Tensor] = {}
    found = task(batch, what="boxes", trace=trace)["box"]
    golden.compare("eval.pred_tokens", trace["bins"] + task.options.first_bin_id)
    _compare_scores(
        golden, task, "eval.step_logits", trace["step_logits"], golden.outputs["eval.step_logits"]
    )
    golden.compare("eval.pred_box", found)
    overlaps = overlap(corners(found), corners(golden.inputs["target_box"]))
    golden.compare("eval.iou", overlaps)
    golden.compare("eval.acc", (overlaps >= 0.5).float().mean())
    golden.skip("eval._min_margin", "how narrow the narrowest choice was; nothing to compute")


def _compare_scores(golden: Golden, task: GroundingTask, name: str, scores: Tensor, recorded: Tensor) -> None:
    """Of the tokens of boxes, and apart from them of all others, beside whose recorded size errors would vanish."""
    first, last = task.options.first_bin_id, task.options.first_bin_id + task.options.bins + 1
    golden.compare(name, scores[..., first:last], recorded[..., first:last])
    for part, where in (("below", slice(0, first)), ("above", slice(last, None))):
        golden.compare(f"{name}, {part} the boxes", scores[..., where] + OUTSIDE, recorded[..., where])


CASES = {"f": grounding}
