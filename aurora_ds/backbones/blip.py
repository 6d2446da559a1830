"""BLIP for image-text retrieval (BLIP §3.1): both encoders, their projections to the joint space, the matching head.

The parts are used through their own calls; what is learned from them is a task's business.
"""

from __future__ import annotations

import torch
from torch import nn

from aurora_ds.backbones.site import Site
from aurora_ds.backbones.text import INITIAL_STD, TextEncoder
from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.config import BackboneConfig

INITIAL_TEMPERATURE = 0.07


class BlipRetrieval(nn.Module):
    """Encoders and heads under the published names; random weights until a checkpoint is loaded.

    `vision_proj` (D -> E), `text_proj` (H -> E), `itm_head` (H -> 2, class 1 = match), `temp`: contrastive temperature.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        vision, text = config.vision, config.text
        self.visual_encoder = VisionTransformer(vision, config.attention, config.activation_checkpointing)
        self.text_encoder = TextEncoder(text, vision.width, config.attention, config.activation_checkpointing)
        self.vision_proj = nn.Linear(vision.width, config.embed_dim)
        self.text_proj = nn.Linear(text.width, config.embed_dim)
        self.itm_head = nn.Linear(text.width, 2)
        self.temp = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE, dtype=torch.float32))
        for head in self.heads().values():
            nn.init.normal_(getattr(self, head).weight, std=INITIAL_STD)
            nn.init.zeros_(getattr(self, head).bias)

    def sites(self) -> list[Site]:
        """What prompts may adapt: vision blocks first, then text layers."""
        return self.visual_encoder.sites("visual_encoder") + self.text_encoder.sites("text_encoder")

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers that have a `residual`."""
        return self.text_encoder.query_layers("text_encoder")

    def heads(self) -> dict[str, str]:
        """Name -> module path of the heads, always in the same order."""
        return {name: name for name in ("vision_proj", "text_proj", "itm_head")}
