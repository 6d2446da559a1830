"""Text decoder of BLIP (§3.1): the text transformer read causally, and a head that predicts the next token.

It attends to image tokens (captioning) or to the states of a question (answering). Keys and values of either
are computed once, by `context_kv`, and serve any number of texts and steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.site import Site
from aurora_ds.backbones.text import LAYER_NORM_EPS, KeysValues, KeyValueCache, TextEncoder, initialise
from aurora_ds.config import TextConfig


class PredictionTransform(nn.Module):
    """LayerNorm(GELU(dense(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(states)))


class Predictions(nn.Module):
    """States -> scores of the vocabulary. The projection is the word embedding, which the caller hands in."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.transform = PredictionTransform(config.width)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, words: Tensor) -> Tensor:
        """states (…, H), words (V, H) -> logits (…, V)."""
        return F.linear(self.transform(states), words, self.bias)


class PredictionHead(nn.Module):
    """Gives the head its published parent name, `cls.predictions`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)
        self.apply(initialise)


class TextDecoder(nn.Module):
    """Text so far -> what comes next. Arguments as of TextEncoder; `context_width`: of what it attends to."""

    def __init__(
        self,
        config: TextConfig,
        context_width: int,
        attention: str = "sdpa",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.bert = TextEncoder(config, context_width, attention, activation_checkpointing)
        self.cls = PredictionHead(config)

    def context_kv(self, context: Tensor) -> list[KeysValues]:
        """Image tokens or question states (contexts, N, width) -> per layer keys and values, for `forward`."""
        return self.bert.image_kv(context)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        context_kv: Sequence[KeysValues],
        context_mask: Tensor | None = None,
        context_index: Tensor | None = None,
        group_size: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """States (B, L, H), of which the one at position t knows tokens up to t; `scores` makes logits of them.

        `context_kv`, `context_mask`, `context_index` and `group_size` as `image_kv`, … of TextEncoder.forward,
        which has the rest too."""
        return self.bert(
            input_ids,
            attention_mask,
            context_kv,
            context_index,
            group_size,
            image_mask=context_mask,
            causal=True,
            cache=cache,
        )

    def scores(self, states: Tensor) -> Tensor:
        """states (…, H) -> logits of the next token (…, V)."""
        return self.cls.predictions(states, self.bert.embeddings.word_embeddings.weight)

    def sites(self, prefix: str) -> list[Site]:
        """Adaptable linears of every layer; the head is not adapted."""
        return self.bert.sites(f"{prefix}.bert")
