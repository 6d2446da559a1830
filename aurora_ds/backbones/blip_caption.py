"""BLIP for captioning (BLIP §4): image encoder, and a decoder that attends to the image."""

from __future__ import annotations

from torch import Tensor, nn

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.backbones.site import Site
from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.config import BackboneConfig


class BlipCaption(nn.Module):
    """Image -> text that describes it."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        vision = config.vision
        self.visual_encoder = VisionTransformer(vision, config.attention, config.activation_checkpointing)
        self.text_decoder = TextDecoder(
            config.text, vision.width, config.attention, config.activation_checkpointing
        )

    def image_tokens(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S), normalised -> tokens (B, N + 1, D), class token first."""
        return self.visual_encoder(image)

    def sites(self) -> list[Site]:
        """What prompts may adapt: vision blocks first, then the decoder's layers."""
        return self.visual_encoder.sites("visual_encoder") + self.text_decoder.sites("text_decoder")

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers that have a `residual`."""
        return self.text_decoder.bert.query_layers("text_decoder.bert")

    def heads(self) -> dict[str, str]:
        """None: the word prediction stays frozen."""
        return {}
