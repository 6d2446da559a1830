"""mPLUG's text encoder and its fusion encoder (mPLUG §3.1), of the layers of text.py.

Most layers of the fusion encoder change the text alone: self-attention, cross-attention to the image, feed-forward.
Every `stride`-th, the connected ones, read image and text as one sequence, and what they make of the image is added
to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aurora_ds.backbones.blip_nlvr import TwinAttentionBlock, twin_keys_values
from aurora_ds.backbones.site import Site
from aurora_ds.backbones.text import (
    AttentionBlock,
    CrossAttention,
    KeysValues,
    TextEncoder,
    TextLayer,
    initialise,
    keys_values,
)
from aurora_ds.config import BackboneConfig, TextConfig
from aurora_ds.errors import AuroraError


class PlainTextEncoder(TextEncoder):
    """TextEncoder without cross-attention."""

    def cross_attention(self, config: TextConfig, vision_width: int, eager: bool, layer: int) -> None:
        """None."""

    def sites(self, prefix: str) -> list[Site]:
        """Every projection of every layer."""
        return [
            site
            for i, layer in enumerate(self.encoder.layer)
            for site in layer_sites(f"{prefix}.encoder.layer.{i}", layer, i)
        ]


@dataclass(frozen=True)
class FusionKeys:
    """Image tokens (images, N, H), and their keys and values for the layers before the first connected one."""

    tokens: Tensor
    before: list[KeysValues]


class FusionEncoder(nn.Module):
    """Image tokens and text states -> both, each knowing the other.

    Layers are named as in the published files, by their number in a BERT of `text.depth` layers, of which they are the
    last."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        text, fusion = config.text, config.mplug.fusion_layers
        if fusion > text.depth:
            raise AuroraError(
                f"backbone.mplug.fusion_layers ({fusion}) must not exceed backbone.text.depth ({text.depth}), whose "
                "last layers they are."
            )
        eager, self.width = config.attention == "eager", text.width
        self.activation_checkpointing = config.activation_checkpointing
        self.connected = connected_layers(config)
        layers = {
            str(number): TextLayer(
                text, None if number in self.connected else self.cross_attention(text, eager), eager
            )
            for number in range(text.depth - fusion, text.depth)
        }
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleDict(layers)
        self.apply(initialise)

    def cross_attention(self, text: TextConfig, eager: bool) -> nn.Module:
        """The cross-attention sub-layer of one layer; called while the model is built."""
        return AttentionBlock(CrossAttention(text, text.width, eager), text)

    def image_kv(self, layers: Sequence[TextLayer], tokens: Tensor) -> list[KeysValues]:
        """Image tokens (images, N, H) -> keys and values of each layer."""
        return keys_values([layer.crossattention.self for layer in layers], tokens)

    def layers(self) -> list[tuple[int, TextLayer]]:
        """Numbers and layers, in order."""
        return [(int(number), layer) for number, layer in self.encoder.layer.items()]

    def keys(self, tokens: Tensor) -> FusionKeys:
        """What any number of texts needs of image tokens (images, N, H)."""
        return FusionKeys(tokens, self.image_kv([layer for _, layer in self._apart()], tokens))

    def _apart(self) -> list[tuple[int, TextLayer]]:
        first = min(self.connected, default=None)
        return [each for each in self.layers() if first is None or each[0] < first]

    def forward(
        self,
        states: Tensor,
        attention_mask: Tensor,
        keys: FusionKeys,
        image_index: Tensor | None = None,
        group_size: int | None = None,
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image states and text states (B, L, H) of B pairs. Image states are (B, N, H), or as given, (images, N, H),
        where no layer is connected.

        Args:
            states: (B, L, H), of the text encoder. attention_mask: (B, L), 1 = token. image_mask: (images, N), the
                same. image_index: int64 (B,), the image of each text. group_size: texts per image, in their order.
        """
        mask = attention_mask.to(torch.bool)[:, None, None, :]
        vision, seen, kv = keys.tokens, image_mask, keys.before
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()

        def run(layer: TextLayer, *arguments: object) -> Tensor:
            return checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)

        for place, (number, layer) in enumerate(self.layers()):
            if number in self.connected:
                if place == len(kv):  # the first: from here on every text has an image of its own
                    vision, seen = (_of_texts(each, image_index, group_size) for each in (vision, image_mask))
                    image_index = group_size = None
                together = torch.cat([vision, states], dim=1)
                visible = (
                    torch.ones_like(vision[..., 0], dtype=torch.bool) if seen is None else seen.to(torch.bool)
                )
                visible = torch.cat([visible[:, None, None, :], mask], dim=3)
                change, states = run(layer, together, visible).split(
                    [vision.shape[1], states.shape[1]], dim=1
                )
                vision = vision + change
                continue
            own = kv[place] if place < len(kv) else self.image_kv([layer], vision)[0]
            states = run(layer, states, mask, own, image_index, group_size, None, seen)
        return vision, states

    def sites(self, prefix: str) -> list[Site]:
        """Every projection of every layer that computes."""
        return [
            site
            for number, layer in self.layers()
            for site in layer_sites(f"{prefix}.encoder.layer.{number}", layer, number)
        ]

    def query_layers(self, prefix: str) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers that attend to the image, which have a `residual`."""
        return [
            (f"{prefix}.encoder.layer.{number}", layer, self.width)
            for number, layer in self.layers()
            if layer.crossattention is not None
        ]


class TwinFusionEncoder(FusionEncoder):
    """FusionEncoder whose texts see two images each: cross-attention has projections for either, and their results are
    averaged, as in BLIP's lower layers (blip_nlvr.py); connected layers read both images and the text as one
    sequence. Tokens of a pair are (pairs, 2N, H), those of the first image in front."""

    def cross_attention(self, text: TextConfig, eager: bool) -> nn.Module:
        return TwinAttentionBlock(text, text.width, eager, merge=False)

    def image_kv(self, layers: Sequence[TextLayer], tokens: Tensor) -> list[KeysValues]:
        return twin_keys_values([layer.crossattention for layer in layers], *tokens.chunk(2, dim=1))


def connected_layers(config: BackboneConfig) -> frozenset[int]:
    """Numbers of the connected layers: the first is none, whatever the stride."""
    fusion, stride = config.mplug.fusion_layers, config.mplug.stride
    return frozenset(config.text.depth - fusion + local for local in range(stride, fusion, stride))


def _of_texts(rows: Tensor | None, image_index: Tensor | None, group_size: int | None) -> Tensor | None:
    """Rows of images, repeated for the texts that see them."""
    if rows is None or (image_index is None and group_size is None):
        return rows
    return rows.repeat_interleave(group_size, 0) if image_index is None else rows.index_select(0, image_index)


def layer_sites(path: str, layer: TextLayer, number: int) -> list[Site]:
    """Every projection of a layer; the feed-forward's in blocks of the layer's width where it divides."""
    dense = layer.intermediate.dense
    whole, rest = divmod(dense.out_features, dense.in_features)
    blocks = whole if rest == 0 else 1
    found = [
        Site(f"{path}.attention.self.qkv", f"{path}.attention.self.qkv", 3, 1, "text", number, "attention"),
        _plain(f"{path}.attention.output.dense", "text", number),
    ]
    if layer.crossattention is not None:
        cross = f"{path}.crossattention"
        for which in ("0", "1") if isinstance(layer.crossattention, TwinAttentionBlock) else ("",):
            own = f"{cross}.self{which}"
            found += [
                _plain(f"{own}.query", "cross", number),
                Site(f"{own}.kv", f"{own}.kv", 2, 1, "cross", number, "attention"),
                _plain(f"{cross}.output.dense{which}", "cross", number),
            ]
    first, second = f"{path}.intermediate.dense", f"{path}.output.dense"
    return [
        *found,
        Site(first, first, blocks, 1, "text", number, "mlp"),
        Site(second, second, 1, blocks, "text", number, "mlp"),
    ]


def _plain(path: str, modality: str, number: int) -> Site:
    return Site(path, path, 1, 1, modality, number, "attention")
