"""The golden cases of BLIP and Aurora question answering, captioning and image pairs: how each is built from its
`config.json`, and what is compared.

Aurora cases run the `released` preset; dropout is off. Token ids are compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.published import published_tensors
from aurora_ds.config import CaptionConfig, GenerationConfig, PromptConfig, VqaConfig
from aurora_ds.prompts import Prompts, attach
from aurora_ds.prompts.published import from_published, to_published
from aurora_ds.tasks.caption import CaptionTask
from aurora_ds.tasks.language import LanguageTask
from aurora_ds.tasks.nlvr import NlvrTask
from aurora_ds.tasks.vqa import VqaTask
from aurora_ds.verify.blip import backbone_config
from aurora_ds.verify.golden import Golden

OLD_CACHE = "an old decoding, whose cache left the prompts out of keys and values: it contradicts training"
ANSWER_LENGTHS = {"max_length": 10, "min_length": 1}  # as the published answering writes
# recorded names say how a text was written: greedy, or with so many beams; `reppen` with a repetition penalty of 1.1
GENERATED = re.compile(r"generate_(greedy|beam(?P<beams>\d+))(?P<penalty>_reppen)?(_uncached)?_ids")


def model_and_prompts(
    golden: Golden, head: str, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Prompts | None]:
    """The golden's model with its weights; for Aurora with the recorded prompts attached."""
    loaded = load_backbone(backbone_config(golden, head=head), dtype)
    model = loaded.model.eval()
    if "R" not in golden.config:
        return model, None
    config = PromptConfig(preset="released", rank=golden.config["R"], dropout=0.0)
    prompts = attach(model, model.sites(), config, model.query_layers(), model.heads())
    with torch.no_grad():
        for name, value in from_published(prompts.bank, loaded.aurora).items():
            prompts.bank.get_parameter(name).copy_(value)
    prompts.bank.to(dtype)
    return model, prompts


def vqa_task(golden: Golden, dtype: torch.dtype = torch.float32) -> VqaTask:
    """With the published average of the loss and the published sight of padding while writing."""
    c = golden.config
    options = VqaConfig(
        label_smoothing=c["label_smoothing"],
        loss_per="frame",
        k_test=c["k_test"],
        question_padding="seen",
        generation=GenerationConfig(**ANSWER_LENGTHS),
    )
    text = backbone_config(golden, head="vqa").text
    return VqaTask(*model_and_prompts(golden, "vqa", dtype), options, text).eval()


def caption_task(golden: Golden, dtype: torch.dtype = torch.float32) -> CaptionTask:
    c = golden.config
    lengths = {key: c["generate"][key] for key in ("max_length", "min_length")}
    options = CaptionConfig(label_smoothing=c["label_smoothing"], generation=GenerationConfig(**lengths))
    text, prompt = backbone_config(golden, head="caption").text, torch.tensor(c["prompt_ids"])
    return CaptionTask(*model_and_prompts(golden, "caption", dtype), options, text, prompt).eval()


def nlvr_task(golden: Golden, dtype: torch.dtype = torch.float32) -> NlvrTask:
    text = backbone_config(golden, head="nlvr").text
    return NlvrTask(*model_and_prompts(golden, "nlvr", dtype), text).eval()


def vqa_batch(golden: Golden) -> dict[str, Tensor]:
    """The recorded inputs of one training step, as the task takes them."""
    inputs = golden.inputs
    return {
        "image": inputs["images"],
        "input_ids": inputs["question_input_ids"],
        "attention_mask": inputs["question_attention_mask"],
        "answer_ids": inputs["answer_input_ids"],
        "answer_mask": inputs["answer_attention_mask"],
        "answer_question": torch.arange(len(inputs["n"])).repeat_interleave(inputs["n"]),
        "answer_weights": inputs["answer_weights"],
    }


def caption_batch(golden: Golden) -> dict[str, Tensor]:
    inputs = golden.inputs
    return {
        "image": inputs["images"],
        "input_ids": inputs["text_input_ids"],
        "attention_mask": inputs["text_attention_mask"],
    }


def nlvr_batch(golden: Golden) -> dict[str, Tensor]:
    first, second = golden.inputs["images"].chunk(2)
    return caption_batch(golden) | {
        "image": torch.stack([first, second], dim=1),
        "label": golden.inputs["targets"],
    }


def gradients(task: LanguageTask) -> dict[str, Tensor]:
    """Gradients of the trained parameters under published names."""
    if task.prompts is not None:
        found = {
            n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in task.prompts.bank.named_parameters()
        }
        return to_published(task.prompts.bank, found)
    return published_tensors({n: p.grad for n, p in task.model.named_parameters() if p.grad is not None})


def _compare_step(golden: Golden, task: LanguageTask, batch: dict[str, Tensor]) -> None:
    trace: dict[str, Tensor] = {}
    losses = task(batch, what="loss", trace=trace)
    losses["loss"].backward()
    for name, value in (losses | trace).items():
        if name in golden.outputs:
            golden.compare(name, value)
    for name, value in gradients(task).items():
        if f"grad.{name}" in golden.outputs:
            golden.compare(f"grad.{name}", value)


def _compare_generated(golden: Golden, task: VqaTask | CaptionTask, batch: dict[str, Tensor]) -> None:
    usual = task.options.generation
    for name in golden.outputs:
        how = GENERATED.fullmatch(name)
        if how is None:
            continue
        changes = {"method": "beam", "beams": int(how["beams"])} if how["beams"] else {"method": "greedy"}
        changes["repetition_penalty"] = 1.1 if how["penalty"] else 1.0
        task.options.generation = usual.model_copy(update=changes)
        written = task(batch, what="generate")
        golden.compare(name, written["ids"])
        scores = name.removesuffix("_ids") + "_sequences_scores"
        if scores in golden.outputs:
            golden.compare(scores, written["scores"])
    task.options.generation = usual


def vqa(golden: Golden) -> None:
    """One training step (forward and gradients), ranking and written answers."""
    task, batch, trace = vqa_task(golden), vqa_batch(golden), {}
    _compare_step(golden, task, batch)
    task(batch, what="prepare_evaluation")
    answers = golden.inputs["answer_list_input_ids"], golden.inputs["answer_list_attention_mask"]
    golden.compare("rank.answer_ids", task(batch, what="rank", answers=answers, trace=trace)["answer"])
    for name in ("first_token_logits", "first_token_prob"):
        golden.compare(f"rank.{name}", trace[name])
    # equally likely first tokens have no recorded order, so candidates are compared by their numbers
    recorded, found = golden.outputs["rank.topk_ids"].sort(1), trace["topk_ids"].sort(1)
    golden.compare("rank.topk_ids", found.values, recorded.values)
    scores = golden.outputs["rank.log_probs_sum"].gather(1, recorded.indices)
    golden.compare("rank.log_probs_sum", trace["log_probs_sum"].gather(1, found.indices), scores)
    _compare_generated(golden, task, batch)
    if "generate_greedy_cached_ids" in golden.outputs:
        golden.skip("generate_greedy_cached_ids", OLD_CACHE)


def caption(golden: Golden) -> None:
    """One training step (forward and gradients) and written captions."""
    task, batch = caption_task(golden), caption_batch(golden)
    _compare_step(golden, task, batch)
    task(batch, what="prepare_evaluation")
    _compare_generated(golden, task, batch)


def nlvr(golden: Golden) -> None:
    """One training step (forward and gradients)."""
    _compare_step(golden, nlvr_task(golden), nlvr_batch(golden))


CASES: dict[str, Callable[[Golden], None]] = {
    "blip_vqa": vqa,
    "aurora_vqa": vqa,
    "blip_caption": caption,
    "blip_nlvr": nlvr,
}
