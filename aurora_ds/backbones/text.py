"""Text transformer of BLIP ("MED", BLIP §3.1): post-norm BERT whose layers can attend to an image (or, in a
decoder, to the states of another text) after attending to the text.

Without image keys and values it encodes text alone. Parameter names are the published ones, but for the fused
projections: `self.qkv` holds query, key, value rows, `crossattention.self.kv` key and value rows (published.py
maps both ways). Keys and values of an image are computed once, by `image_kv`, and serve any number of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aurora_ds.backbones.attention import attend, merge_heads, split_heads
from aurora_ds.backbones.shared_input import project_each
from aurora_ds.backbones.site import Site
from aurora_ds.config import TextConfig
from aurora_ds.errors import AuroraError

LAYER_NORM_EPS = 1e-12
INITIAL_STD = 0.02

KeysValues = tuple[
    Tensor, ...
]  # keys, values (images, heads, N, d) each; in layers that see two images, of both
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class KeyValueCache:
    """Self-attention keys and values of the tokens so far, for texts that grow by appending."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows: dict[int, Tensor] = {}  # per layer, an order that waits for the next `extend`

    @property
    def length(self) -> int:
        """Tokens held, the same for every text."""
        return self._layers[0][0].shape[2] if self._layers else 0

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on from what row `rows[i]` (int64) is now. It may also repeat or drop rows."""
        for layer in self._layers:
            waiting = self._rows.get(layer)
            self._rows[layer] = rows if waiting is None else waiting[rows]

    def branch(self, rows: Tensor) -> KeyValueCache:
        """Another cache, whose row i goes on from row `rows[i]`; this one stays as it is."""
        other = KeyValueCache()
        other._layers, other._rows = dict(self._layers), dict(self._rows)
        other.reorder(rows)
        return other

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends those of the new tokens, (B, heads, new, d) each; returns all, (B, heads, length, d)."""
        if layer in self._layers:
            past, rows = self._layers[layer], self._rows.pop(layer, None)
            if rows is not None:
                past = tuple(each.index_select(0, rows) for each in past)
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        self._layers[layer] = key, value
        return key, value


class Embeddings(nn.Module):
    """Word plus learned position embedding, plus that of the first token type where there are types; LayerNorm,
    dropout."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_id)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.token_type_embeddings = (
            nn.Embedding(config.token_types, config.width) if config.token_types else None
        )
        self.LayerNorm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, first: int = 0) -> Tensor:
        """input_ids (B, L), at positions from `first` on -> (B, L, H)."""
        positions = torch.arange(first, first + input_ids.shape[1], device=input_ids.device)
        states = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        if self.token_type_embeddings is not None:
            states = states + self.token_type_embeddings(input_ids.new_zeros(1, 1))
        return self.dropout(self.LayerNorm(states))


class AddAndNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual): the end of every sub-layer."""

    def __init__(self, width_in: int, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class SelfAttention(nn.Module):
    """Attention of the text's tokens over themselves."""

    def __init__(self, config: TextConfig, eager: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.eager = config.heads, config.attention_dropout, eager
        self.qkv = nn.Linear(config.width, 3 * config.width)

    def forward(self, states: Tensor, mask: Tensor | None, remember: Remember | None = None) -> Tensor:
        """states (B, L, H), mask bool (B, 1, 1 or L, all tokens) -> (B, L, H).

        `remember` takes the new tokens' keys and values and gives those of all tokens."""
        query, key, value = split_heads(self.qkv(states), 3, self.heads)
        if remember is not None:
            key, value = remember(key, value)
        return merge_heads(
            attend(query, key, value, mask, self.dropout if self.training else 0.0, self.eager)
        )


class CrossAttention(nn.Module):
    """Attention of the text's tokens over image tokens, or over the states of another text."""

    def __init__(self, config: TextConfig, vision_width: int, eager: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.eager = config.heads, config.attention_dropout, eager
        self.query = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(vision_width, 2 * config.width)

    def forward(
        self,
        states: Tensor,
        image_kv: KeysValues,
        image_index: Tensor | None,
        group_size: int | None,
        key_scale: Tensor | None,
        image_mask: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """states (B, L, H) -> (B, L, H); `query`: the projection of states, where the caller has it already; the
        other arguments as in TextEncoder.forward."""
        (key, value), query = image_kv, self.query(states) if query is None else query
        mask = (
            None if image_mask is None else image_mask.to(torch.bool)[:, None, None, :]
        )  # (images, 1, 1, N)
        if image_index is not None:
            key, value = key.index_select(0, image_index), value.index_select(0, image_index)
            mask = None if mask is None else mask.index_select(0, image_index)
        score_scale = None
        if group_size is not None:
            # the texts of an image become one long row of queries over that image's keys, which are not repeated
            query = query.reshape(key.shape[0], -1, query.shape[-1])  # (images, group_size·L, H)
            if key_scale is not None:
                # nor are they scaled for each text: scaling the scores is the same
                each = key_scale.repeat_interleave(states.shape[1], dim=0)  # (B·L, N)
                score_scale = each.reshape(key.shape[0], 1, -1, key.shape[2])
        elif key_scale is not None:
            key = key * key_scale[:, None, :, None]
        (query,) = split_heads(query, 1, self.heads)
        dropout = self.dropout if self.training else 0.0
        context = attend(query, key, value, mask, dropout, self.eager, score_scale)
        return merge_heads(context).reshape(states.shape)


def keys_values(attentions: Sequence[CrossAttention], tokens: Tensor) -> list[KeysValues]:
    """Image tokens (images, N, D) -> keys and values of each attention, (images, heads, N, d) each."""
    projected = project_each([attention.kv for attention in attentions], tokens)
    return [split_heads(both, 2, own.heads) for both, own in zip(projected, attentions, strict=True)]


class AttentionBlock(nn.Module):
    """Attention (the published name of its projections' parent is `self`) and the end of the sub-layer."""

    def __init__(self, attention: nn.Module, config: TextConfig) -> None:
        super().__init__()
        self.self = attention
        self.output = AddAndNorm(config.width, config)

    def forward(self, states: Tensor, *arguments: object) -> Tensor:
        return self.output(self.self(states, *arguments), states)


class Intermediate(nn.Module):
    """First half of the feed-forward: dense, GELU (erf form)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class TextLayer(nn.Module):
    """Self-attention, cross-attention when there is an image, feed-forward.

    `residual(a_self, a_cross)`, where set, is added to the output of a layer that sees an image: a_self and
    a_cross (B, L, H) are what the two attention sub-layers gave. It may return None for nothing to add.
    """

    residual: Callable[[Tensor, Tensor], Tensor | None] | None = None

    def __init__(self, config: TextConfig, crossattention: nn.Module | None, eager: bool) -> None:
        super().__init__()
        self.attention = AttentionBlock(SelfAttention(config, eager), config)
        self.crossattention = crossattention
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config.intermediate, config)

    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        image_kv: KeysValues | None = None,
        image_index: Tensor | None = None,
        group_size: int | None = None,
        key_scale: Tensor | None = None,
        image_mask: Tensor | None = None,
        remember: Remember | None = None,
    ) -> Tensor:
        """states (B, L, H), mask bool (B, 1, 1 or L, all tokens) -> (B, L, H)."""
        a_self = self.attention(states, mask, remember)
        if image_kv is None:
            return self.output(self.intermediate(a_self), a_self)
        a_cross = self.crossattention(a_self, image_kv, image_index, group_size, key_scale, image_mask)
        out = self.output(self.intermediate(a_cross), a_cross)
        added = None if self.residual is None else self.residual(a_self, a_cross)
        return out if added is None else out + added


class LayerStack(nn.Module):
    """Gives the layers their published parent name, `encoder.layer`."""

    def __init__(self, layers: list[TextLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class TextEncoder(nn.Module):
    """Text ids -> states, with or without an image.

    Args:
        vision_width: width D of the image tokens. attention: `sdpa` or `eager`.
        activation_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        config: TextConfig,
        vision_width: int,
        attention: str = "sdpa",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.max_positions, self.activation_checkpointing = config.max_positions, activation_checkpointing
        self.width = config.width
        self.embeddings = Embeddings(config)
        eager = attention == "eager"
        self.encoder = LayerStack(
            [
                TextLayer(config, self.cross_attention(config, vision_width, eager, i), eager)
                for i in range(config.depth)
            ]
        )
        self.apply(initialise)

    def cross_attention(self, config: TextConfig, vision_width: int, eager: bool, layer: int) -> nn.Module:
        """The cross-attention sub-layer of one layer; called while the model is built."""
        return AttentionBlock(CrossAttention(config, vision_width, eager), config)

    def image_kv(self, tokens: Tensor) -> list[KeysValues]:
        """Image tokens (images, N, D) -> per layer keys and values (images, heads, N, d), for `forward`."""
        return keys_values([layer.crossattention.self for layer in self.encoder.layer], tokens)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_kv: Sequence[KeysValues] | None = None,
        image_index: Tensor | None = None,
        group_size: int | None = None,
        key_scale: Tensor | None = None,
        image_mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """States (B, L, H) of texts, alone or each with an image.

        Args:
            input_ids: int64 (B, L). attention_mask: int64 or bool (B, L), 1 = token, 0 = padding; None: no padding.
            image_kv: from `image_kv`, for as many images as texts; None encodes the text alone.
            image_index: int64 (B,), the row of `image_kv` that each text sees.
            group_size: texts per image, when rows come in groups of that many per image, in the order of `image_kv`:
                B = images · group_size. The same numbers as repeating keys and values, without doing it.
            key_scale: (B, N) factors on the keys that each text sees. With `group_size` the scores are scaled in their
                place and are formed whole: (images, heads, group_size·L, N) numbers in each layer.
            image_mask: (images, N), 1 = token, 0 = padding, for what is no image but another text; None: no padding.
            causal: each token sees itself and the ones before it.
            cache: what came before `input_ids`, without padding; it is extended by them. The states are those of
                `input_ids` alone, the same numbers as from the whole texts with `causal`.
        Raises:
            AuroraError: a text longer than the position embedding.
            ValueError: rows, images and grouping do not fit together.
        """
        past = 0 if cache is None else cache.length
        if past + input_ids.shape[1] > self.max_positions:
            raise AuroraError(
                f"A text has {past + input_ids.shape[1]} tokens and the text transformer {self.max_positions} "
                "positions. Lower the task's max_tokens, or use a backbone with more positions "
                "(backbone.text.max_positions)."
            )
        mask = _mask(input_ids, attention_mask, causal, past)
        if image_kv is not None:
            _check_rows(len(input_ids), image_kv[0][0].shape[0], image_index, group_size)
        states = self.embeddings(input_ids, past)
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for i, layer in enumerate(self.encoder.layer):
            kv = None if image_kv is None else image_kv[i]
            remember = None if cache is None else partial(cache.extend, i)
            arguments = (states, mask, kv, image_index, group_size, key_scale, image_mask, remember)
            states = checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
        return states

    def query_layers(self, prefix: str) -> list[tuple[str, nn.Module, int]]:
        """(name, layer, width H) of the layers, which all have a `residual`."""
        return [
            (f"{prefix}.encoder.layer.{i}", layer, self.width) for i, layer in enumerate(self.encoder.layer)
        ]

    def sites(self, prefix: str) -> list[Site]:
        """Adaptable linears of every layer: self-attention, then query and key-value of cross-attention."""
        return [
            Site(path, path, outputs, 1, modality, i, "attention")
            for i in range(len(self.encoder.layer))
            for path, outputs, modality in (
                (f"{prefix}.encoder.layer.{i}.attention.self.qkv", 3, "text"),
                (f"{prefix}.encoder.layer.{i}.crossattention.self.query", 1, "cross"),
                (f"{prefix}.encoder.layer.{i}.crossattention.self.kv", 2, "cross"),
            )
        ]


def _mask(input_ids: Tensor, attention_mask: Tensor | None, causal: bool, past: int) -> Tensor | None:
    """Which tokens may be seen: bool, broadcastable to (B, heads, L, past + L); None where all may."""
    length = input_ids.shape[1]
    mask = None if attention_mask is None else attention_mask.to(torch.bool)[:, None, None, :]
    if causal and length > 1:
        before = torch.ones(length, past + length, dtype=torch.bool, device=input_ids.device).tril(past)
        mask = before if mask is None else mask & before
    return mask


def _check_rows(texts: int, images: int, image_index: Tensor | None, group_size: int | None) -> None:
    if image_index is not None and group_size is not None:
        raise ValueError("image_index and group_size exclude each other")
    expected = len(image_index) if image_index is not None else images * (group_size or 1)
    if expected != texts:
        raise ValueError(
            f"{texts} texts do not fit {images} images (image_index "
            f"{None if image_index is None else len(image_index)}, group_size {group_size})"
        )


def initialise(module: nn.Module) -> None:
    """As BERT: normal(0, 0.02) weights, zero biases; LayerNorms are born as ones and zeros."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
