"""BLIP for question answering (BLIP §4): the question is read with the image, the answer is written from the
question's states."""

from __future__ import annotations

from torch import Tensor, nn

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.backbones.site import Site
from aurora_ds.backbones.text import TextEncoder
from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.config import BackboneConfig


class BlipVqa(nn.Module):
    """Image encoder, question encoder that attends to the image, answer decoder that attends to question states."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        vision, text = config.vision, config.text
        self.visual_encoder = VisionTransformer(vision, config.attention, config.activation_checkpointing)
        self.text_encoder = TextEncoder(text, vision.width, config.attention, config.activation_checkpointing)
        self.text_decoder = TextDecoder(text, text.width, config.attention, config.activation_checkpointing)

    def image_tokens(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S), normalised -> tokens (B, N + 1, D), class token first."""
        return self.visual_encoder(image)

    def read(
        self, ids: Tensor, mask: Tensor, tokens: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the decoder attends to of each text, ids and mask (B, L), with its image: states (B, L, H), and their
        mask. tokens: (images, N, D). image_index: int64 (B,), the image of each text; None: one per text."""
        return self.text_encoder(ids, mask, self.text_encoder.image_kv(tokens), image_index), mask

    def sites(self) -> list[Site]:
        """What prompts may adapt: vision blocks, then the encoder's layers, then the decoder's."""
        return [
            *self.visual_encoder.sites("visual_encoder"),
            *self.text_encoder.sites("text_encoder"),
            *self.text_decoder.sites("text_decoder"),
        ]

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers that have a `residual`."""
        return self.text_encoder.query_layers("text_encoder") + self.text_decoder.bert.query_layers(
            "text_decoder.bert"
        )

    def heads(self) -> dict[str, str]:
        """None: the word prediction stays frozen."""
        return {}
