"""Sizes of EVE, the unified transformer, that its vision and text sections do not say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from aurora_ds.config.section import Section

# the text section where a recipe says nothing else; the special ids but cls_id and pad_id are not published
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 64000,
    "max_positions": 196,
    "pad_id": 1,
    "cls_id": 2,
    "sep_id": 3,
    "bos_id": 2,
    "enc_id": 2,
}


class ExpertConfig(Section):
    """A feed-forward of experts: how many there are and how tokens come to them."""

    experts: PositiveInt = 32
    topk: PositiveInt = Field(2, description="experts per token; `released` takes two whatever this says")
    modality_embedding: bool = Field(
        True, description="add a learned vector per modality to what gate and experts see (`type_route`)"
    )
    capacity_factor: PositiveFloat | None = Field(
        None,
        description="an expert takes at most topk · factor · tokens / experts of a sample's tokens (4 at least) and "
        "drops the others; null: nothing is dropped. `released` counts over the batch, with factor 1",
    )


class DecoderConfig(Section):
    """The transformer that turns states of patches into pixels; of pre-training alone."""

    width: PositiveInt = 512
    depth: NonNegativeInt = Field(2, description="0: a linear layer alone")
    heads: PositiveInt = 8


class EveConfig(Section):
    """The unified transformer. Width, depth, heads, drop-path and image size are those of `backbone.vision`;
    vocabulary, positions, dropout and special tokens those of `backbone.text`.

    `released` is for comparisons with the public code. All that it changes:

    | here | with `released` |
    |---|---|
    | padding is not routed and takes no expert's room | it is, and does, and counts in the balance |
    | capacity, where it is limited, per sample | over the batch, with factor 1: results depend on batch mates |
    | `topk` experts per token | two |
    | noise on the second choice in training | in evaluation too |
    | the gate's loss counts in every task | not in question answering |
    | retrieval is evaluated with the last norm, as it is trained | without it |
    | all pairs that matching compares in one pass | true, other images, other texts: a pass each |
    | relative positions wherever there are some | not for images and texts by themselves |
    | lower experts are told what is image and what is text | they take the first tokens for an image's |
    """

    top_layers: list[NonNegativeInt] = Field(
        default_factory=lambda: [10, 11],
        description="layers, from 0, with the `top` feed-forward; large: 21-23",
    )
    top: Literal["moe", "vl"] = Field(
        "moe", description="feed-forward of the top layers: experts, or one each for image, text and pairs"
    )
    lower: Literal["vl", "single", "moe"] = Field(
        "vl", description="feed-forward of the layers below: one per modality, one for all, or experts"
    )
    moe: ExpertConfig = ExpertConfig()
    lower_moe: ExpertConfig = ExpertConfig(experts=2)
    balance_weight: float = Field(0.001, ge=0, description="weight of the experts' load-balance loss")
    layer_scale: float = Field(0.1, description="initial value of gamma_1 and gamma_2")
    relative_positions: bool = Field(
        False, description="biases on the attention scores instead of position embeddings"
    )
    mask_embedding: bool = Field(
        False, description="has the embedding that stands for masked patches (pre-training)"
    )
    decoder: DecoderConfig = DecoderConfig()
    answers: PositiveInt = Field(3128, description="answers that the question-answering head tells apart")
    nlvr_attention: bool = Field(
        False, description="NLVR2: the two passes attend to each other before the head (`biattn`)"
    )
    expert_sites: bool = Field(False, description="prompts may adapt the experts' linears too")
    pixels: Literal["converted", "as_they_are"] = Field(
        "converted",
        description="EVE was trained on pixels from -1 to 1: bring images to that, or take them as they come (an EVE "
        "trained from random weights here, or recorded inputs)",
    )
    released: bool = Field(
        False,
        description="as the public code runs: padding is routed, capacity over the batch, two experts, noise in "
        "evaluation too, no last norm there, no gate loss in question answering; results depend on batch mates",
    )
