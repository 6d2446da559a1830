"""EVE's trunk (AAAI 2024): one pre-norm transformer for an image, a text, or a text with its image.

Attention is shared by all modalities; feed-forwards are one per modality in the lower layers, and in the top layers
experts (experts.py) or one per kind of input. Parameter names are the published ones. Tokens of the image come first,
its class token first of all; the first token of a text is its class token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aurora_ds.backbones.attention import attend, merge_heads, split_heads
from aurora_ds.backbones.eve_positions import image_index, pair_index, table_rows, text_index
from aurora_ds.backbones.experts import ExpertFeedForward, FeedForward, Routing
from aurora_ds.backbones.site import Site
from aurora_ds.config import TextConfig, VisionConfig
from aurora_ds.config.eve import EveConfig
from aurora_ds.errors import AuroraError

LAYER_NORM_EPS = 1e-6
INITIAL_STD = 0.02


class EveStates(NamedTuple):  # a tuple: DeepSpeed's ZeRO-3 looks for tensors in what a module returns
    """What one pass through the trunk gives."""

    states: Tensor  # (B, N, D), after the final LayerNorm
    before_norm: Tensor  # (B, N, D)
    mask: Tensor | None  # bool (B, N), False = padding; None: no padding
    vision_tokens: int  # the first so many of N are the image's
    routings: list[Routing]  # of the layers with experts, in order

    @property
    def first_text(self) -> Tensor:
        """(B, D): the text's class token."""
        return self.states[:, self.vision_tokens]


class EveAttention(nn.Module):
    """Multi-head attention with biases on queries and values, none on keys."""

    def __init__(self, width: int, heads: int, eager: bool) -> None:
        super().__init__()
        self.heads, self.eager = heads, eager
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, D); mask bool (True: may be seen) or float (added to the scores), broadcastable to
        (B, heads, N, N) -> (B, N, D)."""
        query, key, value = split_heads(self.qkv(x), 3, self.heads)
        query = query + self.q_bias.view(self.heads, 1, -1)
        value = value + self.v_bias.view(self.heads, 1, -1)
        return self.proj(merge_heads(attend(query, key, value, mask, eager=self.eager)))


class EveLayer(nn.Module):
    """Attention and feed-forward, each normed before, scaled per channel after, and added.

    kind: `vl`, `single`, `moe` for lower layers, `top-vl`, `top-moe`. image_tokens: of a whole image, for `released`.
    """

    def __init__(
        self,
        vision: VisionConfig,
        config: EveConfig,
        kind: str,
        drop_path: float,
        image_tokens: int,
        eager: bool,
    ) -> None:
        super().__init__()
        width, hidden = vision.width, round(vision.width * vision.mlp_ratio)
        # published: lower experts are not told the kind of input, and take the first tokens of any for an image's
        self.always_vision = image_tokens if kind == "moe" and config.released else None
        self.kind = kind
        self.norm1 = _norm(width)
        self.attn = EveAttention(width, vision.heads, eager)
        self.gamma_1 = nn.Parameter(torch.full((width,), config.layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((width,), config.layer_scale))
        self.drop_path = DropPath(drop_path)
        if kind != "top-moe":
            self.norm2_imag = _norm(width)
        if kind in ("vl", "single", "top-vl"):
            self.mlp_imag = FeedForward(width, hidden)
        if kind in ("vl", "top-vl"):
            self.norm2_text, self.mlp_text = _norm(width), FeedForward(width, hidden)
        if kind in ("top-vl", "top-moe"):
            self.norm2_vl = _norm(width)
        if kind == "top-vl":
            self.mlp_vl = FeedForward(width, hidden)
        if kind in ("moe", "top-moe"):
            experts = config.lower_moe if kind == "moe" else config.moe
            self.mlp_moe = ExpertFeedForward(width, hidden, experts, config.released)

    def forward(
        self, x: Tensor, vision_tokens: int, mask: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        """x (B, N, D), of which the first `vision_tokens` tokens are the image's; mask bool (B, N), None: no padding;
        key_mask: what attention takes."""
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x), key_mask))
        fed, routing = self._feed(x, vision_tokens, mask)
        return x + self.drop_path(self.gamma_2 * fed), routing

    def _feed(self, x: Tensor, vision_tokens: int, mask: Tensor | None) -> tuple[Tensor, Routing | None]:
        length = x.shape[1]
        if self.kind == "top-moe":
            return self.mlp_moe(self.norm2_vl(x), vision_tokens, mask)
        if self.kind == "moe":
            vision_tokens = vision_tokens if self.always_vision is None else min(self.always_vision, length)
            return self.mlp_moe(self.norm2_imag(x), vision_tokens, mask)
        if self.kind == "single" or vision_tokens == length:
            return self.mlp_imag(self.norm2_imag(x)), None
        if vision_tokens == 0:
            return self.mlp_text(self.norm2_text(x)), None
        if self.kind == "top-vl":
            return self.mlp_vl(self.norm2_vl(x)), None
        image, text = x.split([vision_tokens, length - vision_tokens], dim=1)
        parts = [self.mlp_imag(self.norm2_imag(image)), self.mlp_text(self.norm2_text(text))]
        return torch.cat(parts, dim=1), None

    def sites(self, prefix: str, number: int, experts: bool) -> Iterator[Site]:
        """The adaptable linears; those of experts where `experts` says so."""
        for name, outputs in (("qkv", 3), ("proj", 1)):
            path = f"{prefix}.attn.{name}"
            yield Site(path, path, outputs, 1, "cross", number, "attention")
        for name, modality in (("mlp_imag", "vision"), ("mlp_text", "text"), ("mlp_vl", "cross")):
            if hasattr(self, name):
                linears = [(f"{name}.fc1", getattr(self, name).fc1), (f"{name}.fc2", getattr(self, name).fc2)]
                yield from _mlp_sites(prefix, linears, modality, number)
        if experts and hasattr(self, "mlp_moe"):
            linears = [(f"mlp_moe.{path}", linear) for path, linear in self.mlp_moe.linears()]
            yield from _mlp_sites(prefix, linears, "cross", number)


class EveEncoder(nn.Module):
    """The layers, and the relative-position table where there is one."""

    def __init__(
        self, vision: VisionConfig, text: TextConfig, config: EveConfig, attention: str, recompute: bool
    ) -> None:
        super().__init__()
        self.side, self.text_positions, self.heads = (
            vision.image_size // vision.patch_size,
            text.max_positions,
            vision.heads,
        )
        self.recompute = recompute
        rates = [vision.drop_path * i / max(vision.depth - 1, 1) for i in range(vision.depth)]
        self.layers = nn.ModuleList(
            EveLayer(
                vision,
                config,
                f"top-{config.top}" if i in config.top_layers else config.lower,
                rates[i],
                self.side**2 + 1,
                attention == "eager",
            )
            for i in range(vision.depth)
        )
        self.relative_position_bias_table = None
        if config.relative_positions:
            rows = table_rows(self.side, self.text_positions)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, vision.heads * vision.depth))

    def forward(
        self, x: Tensor, vision_tokens: int, mask: Tensor | None, relative: bool
    ) -> tuple[Tensor, list[Routing]]:
        """x (B, N, D) and bool mask (B, N) -> states before the last LayerNorm, and where tokens went."""
        biases = self._biases(vision_tokens, x.shape[1] - vision_tokens) if relative else None
        keys = None if mask is None else mask[:, None, None, :]
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        routings = []
        for i, layer in enumerate(self.layers):
            key_mask = keys
            if biases is not None:
                key_mask = biases[i].to(x.dtype)
                key_mask = key_mask if keys is None else key_mask.masked_fill(~keys, -torch.inf)
            arguments = (x, vision_tokens, mask, key_mask)
            x, routing = (
                checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
            )
            if routing is not None:
                routings.append(routing)
        return x, routings

    def _biases(self, vision_tokens: int, text_tokens: int) -> Sequence[Tensor] | None:
        """Per layer (1, heads, N, N), or None where positions are absolute."""
        table = self.relative_position_bias_table
        if table is None:
            return None
        if vision_tokens not in (0, self.side**2 + 1):
            raise AuroraError(
                "EVE's relative positions are those of one image, and it was given the frames of a clip. Use images, "
                "or a backbone with backbone.eve.relative_positions=false."
            )
        if not text_tokens:
            index = image_index(self.side)
        elif not vision_tokens:
            index = text_index(self.side, self.text_positions, text_tokens)
        else:
            index = pair_index(self.side, self.text_positions, text_tokens)
        every = table[index.to(table.device)].permute(2, 0, 1)  # (depth · heads, N, N)
        return every.unflatten(0, (-1, 1, self.heads)).unbind(0)


class EveTrunk(nn.Module):
    """Embeddings, layers, final LayerNorm. Random weights as published.

    Args:
        vision: width, depth, heads, drop-path, image and patch size. text: vocabulary, positions, dropout.
        attention: `sdpa` or `eager`. activation_checkpointing: recompute each layer in the backward pass.
    Raises:
        AuroraError: sizes that contradict each other.
    """

    def __init__(
        self,
        vision: VisionConfig,
        text: TextConfig,
        config: EveConfig,
        attention: str = "sdpa",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(vision, config)
        self.image_size, self.patch_size, self.max_positions = (
            vision.image_size,
            vision.patch_size,
            text.max_positions,
        )
        self.expert_sites = config.expert_sites
        width, tokens = vision.width, (vision.image_size // vision.patch_size) ** 2 + 1
        self.patch_embed = nn.Conv2d(3, width, vision.patch_size, vision.patch_size)
        self.class_embedding_vision = nn.Parameter(torch.empty(width))
        self.mask_embed_vision = nn.Parameter(torch.empty(width)) if config.mask_embedding else None
        absolute = not config.relative_positions
        self.pos_embed_vision = nn.Parameter(torch.empty(tokens, width)) if absolute else None
        self.type_embed_vision = nn.Parameter(torch.empty(width))
        self.word_embedding = nn.Embedding(text.vocab_size, width)
        self.layer_norm_text = _norm(width)
        self.dropout = nn.Dropout(text.dropout)
        self.pos_embed_text = nn.Parameter(torch.empty(text.max_positions, width)) if absolute else None
        self.type_embed_text = nn.Parameter(torch.empty(width))
        self.pre_layrnorm = _norm(width)
        self.encoder = EveEncoder(vision, text, config, attention, activation_checkpointing)
        self.norm = _norm(width)
        self.apply(_initialise)

    def forward(
        self,
        image: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_tokens: Tensor | None = None,
        relative: bool = True,
        layers: bool = True,
    ) -> EveStates:
        """States of an image, a text, or both.

        Args:
            image: (B, 3, H, W), normalised. input_ids: int64 (B, L). attention_mask: (B, L), 1 = token, 0 = padding;
                None: no padding. image_mask: (B, patches), 1 = the patch is replaced by the mask embedding.
            image_tokens: (B, 1 + patches, D), in place of `image`: what a call with `layers=False` gave.
            relative: apply relative positions, where the trunk has them.
            layers: False: embed `image` alone, for any number of later passes.
        Raises:
            AuroraError: images of another size than configured; a text longer than the positions; masked patches
                without a mask embedding.
        """
        if image is not None:
            image_tokens = self._embed_image(image, image_mask)
        if not layers:
            return EveStates(image_tokens, image_tokens, None, image_tokens.shape[1], [])
        parts, vision_tokens, mask = [], 0, None
        if image_tokens is not None:
            parts.append(image_tokens)
            vision_tokens = image_tokens.shape[1]
        if input_ids is not None:
            parts.append(self._embed_text(input_ids))
            if attention_mask is not None:
                mask = attention_mask.to(torch.bool)
                mask = torch.cat([mask.new_ones(len(mask), vision_tokens), mask], dim=1)
        if not parts:
            raise ValueError("an image, a text or both")
        states = self.pre_layrnorm(torch.cat(parts, dim=1))
        states, routings = self.encoder(states, vision_tokens, mask, relative)
        return EveStates(self.norm(states), states, mask, vision_tokens, routings)

    def _embed_image(self, image: Tensor, image_mask: Tensor | None) -> Tensor:
        if image.shape[-2:] != (self.image_size, self.image_size):
            raise AuroraError(
                f"EVE is set up for images of {self.image_size} x {self.image_size} pixels and got "
                f"{image.shape[-1]} x {image.shape[-2]}. Set backbone.vision.image_size to the size the data has."
            )
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)  # (B, patches, D), rows of the image
        if image_mask is not None:
            if self.mask_embed_vision is None:
                raise AuroraError(
                    "Patches are masked, and this EVE has no mask embedding: set backbone.eve.mask_embedding=true."
                )
            patches = torch.where(image_mask.to(torch.bool)[..., None], self.mask_embed_vision, patches)
        first = self.class_embedding_vision.expand(len(image), 1, -1).to(patches.dtype)
        tokens = torch.cat([first, patches], dim=1) + self.type_embed_vision
        return tokens if self.pos_embed_vision is None else tokens + self.pos_embed_vision

    def _embed_text(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        if length > self.max_positions:
            raise AuroraError(
                f"A text has {length} tokens and EVE {self.max_positions} text positions. Lower the task's "
                "max_tokens, or use a backbone with more positions (backbone.text.max_positions)."
            )
        words = self.dropout(self.layer_norm_text(self.word_embedding(input_ids))) + self.type_embed_text
        return words if self.pos_embed_text is None else words + self.pos_embed_text[:length]

    def sites(self, prefix: str) -> list[Site]:
        """Adaptable linears of every layer: attention, feed-forwards, and experts where the configuration says so."""
        layers = enumerate(self.encoder.layers)
        return [
            site
            for i, layer in layers
            for site in layer.sites(f"{prefix}.encoder.layers.{i}", i, self.expert_sites)
        ]


def balance_loss(passes: Sequence[EveStates]) -> Tensor:
    """Load-balance loss of several passes: mean over layers with experts of the mean over passes; 0 without experts."""
    losses = [routing.balance for one in passes for routing in one.routings]
    return torch.stack(losses).mean() if losses else passes[0].states.new_zeros(())


def _mlp_sites(
    prefix: str, linears: Sequence[tuple[str, nn.Linear]], modality: str, layer: int
) -> Iterator[Site]:
    for name, linear in linears:
        path, wide, narrow = f"{prefix}.{name}", linear.out_features, linear.in_features
        outputs = wide // narrow if wide > narrow and wide % narrow == 0 else 1
        inputs = narrow // wide if narrow > wide and narrow % wide == 0 else 1
        yield Site(path, path, outputs, inputs, modality, layer, "mlp")


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


def _check(vision: VisionConfig, config: EveConfig) -> None:
    if vision.image_size % vision.patch_size:
        raise AuroraError(
            f"backbone.vision.image_size={vision.image_size} is no multiple of patch_size={vision.patch_size}."
        )
    if vision.width % vision.heads:
        raise AuroraError(f"backbone.vision.width={vision.width} is no multiple of heads={vision.heads}.")
    beyond = [layer for layer in config.top_layers if layer >= vision.depth]
    if beyond:
        raise AuroraError(
            f"backbone.eve.top_layers names {', '.join(map(str, beyond))}, and the trunk has layers 0 to "
            f"{vision.depth - 1} (backbone.vision.depth={vision.depth})."
        )


def _initialise(module: nn.Module) -> None:
    """As published: weights normal(0, 0.02), cut off at one deviation but for words; biases 0."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
        return
    if isinstance(module, nn.LayerNorm):
        return
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("gamma_"):
            continue
        if name in ("bias", "q_bias", "v_bias", "relative_position_bias_table"):
            nn.init.zeros_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=INITIAL_STD, a=-INITIAL_STD, b=INITIAL_STD)
