"""Which frozen model, and its sizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, ValidationInfo

from aurora_ds.config import eve, mplug
from aurora_ds.config.eve import EveConfig
from aurora_ds.config.mplug import MplugConfig
from aurora_ds.config.section import Section

# by backbone.name: the models that there are, and what a text transformer is where a recipe says nothing else
HEADS_OF: dict[str, tuple[str, ...]] = {
    "blip": ("retrieval", "vqa", "caption", "nlvr"),
    "eve": ("retrieval", "vqa", "nlvr", "pretrain"),
    "mplug": ("retrieval", "vqa", "caption", "nlvr", "entailment", "grounding"),
}
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {"eve": eve.TEXT_DEFAULTS, "mplug": mplug.TEXT_DEFAULTS}


class VisionConfig(Section):
    """Vision transformer: sizes under their usual names. ViT-B/16 by default, 384 px as in BLIP retrieval."""

    image_size: PositiveInt = 384
    patch_size: PositiveInt = 16
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, linear from 0")


class TextConfig(Section):
    """Text transformer (post-norm BERT with cross-attention). Default: bert-base with BLIP's two extra tokens."""

    vocab_size: PositiveInt = 30524
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    intermediate: PositiveInt = 3072
    max_positions: PositiveInt = 512
    token_types: int = Field(0, ge=0, description="segment embeddings, of which the first is used; 0: none")
    dropout: float = Field(0.1, ge=0, lt=1, description="after embeddings, attention output and feed-forward")
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    bos_id: int = 30522
    enc_id: int = 30523


def _of_family(value: Any, info: ValidationInfo) -> Any:
    """A recipe that sets a part leaves the rest as the family of backbones has it."""
    return TEXT_DEFAULTS.get(info.data.get("name"), {}) | value if isinstance(value, dict) else value


class BackboneConfig(Section):
    """Which frozen model, and the file it comes from."""

    name: Literal["blip", "mplug", "eve"] = Field("blip", description="family of backbones")
    head: Literal["retrieval", "vqa", "caption", "nlvr", "entailment", "grounding", "pretrain"] = Field(
        "retrieval", description="which model: what is computed from the image encoder's tokens"
    )
    checkpoint: str | None = Field(
        None,
        description="published .pth, .safetensors, transformers-format directory (BLIP), `builtin:world`, "
        "`builtin:world-language`, `builtin:world-mplug`, `builtin:world-eve`; null: random",
    )
    tokenizer: str | None = Field(
        None,
        description="vocab.txt or a directory that holds one; null: beside the checkpoint, else built in",
    )
    vision: VisionConfig = VisionConfig()
    text: Annotated[TextConfig, BeforeValidator(_of_family)] = Field({}, validate_default=True)
    mplug: MplugConfig = MplugConfig()
    eve: EveConfig = EveConfig()
    embed_dim: PositiveInt = 256
    momentum_weights: Literal["read", "ignore"] = Field(
        "ignore", description="`*_m` tensors of the checkpoint"
    )
    queue_weights: Literal["read", "ignore"] = Field(
        "ignore", description="image_queue, text_queue and their pointers"
    )
    attention: Literal["sdpa", "eager"] = "sdpa"
    activation_checkpointing: bool = Field(
        False, description="recompute every block in backward (non-reentrant)"
    )
