"""mPLUG (EMNLP 2022, §3.1): CLIP's vision transformer, a BERT that reads the text, a fusion encoder, a decoder.

Only what computes is built. Of the published tensors CLIP's text tower and projection, the first half of the fusion
encoder, its embeddings and the cross-attention of connected layers never do.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from aurora_ds.backbones.blip import INITIAL_TEMPERATURE
from aurora_ds.backbones.blip_nlvr import Judged, new_cls_head
from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.backbones.mplug_text import (
    FusionEncoder,
    FusionKeys,
    PlainTextEncoder,
    TwinFusionEncoder,
    layer_sites,
)
from aurora_ds.backbones.separate_encoders import SeparateEncoders
from aurora_ds.backbones.site import Site
from aurora_ds.backbones.text import INITIAL_STD, LAYER_NORM_EPS, initialise
from aurora_ds.backbones.vision import ClipVisionTransformer
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError


class ClipTower(nn.Module):
    """Gives the vision transformer its published parent name, `visual_encoder.visual`."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        dropout = config.mplug.vision_attention_dropout
        self.visual = ClipVisionTransformer(
            config.vision, config.attention, config.activation_checkpointing, dropout
        )

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S) -> tokens (B, N + 1, D), class token first."""
        return self.visual(image)


class MplugBackbone(nn.Module):
    """The vision transformer, and the bridge to the text's width where the widths differ."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = ClipTower(config)
        width, text = config.vision.width, config.text
        self.bridged = width != text.width
        if self.bridged:
            self.visn_fc = nn.Linear(width, text.width)
            self.visn_layer_norm = nn.LayerNorm(text.width, eps=LAYER_NORM_EPS)
            self.visn_dropout = nn.Dropout(text.dropout)
            initialise(self.visn_fc)

    def image_tokens(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S), normalised -> tokens (B, N + 1, H), class token first."""
        tokens = self.visual_encoder(image)
        if not self.bridged:
            return tokens
        return self.visn_dropout(self.visn_layer_norm(self.visn_fc(tokens)))

    def sites(self) -> list[Site]:
        """What prompts may adapt, in the order in which it computes: every projection."""
        bridge = [Site("visn_fc", "visn_fc", 1, 1, "vision", 0, "mlp")] if self.bridged else []
        return self.visual_encoder.visual.sites("visual_encoder.visual") + bridge

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers that have a `residual`."""
        return []

    def heads(self) -> dict[str, str]:
        """Name -> module path of the heads, always in the same order."""
        return {}


class _Reading(MplugBackbone):
    """With the encoders of text and of both."""

    FUSION: ClassVar[type[FusionEncoder]] = FusionEncoder

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        text = config.text.model_copy(update={"depth": config.mplug.text_layers})
        self.text_encoder = PlainTextEncoder(
            text, text.width, config.attention, config.activation_checkpointing
        )
        self.fusion_encoder = self.FUSION(config)

    def sites(self) -> list[Site]:
        return [
            *super().sites(),
            *self.text_encoder.sites("text_encoder"),
            *self.fusion_encoder.sites("fusion_encoder"),
        ]

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        return self.fusion_encoder.query_layers("fusion_encoder")


class _Writing(MplugBackbone):
    """With the decoder; called after the other parts are made, in the order in which they compute."""

    def add_decoder(self, config: BackboneConfig) -> None:
        text = config.text.model_copy(update={"depth": config.mplug.decoder_layers})
        self.text_decoder = TextDecoder(text, text.width, config.attention, config.activation_checkpointing)

    def sites(self) -> list[Site]:
        layers, head = self.text_decoder.bert.encoder.layer, "text_decoder.cls.predictions.transform.dense"
        inside = [
            site
            for i, layer in enumerate(layers)
            for site in layer_sites(f"text_decoder.bert.encoder.layer.{i}", layer, i)
        ]
        return [*super().sites(), *inside, Site(head, head, 1, 1, "text", len(layers), "mlp")]

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        return super().query_layers() + self.text_decoder.bert.query_layers("text_decoder.bert")


class MplugRetrieval(SeparateEncoders, _Reading):
    """Both encoders' projections to the joint space, and the matching head on the fused text's first state.

    `vision_proj`, `text_proj` (H -> E), `itm_head` (H -> 2, class 1 = match), `temp`: contrastive temperature."""

    FOR_PAIRS = ("fusion_encoder",)

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        width = config.text.width
        self.vision_proj = nn.Linear(width, config.embed_dim)
        self.text_proj = nn.Linear(width, config.embed_dim)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE, dtype=torch.float32))
        for head in self.heads().values():
            nn.init.normal_(getattr(self, head).weight, std=INITIAL_STD)
            nn.init.zeros_(getattr(self, head).bias)

    def image_keys(self, tokens: Tensor) -> FusionKeys:
        """Image tokens (images, N, H) -> what matching any number of texts needs of them."""
        return self.fusion_encoder.keys(tokens)

    def matched(
        self,
        ids: Tensor,
        mask: Tensor,
        keys: FusionKeys,
        image_index: Tensor | None = None,
        group_size: int | None = None,
        key_scale: Tensor | None = None,
    ) -> Tensor:
        """States (B, L, H) of texts, ids and mask (B, L), that see the images of `keys`; the rest as of TextEncoder.

        Raises AuroraError for `key_scale`: connected layers have no keys of images alone."""
        if key_scale is not None:
            raise AuroraError(
                "mPLUG cannot weigh the frames of a clip: set retrieval.frame_weights=off for backbone.name=mplug."
            )
        return self.fusion_encoder(self.text_encoder(ids, mask), mask, keys, image_index, group_size)[1]

    def heads(self) -> dict[str, str]:
        return {name: name for name in ("vision_proj", "text_proj", "itm_head")}


class MplugVqa(_Writing, _Reading):
    """The question is fused with the image; the answer is written from both."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.add_decoder(config)

    def read(
        self, ids: Tensor, mask: Tensor, tokens: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the decoder attends to of each text, ids and mask (B, L), with its image: states (B, N + L, H) of the
        image, then the text, and their mask int64 (B, N + L).

        tokens: (images, N, H). image_index: int64 (B,), the image of each text; None: one per text."""
        states = self.text_encoder(ids, mask)
        vision, states = self.fusion_encoder(states, mask, self.fusion_encoder.keys(tokens), image_index)
        if image_index is not None and not self.fusion_encoder.connected:
            vision = vision.index_select(0, image_index)
        return torch.cat([vision, states], dim=1), torch.cat([mask.new_ones(vision.shape[:2]), mask], dim=1)


class MplugGrounding(MplugVqa):
    """The same model for a phrase; what is written are the four numbers of its box."""


class _Judging(_Reading):
    """`cls_head` (H -> classes) on the fused text's first state says what is true of a statement."""

    CLASSES: ClassVar[int]

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.cls_head = new_cls_head(config.text, self.CLASSES)

    def judged(self, ids: Tensor, mask: Tensor, keys: FusionKeys, index: Tensor | None = None) -> Judged:
        """Statements, ids and mask (B, L), about what `keys` are of; `index` int64 (B,): the row of each; None: in
        their order."""
        states = self.fusion_encoder(self.text_encoder(ids, mask), mask, keys, index)[1]
        return Judged(self.cls_head(states[:, 0]), states)

    def heads(self) -> dict[str, str]:
        """The head's two linears."""
        return {"cls_head_0": "cls_head.0", "cls_head_2": "cls_head.2"}


class MplugEntailment(_Judging):
    """An image and a statement -> contradiction, neutral or entailment (mPLUG's order of classes)."""

    CLASSES = 3

    def image_keys(self, tokens: Tensor) -> FusionKeys:
        """Image tokens (images, N, H) -> what judging any number of statements needs of them."""
        return self.fusion_encoder.keys(tokens)


class MplugNlvr(_Judging):
    """Two images and a statement -> class 1 = true."""

    CLASSES, FUSION = 2, TwinFusionEncoder

    def pair_keys(self, first: Tensor, second: Tensor) -> FusionKeys:
        """Tokens of first and second images (pairs, N, H) -> what judging any number of statements needs of them."""
        return self.fusion_encoder.keys(torch.cat([first, second], dim=1))


class MplugCaption(_Writing):
    """Image -> text that describes it, from the image's tokens alone."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.add_decoder(config)
