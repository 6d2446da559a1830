"""Vision transformer: timm's, which has the parameter names of the published checkpoints, returning all tokens.

BLIP §3.1: patch convolution, class token first, learned positions, pre-norm blocks, final LayerNorm (eps
1e-6), no pooling.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import timm.layers
import timm.models.vision_transformer as timm_vit
import torch
from timm.layers.activations import QuickGELU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aurora_ds.backbones.attention import attend, merge_heads, split_heads
from aurora_ds.backbones.site import Site
from aurora_ds.config import VisionConfig
from aurora_ds.errors import AuroraError


class Attention(timm.layers.Attention):
    """timm's, whose first linear may be handed what the LayerNorm before it has begun."""

    def forward(self, x: Tensor, begun: Tensor | None = None, **options: object) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        if begun is None:
            return super().forward(x, **options)
        query, key, value = split_heads(self.qkv(x, begun), 3, self.num_heads)
        dropout = self.attn_drop.p if self.training else 0.0
        context = attend(query, key, value, dropout=dropout, eager=not self.fused_attn)
        return self.proj_drop(self.proj(merge_heads(context)))


class Mlp(timm.layers.Mlp):
    """timm's, whose first linear may be handed what the LayerNorm before it has begun."""

    def forward(self, x: Tensor, begun: Tensor | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        if begun is None:
            return super().forward(x)
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x, begun))))))


class Block(timm_vit.Block):
    """timm's, whose LayerNorms may be replaced by what gives a tuple: their result, and what was begun with it."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        x = x + self.drop_path1(self.ls1(self.attn(*_all(self.norm1(x)))))
        return x + self.drop_path2(self.ls2(self.mlp(*_all(self.norm2(x)))))


def _all(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


class VisionTransformer(timm_vit.VisionTransformer):
    """Image -> tokens. Every parameter is reached through `forward` or a submodule's, so that parameters that are
    partitioned over ranks are gathered by hooks on these calls."""

    layer_norm_eps: ClassVar[float] = 1e-6

    def __init__(
        self,
        config: VisionConfig,
        attention: str = "sdpa",
        activation_checkpointing: bool = False,
        **differences: Any,  # of timm's arguments, for a transformer of another kind
    ) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path,
            num_classes=0,
            global_pool="",
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=self.layer_norm_eps),
            block_fn=Block,
            attn_layer=Attention,
            mlp_layer=Mlp,
            **differences,
        )
        self.image_size = config.image_size
        self.grad_checkpointing = activation_checkpointing
        for block in self.blocks:
            block.attn.fused_attn = attention == "sdpa"

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), normalised -> tokens (B, N + 1, D), class token first.

        Raises AuroraError when the images are not of the configured size."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            raise AuroraError(
                f"The vision transformer is set up for {self.image_size} x {self.image_size} pixels and got images of "
                f"{image.shape[-1]} x {image.shape[-2]}. Set backbone.vision.image_size to the size the data has."
            )
        tokens = self.norm_pre(self._pos_embed(self.patch_embed(image)))  # (B, N + 1, D)
        recompute = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
        return self.norm(tokens)

    def sites(self, prefix: str) -> list[Site]:
        """Adaptable linears of every block, in the order in which they compute."""
        return [
            Site(
                f"{prefix}.blocks.{i}.{path}",
                f"{prefix}.blocks.{i}.{path}",
                outputs,
                inputs,
                "vision",
                i,
                role,
                norm and f"{prefix}.blocks.{i}.{norm}",
            )
            for i in range(len(self.blocks))
            for path, outputs, inputs, role, norm in (
                ("attn.qkv", 3, 1, "attention", "norm1"),
                ("attn.proj", 1, 1, "attention", None),
                ("mlp.fc1", 4, 1, "mlp", "norm2"),
                ("mlp.fc2", 1, 4, "mlp", None),
            )
        ]


class ClipVisionTransformer(VisionTransformer):
    """CLIP's (Radford et al., 2021): no bias in the patch convolution, a LayerNorm before the blocks, QuickGELU, eps
    1e-5; the last LayerNorm on all tokens, no projection. `attention_dropout`: in training."""

    layer_norm_eps = 1e-5

    def __init__(
        self,
        config: VisionConfig,
        attention: str = "sdpa",
        activation_checkpointing: bool = False,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            config,
            attention,
            activation_checkpointing,
            pre_norm=True,
            act_layer=QuickGELU,
            attn_drop_rate=attention_dropout,
        )
