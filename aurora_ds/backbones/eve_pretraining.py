"""EVE's model of masked pre-training: the trunk, a decoder that turns states of patches into pixels, and a head that
turns states of words into words. What is hidden is a task's business.

Hidden patches stay in the sequence as the trunk's mask embedding, so the decoder needs neither a mask token nor
positions of its own. The published decoder is not public; its depth and width are settings (`backbone.eve.decoder`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.eve import LAYER_NORM_EPS, EveStates, balance_loss
from aurora_ds.backbones.eve_heads import EveModel, _initialise
from aurora_ds.config import BackboneConfig
from aurora_ds.config.eve import DecoderConfig
from aurora_ds.errors import AuroraError

CHANNELS = 3
DECODERS = ("decoder.", "mlm_head.")  # what the trunk is taken from


class Reconstruction(NamedTuple):
    """Pixels of every patch, (B, patches, 3 · side²) each, and the pass that they come from."""

    pixels: Tensor
    targets: Tensor
    states: EveStates


class PixelDecoder(nn.Module):
    """States of patches -> pixels of patches."""

    def __init__(self, width: int, patch_size: int, config: DecoderConfig) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        self.project = nn.Linear(width, config.width)
        self.blocks = nn.Sequential(
            *(
                timm_vit.Block(config.width, config.heads, qkv_bias=True, norm_layer=norm)
                for _ in range(config.depth)
            )
        )
        self.norm = norm(config.width)
        self.pixels = nn.Linear(config.width, CHANNELS * patch_size**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module)

    def forward(self, states: Tensor) -> Tensor:
        """(B, patches, D) -> (B, patches, 3 · side²)."""
        return self.pixels(self.norm(self.blocks(self.project(states))))


class WordHead(nn.Module):
    """States -> scores of words, by the embedding that reads them."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(words))
        _initialise(self.dense)

    def forward(self, states: Tensor, words: Tensor) -> Tensor:
        """states (…, D) and embeddings (V, D) -> (…, V)."""
        return F.linear(self.norm(F.gelu(self.dense(states))), words, self.bias)


class EvePretraining(EveModel):
    """Hidden patches -> pixels, hidden words -> words, each with the other side whole."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        if not config.eve.mask_embedding:
            raise AuroraError(
                "Pre-training hides patches, and this EVE has no embedding to put in their place: set "
                "backbone.eve.mask_embedding=true."
            )
        self.decoder = PixelDecoder(config.vision.width, config.vision.patch_size, config.eve.decoder)
        self.mlm_head = WordHead(config.vision.width, config.text.vocab_size)

    def reconstructed(self, image: Tensor, ids: Tensor, mask: Tensor, hidden: Tensor) -> Reconstruction:
        """Images (B, 3, H, W) of which `hidden`, bool (B, patches), patches are not seen, with captions ids and mask
        (B, L) -> pixels of all patches, as the trunk takes them (see `backbone.eve.pixels`)."""
        one = self.backbone(image=self.pixels(image), image_mask=hidden, input_ids=ids, attention_mask=mask)
        pixels = self.decoder(one.states[:, 1 : one.vision_tokens])
        return Reconstruction(pixels, self.patches(self.pixels(image)), one)

    def guessed(self, image: Tensor, ids: Tensor, mask: Tensor, places: Tensor) -> tuple[Tensor, EveStates]:
        """Whole images with captions, ids and mask (B, L), some of whose tokens are hidden -> scores (B, K, V) of the
        tokens at `places`, int64 (B, K)."""
        one = self.backbone(image=self.pixels(image), input_ids=ids, attention_mask=mask)
        texts = one.states[:, one.vision_tokens :]
        chosen = texts.gather(1, places[..., None].expand(-1, -1, texts.shape[-1]))
        return self.mlm_head(chosen, self.backbone.word_embedding.weight), one

    def auxiliary_of(self, passes: list[EveStates]) -> Tensor:
        """The experts' load-balance loss of several passes, weighed."""
        return self.config.eve.balance_weight * balance_loss(passes)

    def patches(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, patches, 3 · side²), rows of the image, as `patch_embed` has them."""
        return F.pixel_unshuffle(image, self.config.vision.patch_size).flatten(2).transpose(1, 2)

    def picture(self, patches: Tensor) -> Tensor:
        """The opposite of `patches`, and of the change of pixels: images as a loader gives them."""
        side = self.config.vision.image_size // self.config.vision.patch_size
        planes = patches.transpose(1, 2).unflatten(2, (side, side))
        return self.loaded(F.pixel_shuffle(planes, self.config.vision.patch_size))
