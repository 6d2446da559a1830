"""The golden cases of EVE's tasks: one training step of retrieval, question answering and NLVR2, and retrieval's
evaluation. All run as `released`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aurora_ds.backbones.eve import EveTrunk
from aurora_ds.backbones.models import new_model
from aurora_ds.config import BackboneConfig
from aurora_ds.tasks.answer_classes import AnswerClassTask
from aurora_ds.tasks.nlvr import NlvrTask
from aurora_ds.verify.eve import Watched, compare_pass, fill, set_noise, sizes, weights
from aurora_ds.verify.golden import Golden


def backbone_config(golden: Golden, head: str) -> BackboneConfig:
    """Sizes of the golden's model."""
    vision, text, eve = sizes(golden)
    task = golden.config["task_config"]
    eve.answers = golden.config.get("vqa_vocab", eve.answers)
    eve.nlvr_attention = task.get("biattn", False)
    text = text.model_copy(update={"pad_id": 1, "cls_id": 2, "sep_id": 3, "bos_id": 2, "enc_id": 2})
    return BackboneConfig(
        name="eve",
        head=head,
        vision=vision,
        text=text,
        eve=eve,
        embed_dim=task.get("itc_proj_dim", vision.width),
    )


def model_of(golden: Golden, head: str) -> nn.Module:
    """The golden's model, its weights in place."""
    model = new_model(backbone_config(golden, head)).eval()
    fill(model, weights(golden), golden)
    set_noise(model, golden)
    return model


@contextmanager
def watched_passes(golden: Golden, trunk: EveTrunk, tags: list[str]) -> Iterator[None]:
    """Compares what was recorded of the passes through the layers, which are tagged in order."""
    left = list(tags)
    with Watched(trunk) as values:

        def hook(*_: object) -> None:
            compare_pass(golden, left.pop(0), values)
            values.clear()

        handle = trunk.encoder.register_forward_hook(hook)
        yield
        handle.remove()


def compare_gradients(golden: Golden, model: nn.Module) -> None:
    """Gradients, and norms of all of them."""
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        if f"grad.{name}" in golden.outputs:
            golden.compare(f"grad.{name}", parameter.grad)
        if f"gradnorm.{name}" in golden.outputs:
            golden.compare(f"gradnorm.{name}", parameter.grad.norm())


def _texts(golden: Golden) -> tuple[Tensor, Tensor]:
    return golden.inputs["text_ids"].long(), golden.inputs["text_atts"]


def nlvr(golden: Golden) -> None:
    """One training step of two-image reasoning, by the product's task."""
    model = model_of(golden, "nlvr")
    task = NlvrTask(model, None, model.config.text)
    kept: dict[str, list[Tensor]] = {}
    for name in ("attn1", "attn2", "fc", "attn_pool", "output", "nlvr2_output"):
        if hasattr(model, name):
            hook = _collect(kept.setdefault(name, []))
            getattr(model, name).register_forward_hook(hook)
    ids, mask = _texts(golden)
    batch = {
        "image": golden.inputs["image"].unflatten(0, (2, -1)).transpose(0, 1),
        "input_ids": ids,
        "attention_mask": mask,
        "label": golden.inputs["targets"].long(),
    }
    trace: dict[str, Tensor] = {}
    with watched_passes(golden, model.backbone, ["left", "right"]):
        losses = task(batch, trace=trace)
    losses["loss"].backward()
    golden.compare("loss", losses["loss_judged"])
    golden.compare("loss_gate", losses["loss_auxiliary"])
    golden.compare("logits", trace["prediction"])
    first_text = model.backbone.encoder.side**2 + 1
    values = {"cls_embedding": torch.cat(list(trace["mm_embeds"][:, :, first_text]), dim=1)}
    for name, found in kept.items():
        shaped = [each.transpose(0, 1) if each.dim() == 3 else each for each in found]  # recorded time-major
        recorded = {"attn1": "l2r_attn", "attn2": "r2l_attn"}.get(name)
        values |= (
            {recorded: shaped[0]} if recorded else {f"{name}.{i}": each for i, each in enumerate(shaped)}
        )
    for name, value in values.items():
        if name in golden.outputs:
            golden.compare(name, value)
    compare_gradients(golden, model)


def _collect(found: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    return lambda _, __, output: found.append(output.detach())


def vqa(golden: Golden) -> None:
    """One training step of question answering, by the product's task; the published loss leaves out the gates'."""
    model = model_of(golden, "vqa")
    task = AnswerClassTask(model, None, auxiliary=False)
    ids, mask = _texts(golden)
    targets = golden.inputs["targets"]
    batch = {"image": golden.inputs["image"], "input_ids": ids, "attention_mask": mask, "targets": targets}
    trace: dict[str, Tensor] = {}
    with watched_passes(golden, model.backbone, ["vl"]):
        losses = task(batch, trace=trace)
    losses["loss"].backward()
    for name, value in {"loss": losses["loss"], "loss_gate": losses["loss_auxiliary"], **trace}.items():
        golden.compare(name, value)
    compare_gradients(golden, model)


CASES: dict[str, Callable[[Golden], None]] = {"nlvr": nlvr, "vqa": vqa}
