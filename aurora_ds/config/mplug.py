"""mPLUG's sizes beside those that it shares with other backbones (mPLUG, EMNLP 2022, §3.1)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from aurora_ds.config.section import Section

# plain bert-base-uncased: no tokens of its own, every text begins with [CLS]
TEXT_DEFAULTS: dict[str, Any] = {"vocab_size": 30522, "token_types": 2, "bos_id": 101, "enc_id": 101}


class MplugConfig(Section):
    """The base model by default: ViT-B/16, a connected layer after three. Large: ViT-L/14, `stride` 6, which connects
    none. `backbone.text.depth` is the depth of the BERT whose last layers the fusion encoder's are named after."""

    text_layers: PositiveInt = Field(6, description="of the text encoder")
    fusion_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 12
    stride: PositiveInt = Field(
        3,
        description="each layer of the fusion encoder whose number this divides, but the first, joins image and text",
    )
    text_end: Literal["sep", "none"] | None = Field(
        None,
        description="what questions and retrieval's captions end with: [SEP], or nothing, as the published weights "
        "were trained (released)",
    )
    clip: str | None = Field(
        None,
        description="without backbone.checkpoint: OpenAI's CLIP file that the vision transformer begins with",
    )
    bert: str | None = Field(
        None, description="the same for bert-base-uncased, its file or directory, and the text's parts"
    )
    vision_attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="of the vision transformer; the published value cannot be set there"
    )
