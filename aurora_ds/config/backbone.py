"""Which frozen model, and its sizes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from aurora_ds.config.section import Section


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
    dropout: float = Field(0.1, ge=0, lt=1, description="after embeddings, attention output and feed-forward")
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    bos_id: int = 30522
    enc_id: int = 30523


class BackboneConfig(Section):
    """Which frozen model, and the file it comes from."""

    name: Literal["blip"] = "blip"
    head: Literal["retrieval", "vqa", "caption", "nlvr", "grounding"] = Field(
        "retrieval", description="which model: what is computed from the image encoder's tokens"
    )
    checkpoint: str | None = Field(
        None,
        description="published .pth, .safetensors, transformers-format directory, `builtin:world`, "
        "`builtin:world-language`; null: random",
    )
    tokenizer: str | None = Field(
        None,
        description="vocab.txt or a directory that holds one; null: beside the checkpoint, else built in",
    )
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
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
