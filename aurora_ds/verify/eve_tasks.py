"""The golden cases of EVE's tasks: one training step of retrieval, question answering and NLVR2, and retrieval's
evaluation. All run as `released`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.eve import EveTrunk
from aurora_ds.backbones.models import new_model
from aurora_ds.config import BackboneConfig, RetrievalConfig, RunConfig, TrainConfig
from aurora_ds.tasks.answer_classes import AnswerClassTask
from aurora_ds.tasks.nlvr import NlvrTask
from aurora_ds.tasks.retrieval import RetrievalTask
from aurora_ds.tasks.retrieval_metrics import recall
from aurora_ds.verify.eve import Watched, compare_pass, fill, set_noise, sizes, weights
from aurora_ds.verify.golden import Golden

NO_CANDIDATE = -100.0


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


def _retrieval_task(golden: Golden) -> RetrievalTask:
    model = model_of(golden, "retrieval")
    options = RetrievalConfig(
        queue_size=0,
        alpha=0.0,
        momentum_model="off",
        train_temperature=True,
        contrast="local",
        negatives="local",
        negative_sampling="argmax",
        negative_floor=1e-5,
        frame_weights="off",
    )
    config = RunConfig(backbone=model.config, retrieval=options, train=TrainConfig(method="full"))
    return RetrievalTask(model, config, None, float(model.temp.detach()))


def retrieval_train(golden: Golden) -> None:
    """One training step of retrieval, by the product's task, with the recorded negatives."""
    task, inputs = _retrieval_task(golden), golden.inputs
    task.model.train()  # features with the last norm; there is no dropout
    ids, mask = _texts(golden)
    negatives = iter(golden.outputs[name].long() for name in ("neg_image_index", "neg_text_index"))
    task.draw = lambda weights, how, uniform: (next(negatives), (weights > 0).any(1))
    heads: dict[str, list[Tensor]] = {}
    for name in ("itc_vision_proj_head", "itc_text_proj_head"):
        recorded = name.removesuffix("_head")
        found = heads.setdefault(recorded, []), heads.setdefault(recorded.replace("proj", "cls"), [])
        hook = _collect_both(*found)
        getattr(task.model, name).register_forward_hook(hook)
    batch = {
        "image": inputs["image"],
        "input_ids": ids,
        "attention_mask": mask,
        "media_index": inputs["idx"].long(),
        "sample_index": torch.arange(len(ids)),
    }
    trace: dict[str, Tensor] = {}
    tags = ["itc_vision", "itc_text", "itm_pos", "itm_negtxt", "itm_negimg"]
    with watched_passes(golden, task.model.backbone, tags):
        losses = task(batch, trace=trace)
    losses["loss"].backward()
    values = {name: found[0] for name, found in heads.items()} | {
        "itc_logits": trace["sim_i2t"],
        "itm_cls": trace["itm_in"],
        "itm_logits": trace["itm_logits"],
        "loss_total": losses["loss"],
        "loss_itc": losses["loss_ita"],
        "loss_itm": losses["loss_itm"],
        "loss_gate": losses["loss_auxiliary"],
        "neg_image_index": trace["neg_image_idx"],
        "neg_text_index": trace["neg_text_idx"],
        "neg_image_weights": trace["neg_weights_t2i"],
        "neg_text_weights": trace["neg_weights_i2t"],
    }
    for name, value in values.items():
        golden.compare(name, value)
    task.model.itc_temp.grad = task.temp.grad[0]
    compare_gradients(golden, task.model)


def _collect_both(
    outputs: list[Tensor], inputs: list[Tensor]
) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
    def hook(_: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        inputs.append(given[0].detach())
        outputs.append(output.detach())

    return hook


@torch.no_grad()
def retrieval_eval(golden: Golden) -> None:
    """Features and scores in the recorded batches, on which published routing depends; recall from the scores."""
    model, how, (ids, mask) = model_of(golden, "retrieval"), golden.config["eval"], _texts(golden)
    images = golden.inputs["image"]
    texts = torch.cat(
        [
            F.normalize(model.text_proj(model.text_states(*part)[:, 0]), dim=-1)
            for part in zip(
                ids.split(how["batch_size_test_text"]), mask.split(how["batch_size_test_text"]), strict=True
            )
        ]
    )
    states = [model.image_states(part) for part in images.split(how["batch_size_test"])]
    tokens = torch.cat([part for part, _ in states])
    features = torch.cat([F.normalize(model.vision_proj(first), dim=-1) for _, first in states])
    similarity = features @ texts.t()
    scores = {
        "i2t": torch.full_like(similarity, NO_CANDIDATE),
        "t2i": torch.full_like(similarity.t(), NO_CANDIDATE),
    }
    for image, row in enumerate(similarity):
        best = row.topk(how["k_test"]).indices
        found = model.matched(ids[best], mask[best], tokens[image].expand(len(best), -1, -1))
        scores["i2t"][image, best] = model.itm_head(found[:, 0])[:, 1]
    for text, row in enumerate(similarity.t()):
        best = row.topk(how["k_test"]).indices
        found = model.matched(ids[text].expand(len(best), -1), mask[text].expand(len(best), -1), tokens[best])
        scores["t2i"][text, best] = model.itm_head(found[:, 0])[:, 1]
    golden.compare("image_embeds", features)
    golden.compare("text_embeds", texts)
    golden.compare("sims_i2t", similarity)
    golden.compare("sims_t2i", similarity.t())
    golden.compare("rerank_i2t", scores["i2t"])
    golden.compare("rerank_t2i", scores["t2i"])
    owner = torch.empty(len(ids), dtype=torch.int64)
    for image, owned in golden.config["img2txt"].items():
        owner[owned] = int(image)
    ranked = {"sims": {"i2t": similarity, "t2i": similarity.t()}, "rerank": scores}
    for kind, each in ranked.items():
        metrics = recall(_image_ranks(each["i2t"], owner), _ranks(each["t2i"], owner))
        for name, value in metrics.items():
            recorded = f"metrics.{kind}.{name}"
            if recorded in golden.outputs:
                golden.compare(recorded, torch.tensor(value))


def _ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """(rows,): the place of each row's target, best first; of equal scores the later comes first, as recorded."""
    order = scores.flip(1).argsort(dim=1, descending=True, stable=True)
    order = scores.shape[1] - 1 - order
    return (order == targets[:, None]).int().argmax(1)


def _image_ranks(scores: Tensor, owner: Tensor) -> Tensor:
    order = scores.shape[1] - 1 - scores.flip(1).argsort(dim=1, descending=True, stable=True)
    return (owner[order] == torch.arange(len(scores))[:, None]).int().argmax(1)


CASES: dict[str, Callable[[Golden], None]] = {
    "nlvr": nlvr,
    "vqa": vqa,
    "retrieval_train": retrieval_train,
    "retrieval_eval": retrieval_eval,
}
