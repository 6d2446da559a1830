"""BLIP for statements about two images (NLVR2; BLIP §4): each text layer attends to both, and a head decides.

The two attentions of a layer have projections of their own. Their results are averaged in the first six layers
and merged by a linear from the seventh on, whatever the depth, as published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aurora_ds.backbones.shared_input import project_each
from aurora_ds.backbones.site import Site
from aurora_ds.backbones.text import LAYER_NORM_EPS, CrossAttention, KeysValues, TextEncoder, keys_values
from aurora_ds.backbones.vision import VisionTransformer
from aurora_ds.config import BackboneConfig, TextConfig

MERGE_FROM_LAYER = 6


class TwinAddAndNorm(nn.Module):
    """LayerNorm(dropout(both) + residual), where both is the mean of dense0(x0) and dense1(x1), or their merge."""

    def __init__(self, config: TextConfig, merge: bool) -> None:
        super().__init__()
        self.dense0 = nn.Linear(config.width, config.width)
        self.dense1 = nn.Linear(config.width, config.width)
        self.merge_layer = nn.Linear(2 * config.width, config.width) if merge else None
        self.LayerNorm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        first, second = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            both = (first + second) / 2
        else:
            both = self.merge_layer(torch.cat([first, second], dim=-1))
        return self.LayerNorm(self.dropout(both) + residual)


class TwinAttentionBlock(nn.Module):
    """Attention to two images and the end of the sub-layer."""

    def __init__(self, config: TextConfig, vision_width: int, eager: bool, merge: bool) -> None:
        super().__init__()
        self.self0 = CrossAttention(config, vision_width, eager)
        self.self1 = CrossAttention(config, vision_width, eager)
        self.output = TwinAddAndNorm(config, merge)

    def forward(self, states: Tensor, kv: KeysValues, *arguments: object) -> Tensor:
        """kv: keys and values of the first image, then of the second, (images, heads, N, d) each."""
        queries = project_each([self.self0.query, self.self1.query], states)
        first = self.self0(states, kv[:2], *arguments, query=queries[0])
        second = self.self1(states, kv[2:], *arguments, query=queries[1])
        return self.output(first, second, states)


def twin_keys_values(blocks: Sequence[TwinAttentionBlock], first: Tensor, second: Tensor) -> list[KeysValues]:
    """Tokens of first and second images (pairs, N, D) -> keys and values of both for each block."""
    of_first = keys_values([block.self0 for block in blocks], first)
    of_second = keys_values([block.self1 for block in blocks], second)
    return [one + other for one, other in zip(of_first, of_second, strict=True)]


class TwinTextEncoder(TextEncoder):
    """TextEncoder whose texts see two images each."""

    def cross_attention(self, config: TextConfig, vision_width: int, eager: bool, layer: int) -> nn.Module:
        return TwinAttentionBlock(config, vision_width, eager, layer >= MERGE_FROM_LAYER)

    def image_kv(self, first: Tensor, second: Tensor) -> list[KeysValues]:
        """Tokens of first and second images (pairs, N, D) -> per layer keys and values of both, for `forward`."""
        return twin_keys_values([layer.crossattention for layer in self.encoder.layer], first, second)

    def sites(self, prefix: str) -> list[Site]:
        """Adaptable linears of every layer: self-attention, then query and key-value per image."""
        return [
            Site(path, path, outputs, 1, modality, i, "attention")
            for i in range(len(self.encoder.layer))
            for path, outputs, modality in (
                (f"{prefix}.encoder.layer.{i}.attention.self.qkv", 3, "text"),
                (f"{prefix}.encoder.layer.{i}.crossattention.self0.query", 1, "cross"),
                (f"{prefix}.encoder.layer.{i}.crossattention.self0.kv", 2, "cross"),
                (f"{prefix}.encoder.layer.{i}.crossattention.self1.query", 1, "cross"),
                (f"{prefix}.encoder.layer.{i}.crossattention.self1.kv", 2, "cross"),
            )
        ]


class Judged(NamedTuple):
    """What a model says of statements about images."""

    logits: Tensor  # (B, classes); about pairs, class 1 = true
    states: Tensor  # of the statements' tokens, as the head sees them
    auxiliary: Tensor | None = None  # scalar: a loss of the model's own, to be added in training


class BlipNlvr(nn.Module):
    """Two images and a statement -> `cls_head` (H -> 2, class 1 = true) on the state of the first token."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        vision, text = config.vision, config.text
        self.visual_encoder = VisionTransformer(vision, config.attention, config.activation_checkpointing)
        self.text_encoder = TwinTextEncoder(
            text, vision.width, config.attention, config.activation_checkpointing
        )
        self.cls_head = new_cls_head(text)

    def image_tokens(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N + 1, D)."""
        return self.visual_encoder(image)

    def pair_keys(self, first: Tensor, second: Tensor) -> list[KeysValues]:
        """Tokens of first and second images (pairs, N, D) -> what judging any number of statements needs of them."""
        return self.text_encoder.image_kv(first, second)

    def judged(
        self, ids: Tensor, mask: Tensor, keys: list[KeysValues], index: Tensor | None = None
    ) -> Judged:
        """Statements, ids and mask (B, L), about the pairs of `keys`; `index` int64 (B,): the pair of each; None: in
        their order."""
        states = self.text_encoder(ids, mask, keys, index)
        return Judged(self.cls_head(states[:, 0]), states)

    def sites(self) -> list[Site]:
        """What prompts may adapt: vision blocks first, then text layers."""
        return self.visual_encoder.sites("visual_encoder") + self.text_encoder.sites("text_encoder")

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers that have a `residual`."""
        return self.text_encoder.query_layers("text_encoder")

    def heads(self) -> dict[str, str]:
        """Name -> module path of the head's two linears, always in the same order."""
        return {"cls_head_0": "cls_head.0", "cls_head_2": "cls_head.2"}


def new_cls_head(text: TextConfig, classes: int = 2) -> nn.Sequential:
    """Linear H -> H, ReLU, linear H -> classes, as torch initialises them."""
    return nn.Sequential(nn.Linear(text.width, text.width), nn.ReLU(), nn.Linear(text.width, classes))


def doubled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors of one cross-attention a layer as those of two, both with its weights."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".crossattention.self." in name:
            copies = [name.replace(".crossattention.self.", f".crossattention.self{i}.") for i in (0, 1)]
        elif ".crossattention.output.dense." in name:
            copies = [name.replace(".output.dense.", f".output.dense{i}.") for i in (0, 1)]
        else:
            copies = [name]
        result |= dict.fromkeys(copies, tensor)
    return result


def fresh_head(state: Mapping[str, Tensor], text: TextConfig, classes: int = 2) -> dict[str, Tensor]:
    """Tensors of a head drawn from torch's generator where `state` has none."""
    if any(name.startswith("cls_head.") for name in state):
        return {}
    head = new_cls_head(text, classes).state_dict()
    return {f"cls_head.{name}": tensor for name, tensor in head.items()}


def from_pretrained(state: dict[str, Tensor], text: TextConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a pre-trained BLIP, under published names -> those of BlipNlvr, and the names that are new.

    Each cross-attention becomes both. Merge layers begin as the mean that the layers below them take: published code
    draws them at random, which a backbone that stays frozen could never mend. The head, where there is none, is drawn
    from torch's generator. A file that has two cross-attentions comes back as it is."""
    if not any(".crossattention.self." in name for name in state):
        return state, []
    result = doubled(state)
    fresh: dict[str, Tensor] = {}
    for layer in range(MERGE_FROM_LAYER, text.depth):
        prefix = f"text_encoder.encoder.layer.{layer}.crossattention.output.merge_layer"
        fresh[f"{prefix}.weight"] = torch.eye(text.width).repeat(1, 2) / 2
        fresh[f"{prefix}.bias"] = torch.zeros(text.width)
    fresh |= fresh_head(result, text)
    return result | fresh, list(fresh)
