"""BLIP for image-text retrieval (BLIP §3.1): both encoders, their projections to the joint space, the matching head.

What tasks ask of a backbone of any family are `image_tokens`, `image_keys` and `matched` here, `read` of the model that
answers questions, the encoders, decoder and heads by their names, `sites`, `query_layers` and `heads`. What is learned
from them is a task's business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aurora_ds.backbones.separate_encoders import SeparateEncoders
from aurora_ds.backbones.site import Site
from aurora_ds.backbones.text import INITIAL_STD, KeysValues, TextEncoder
from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.config import BackboneConfig

INITIAL_TEMPERATURE = 0.07


class BlipRetrieval(SeparateEncoders, nn.Module):
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

    def image_tokens(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S), normalised -> tokens (B, N + 1, D), class token first."""
        return self.visual_encoder(image)

    def image_keys(self, tokens: Tensor) -> list[KeysValues]:
        """Image tokens (images, N, D) -> what matching any number of texts needs of them."""
        return self.text_encoder.image_kv(tokens)

    def matched(
        self,
        ids: Tensor,
        mask: Tensor,
        keys: list[KeysValues],
        image_index: Tensor | None = None,
        group_size: int | None = None,
        key_scale: Tensor | None = None,
    ) -> Tensor:
        """States (B, L, H) of texts, ids and mask (B, L), that see the images of `keys`; the rest as of TextEncoder."""
        scale = None if key_scale is None else key_scale.to(keys[0][0].dtype)
        return self.text_encoder(ids, mask, keys, image_index, group_size, scale)

    def sites(self) -> list[Site]:
        """What prompts may adapt: vision blocks first, then text layers."""
        return self.visual_encoder.sites("visual_encoder") + self.text_encoder.sites("text_encoder")

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers that have a `residual`."""
        return self.text_encoder.query_layers("text_encoder")

    def heads(self) -> dict[str, str]:
        """Name -> module path of the heads, always in the same order."""
        return {name: name for name in ("vision_proj", "text_proj", "itm_head")}
