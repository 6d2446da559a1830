"""What the two presets stand for: every setting that a recipe leaves null is filled in here, in one place.

`released` is the public Aurora code as it runs (parity with its numbers, its quirks included); `aurora` is
the same method without the quirks: the text projection trains too, matching sees no label leak, clips are
judged as they were trained, and nothing
depends on the number of ranks.
"""

from __future__ import annotations

from aurora_ds.config import BackboneConfig, PromptConfig, RunConfig
from aurora_ds.config.section import Section
from aurora_ds.errors import AuroraError

HEADS = {  # by backbone.head: what a model has that is trained beside its prompts
    "retrieval": ("vision_proj", "text_proj", "itm_head"),
    "vqa": (),
    "caption": (),
    "nlvr": ("cls_head_0", "cls_head_2"),
    "entailment": ("cls_head_0", "cls_head_2"),
    "grounding": (),
    "pretrain": (),
}


def heads_of(backbone: BackboneConfig) -> tuple[str, ...]:
    """What the model of `backbone` has that is trained beside its prompts. EVE answers questions by a classifier."""
    classifies = (backbone.name, backbone.head) == ("eve", "vqa")
    return HEADS["nlvr"] if classifies else HEADS[backbone.head]


PROMPT_PRESETS = {
    "aurora": {
        "form": "tucker",
        "dropout_position": "shared",
        "mlp_layout": "block",
        "context": "consistent",
        "train_heads": ["vision_proj", "text_proj", "itm_head", "cls_head_0", "cls_head_2"],
        "momentum_factors": "ema",
    },
    "released": {
        "form": "tucker",
        "dropout_position": "released",
        "mlp_layout": "interleaved",
        "context": "released",
        "train_heads": ["vision_proj", "itm_head", "cls_head_0", "cls_head_2"],
        "momentum_factors": "shared",
    },
}

RETRIEVAL_PRESETS = {
    "aurora": {
        "momentum_dropout": False,
        "contrast": "global",
        "negative_sampling": "keyed",
        "frame_weights": "consistent",
    },
    "released": {
        "momentum_dropout": True,
        "contrast": "local",
        "negative_sampling": "torch",
        "frame_weights": "released",
    },
}


VQA_PRESETS = {
    "aurora": {"loss_per": "question", "question_padding": "masked"},
    "released": {"loss_per": "frame", "question_padding": "seen"},
}

NLVR_PRESETS = {"aurora": {"swap": "train"}, "released": {"swap": "released"}}

MPLUG_PRESETS = {"aurora": {"text_end": "sep"}, "released": {"text_end": "none"}}

GROUNDING_PRESETS = {"aurora": {"weighting": "sample"}, "released": {"weighting": "batch"}}


def with_preset(config: RunConfig) -> RunConfig:
    """A copy of `config` whose null settings are filled from `config.prompts.preset`.

    Raises:
        AuroraError: a combination that has no meaning (interleaved MLP columns in the CP form).
    """
    config = config.model_copy(deep=True)
    if config.prompts.train_heads is None:
        heads = PROMPT_PRESETS[config.prompts.preset]["train_heads"]
        config.prompts.train_heads = [name for name in heads if name in heads_of(config.backbone)]
    config.prompts = with_prompt_preset(config.prompts)
    if config.backbone.name in ("mplug", "eve") and config.retrieval.frame_weights is None:
        config.retrieval.frame_weights = "off"  # there are no keys of images alone to weigh
    _fill(config.retrieval, RETRIEVAL_PRESETS[config.prompts.preset])
    _fill(config.vqa, VQA_PRESETS[config.prompts.preset])
    _fill(config.nlvr, NLVR_PRESETS[config.prompts.preset])
    _fill(config.backbone.mplug, MPLUG_PRESETS[config.prompts.preset])
    _fill(config.grounding, GROUNDING_PRESETS[config.prompts.preset])
    return config


def with_prompt_preset(prompts: PromptConfig) -> PromptConfig:
    """A copy of the prompts' settings alone, its null ones filled; raises as `with_preset` does."""
    prompts = prompts.model_copy(deep=True)
    _fill(prompts, PROMPT_PRESETS[prompts.preset])
    if prompts.form == "cp" and prompts.mlp_layout == "interleaved":
        raise AuroraError(
            "prompts.mlp_layout=interleaved mixes the four mode columns of an MLP inside the core, "
            "which the cp form does not "
            "have. Set prompts.mlp_layout=block, or prompts.form=tucker."
        )
    return prompts


def _fill(section: Section, defaults: dict[str, object]) -> None:
    for field, value in defaults.items():
        if getattr(section, field) is None:
            setattr(section, field, list(value) if isinstance(value, list) else value)
