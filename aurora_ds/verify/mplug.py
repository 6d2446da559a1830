"""The golden cases of mPLUG: how each is built from its `config.json`, and what is compared.

Where the published code has a quirk that is a setting here, the settings in this file choose it: `penalised_beam`,
`vqa.first_token=twice`, local contrast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.models import family_of, new_model
from aurora_ds.backbones.mplug import MplugBackbone
from aurora_ds.backbones.mplug_text import FusionEncoder, PlainTextEncoder
from aurora_ds.backbones.published import published_tensors, resize_positions, split_published
from aurora_ds.config import BackboneConfig, CaptionConfig, GenerationConfig, VqaConfig
from aurora_ds.tasks.beam_critical import beam_loss
from aurora_ds.tasks.caption import CaptionTask
from aurora_ds.tasks.distilled_vqa import DistilledVqaTask
from aurora_ds.tasks.generation import Context
from aurora_ds.tasks.language import NO_TARGET, LanguageTask, Teacher, next_targets
from aurora_ds.tasks.momentum import TwinMomentum
from aurora_ds.tasks.penalised_beam import Hypothesis, hypotheses
from aurora_ds.tasks.vqa import VqaTask
from aurora_ds.tasks.writer import Writer
from aurora_ds.verify.golden import Golden
from aurora_ds.verify.mplug_model import backbone_config

GENERATED = re.compile(r"gen\.(default|beam(?P<beams>\d+)_min(?P<least>\d+)_max(?P<most>\d+))\.ids")
MARGIN = "says how firm a decision of the recording was; nothing to compare"


# ---- parts of the model --------------------------------------------------------------------------


def _load(golden: Golden, model: nn.Module, config: BackboneConfig) -> None:
    """A golden's weights into a part of a model; every tensor of the part must be there."""
    tensors = family_of(config).sort(load_file(golden.folder / "weights.safetensors"), config)
    own = split_published(tensors.online)
    model.load_state_dict({name: own[name] for name in model.state_dict()})


@contextmanager
def _watched(modules: dict[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """What each module gave last, by the keys of `modules`."""
    seen: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def compare_gradients(
    golden: Golden, model: nn.Module, others: dict[str, Tensor] | None = None, prefix: str = ""
) -> None:
    """Gradients under published names, and the norm of all. `others`: of what is no parameter of the model."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | (others or {})
    norm = torch.stack([grad.double().square().sum() for grad in found.values()]).sum().sqrt()
    if f"{prefix}grad_global_norm" in golden.outputs:
        golden.compare(f"{prefix}grad_global_norm", norm)
    for name, grad in published_tensors(found).items():
        if f"{prefix}grad.{name}" in golden.outputs:
            golden.compare(f"{prefix}grad.{name}", grad)


def visual_encoder(golden: Golden) -> None:
    """Tokens after every step, gradients, and positions resized as loading does it."""
    config = backbone_config(golden, "caption")
    model = MplugBackbone(config)
    _load(golden, model, config)
    tower = model.visual_encoder.visual
    parts = {
        "inter.conv1": tower.patch_embed.proj,
        "inter.ln_pre": tower.norm_pre,
        "inter.ln_post": tower.norm,
    }
    parts |= {f"inter.block{i}": block for i, block in enumerate(tower.blocks)}
    with _watched(parts) as seen:
        tokens = model.visual_encoder(golden.inputs["image"])
    for name, value in seen.items():
        golden.compare(name, value)
    golden.compare("image_embeds", tokens)
    golden.compare("visn_embeds", model.image_tokens(golden.inputs["image"]))
    tokens.square().mean().backward()
    compare_gradients(golden, model)
    for name in golden.outputs:
        grids = re.fullmatch(r"pe_grid(\d)_to(\d)", name)
        if grids:
            source = golden.inputs[f"pe_grid{grids[1]}"][None]
            golden.compare(name, resize_positions(source, int(grids[2]) ** 2, "bilinear"))
    learned = golden.inputs["pretrained_positional_embedding"][None]
    golden.compare(
        "resized_positional_embedding", resize_positions(learned, tower.pos_embed.shape[1] - 1, "bilinear")
    )
    golden.skip("image_embeds_with_proj_no_lnpost", "what CLIP computes, and mPLUG never does")


def fusion(golden: Golden) -> None:
    """Text encoder and fusion encoder: every layer, gradients, and images with padding."""
    config, inputs = backbone_config(golden, "vqa"), golden.inputs
    model = nn.Module()
    model.text_encoder = PlainTextEncoder(
        config.text.model_copy(update={"depth": config.mplug.text_layers}), config.text.width
    )
    model.fusion_encoder = FusionEncoder(config)
    _load(golden, model, config)
    encoder, mask = model.fusion_encoder, inputs["text_mask"]
    states = model.text_encoder(inputs["text_ids"], mask)
    golden.compare("text_embeds", states)
    keys = encoder.keys(inputs["image_embeds"])
    with _watched({f"inter.fusion_layer{n}": layer for n, layer in encoder.layers()}) as seen:
        image, text = encoder(states, mask, keys)
    for name, value in seen.items():
        golden.compare(name, value)
    golden.compare("image_output", image)
    golden.compare("text_output", text)
    weights = torch.linspace(0.5, 1.5, config.text.width)
    loss = ((text * weights).square() * mask[..., None]).mean() + (image * weights).abs().mean()
    if "loss" in golden.outputs:
        golden.compare("loss", loss)
    loss.backward()
    compare_gradients(golden, model)
    image, text = encoder(states, mask, keys, image_mask=inputs["partial_image_mask"])
    golden.compare("partial_mask.image_output", image)
    golden.compare("partial_mask.text_output", text)


# ---- tasks that write ----------------------------------------------------------------------------


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    named = {"visual_out": "visual_encoder", "text_embeds": "text_encoder", "fusion": "fusion_encoder"}
    return {name: getattr(model, part) for name, part in named.items() if hasattr(model, part)}


def _compare_step(
    golden: Golden, task: LanguageTask, batch: dict[str, Tensor], names: dict[str, str], **arguments: Any
) -> None:
    """Loss, gradients and what led to them; `names`: of the task's trace, as the golden calls them."""
    trace: dict[str, Tensor] = {}
    with _watched(_parts(task.model)) as seen:
        loss = task(batch, what="loss", trace=trace, **arguments)["loss"]
    loss.backward()
    if "fusion" in seen:
        seen["fusion_image_output"], seen["fusion_text_output"] = seen.pop("fusion")
    found = seen | {names.get(name, name): value for name, value in trace.items()} | {"loss": loss}
    for name, value in found.items():
        if name in golden.outputs:
            golden.compare(name, value)
    compare_gradients(golden, task.model)


def _compare_generated(
    golden: Golden, task: LanguageTask, context: Context, prompt: Tensor, defaults: dict[str, int]
) -> None:
    for name in golden.outputs:
        how = GENERATED.fullmatch(name)
        if how is None:
            continue
        numbers = {key: int(value) for key, value in how.groupdict().items() if value} or defaults
        _compare_hypotheses(golden, name, task, context, prompt, numbers)


def _settings(prompt: Tensor, beams: int, least: int, most: int) -> GenerationConfig:
    """Recorded lengths do not count the prompt."""
    lengths = {"min_length": least + len(prompt), "max_length": most + len(prompt)}
    return GenerationConfig(method="penalised_beam", beams=beams, **lengths)


def _compare_hypotheses(
    golden: Golden, name: str, task: LanguageTask, context: Context, prompt: Tensor, numbers: dict[str, int]
) -> list[list[Hypothesis]]:
    """All texts of a search, or as many as were recorded: their ids, lengths and scores. Returns them."""
    prefix = name.removesuffix(".ids")
    expected, settings = golden.outputs[name], _settings(prompt, **numbers)
    writer = Writer(task.model.text_decoder, context, prompt, len(context), settings, 102, 0)
    with torch.no_grad():
        found = [each[: expected.shape[1]] for each in hypotheses(writer)]
    ids = torch.full_like(expected, -1)
    for row, texts in enumerate(found):
        for place, text in enumerate(texts):
            kept = text.ids[: expected.shape[2]]
            ids[row, place, : len(kept)] = torch.tensor(kept)
    golden.compare(name, ids)
    lengths = [[len(text.ids) for text in texts] for texts in found]
    golden.compare(f"{prefix}.lengths", torch.tensor(lengths))
    golden.compare(f"{prefix}.scores", torch.tensor([[text.score for text in texts] for texts in found]))
    return found


def _defaults(golden: Golden) -> dict[str, int]:
    task = golden.config["task_config"]
    return {"beams": task["beam_size"], "least": task["min_length"], "most": task["max_length"]}


def _skip_margins(golden: Golden) -> None:
    for name in golden.outputs:
        if name.endswith("_min_margin"):
            golden.skip(name, MARGIN)


def vqa(golden: Golden) -> None:
    """One training step, with a momentum model where there is one, and the written answers."""
    distilled, inputs = golden.config["task_config"]["distill"], golden.inputs
    config = backbone_config(golden, "vqa", momentum_weights="read" if distilled else "ignore")
    loaded, options = load_backbone(config), VqaConfig(label_smoothing=0.0, loss_per="question")
    model = loaded.model.eval()
    if distilled:
        twin = TwinMomentum(
            model, None, lambda: (new_model(config), None), loaded.momentum, False, ("fusion_encoder.",)
        )
        task = DistilledVqaTask(model, None, options, config.text, twin).eval()
    else:
        task = VqaTask(model, None, options, config.text).eval()
    batch = {
        "image": inputs["image"],
        "input_ids": inputs["question_ids"],
        "attention_mask": inputs["question_mask"],
        "answer_ids": inputs["answer_ids"],
        "answer_mask": inputs["answer_mask"],
        "answer_question": torch.arange(len(inputs["k"])).repeat_interleave(inputs["k"]),
        "answer_weights": inputs["weights"],
    }
    names = {
        "answer_logits": "logits",
        "answer_loss": "loss_per_answer",
        "momentum_logits": "momentum.logits_shifted",
    }
    if distilled:
        with _watched({"fusion": task.momentum_model.twin.fusion_encoder}) as seen:
            _compare_step(golden, task, batch, names, alpha=0.0)  # the published alpha never arrives
        golden.compare("momentum.fusion_image_output", seen["fusion"][0])
        golden.compare("momentum.fusion_text_output", seen["fusion"][1])
        _compare_distillation(golden, task, batch)
    else:
        _compare_step(golden, task, batch, names)
    with torch.no_grad():
        states, mask = task.questions(batch)
        golden.compare("decoder_states", states[batch["answer_question"]])
        golden.compare("decoder_mask", mask[batch["answer_question"]])
        context = Context(task.model.text_decoder.context_kv(states), mask)
    _compare_generated(golden, task, context, torch.tensor([config.text.bos_id]), _defaults(golden))
    _skip_margins(golden)


def _compare_distillation(golden: Golden, task: DistilledVqaTask, batch: dict[str, Tensor]) -> None:
    """The copies after the step, and what learning from nothing but their words would be: over the vocabulary, as here,
    and over the positions, as the published code has it."""
    other = task.momentum_model.twin
    for name, value in published_tensors(dict(other.named_parameters())).items():
        name = f"after_step.{'_m.'.join(name.split('.', 1))}"
        if name in golden.outputs:
            golden.compare(name, value)
    trace: dict[str, Tensor] = {}
    with torch.no_grad():
        states = task.answers(batch, None, other)[:, :-1]
        task.taught(batch, Teacher(other.text_decoder, states, 1.0), trace)
        soft = other.text_decoder.scores(states).softmax(2)
        wrong = -(soft * trace["answer_logits"][:, :-1].log_softmax(1)).sum(2)
        aimed = next_targets(batch["answer_ids"], batch["answer_mask"]) != NO_TARGET
    golden.compare("distill.loss_per_answer_if_alpha1_vocab_softmax", trace["answer_loss"])
    golden.compare("distill.loss_per_answer_if_alpha1_as_coded", (wrong * aimed).sum(1))


def caption(golden: Golden) -> None:
    """One training step and the written captions, of images or of clips with a prompt."""
    config, inputs = backbone_config(golden, "caption"), golden.inputs
    # a recorded prompt has no end token, so that the task, as the published code, drops its last word
    prompt = inputs.get("prompt_ids", torch.tensor([config.text.cls_id, config.text.sep_id]))
    model = load_backbone(config).model.eval()
    task = CaptionTask(model, None, CaptionConfig(label_smoothing=0.0), config.text, prompt)
    batch = {
        "image": inputs["video"] if "video" in inputs else inputs["image"],
        "input_ids": inputs["caption_ids"],
        "attention_mask": inputs["caption_mask"],
    }
    _compare_step(
        golden, task, batch, {"image_embeds": "video_embeds" if "video" in inputs else "image_embeds"}
    )
    if "labels" in golden.outputs:
        golden.compare("labels", _labels(batch, len(task.prompt)))
    with torch.no_grad():
        context = Context(model.text_decoder.context_kv(task.image_tokens(batch["image"])))
    _compare_generated(golden, task, context, task.prompt, _defaults(golden))
    if "scst.loss" in golden.outputs:
        _compare_self_critical(golden, task, batch["image"])
    _skip_margins(golden)


def _compare_self_critical(golden: Golden, task: CaptionTask, image: Tensor) -> None:
    """Beams, and the loss of recorded rewards, with its gradients."""
    decoder, prompt, reward = task.model.text_decoder, task.prompt, golden.inputs["scst_reward"]
    task.zero_grad()
    seen = decoder.context_kv(task.image_tokens(image))
    with torch.no_grad():
        fixed = Context(seen)
        texts = _compare_hypotheses(golden, "scst.ids", task, fixed, prompt, _defaults(golden))
    loss = beam_loss(decoder, seen, texts, reward - reward.mean(1, keepdim=True), prompt, 0)
    golden.compare("scst.loss", loss)
    loss.backward()
    compare_gradients(golden, task.model, prefix="scst.")


def _labels(batch: dict[str, Tensor], prompt: int) -> Tensor:
    ids = batch["input_ids"]
    first = ids.new_full((len(ids), 1), NO_TARGET)  # nothing predicts the first token
    return torch.cat([first, next_targets(ids, batch["attention_mask"], prompt)], dim=1)


CASES: dict[str, Callable[[Golden], None]] = {
    "a": visual_encoder,
    "b": fusion,
    "c": vqa,
    "d": caption,
    "g3": caption,
}
