"""A decoder that writes, one step at a time: what the text is about, the tokens so far, their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.backbones.text import KeysValues, KeyValueCache
from aurora_ds.config import GenerationConfig


@dataclass
class Context:
    """What each text is about: per layer keys and values (B, heads, N, d), and which of the N are padding."""

    kv: Sequence[KeysValues]
    mask: Tensor | None = None  # (B, N), 1 = token

    def __len__(self) -> int:
        return self.kv[0][0].shape[0]


class Writer:
    """The decoder with its cache, one step at a time."""

    def __init__(
        self,
        decoder: TextDecoder,
        context: Context,
        prompt: Tensor,
        rows: int,
        settings: GenerationConfig,
        end: int,
        pad: int,
    ) -> None:
        self.decoder, self.context, self.settings, self.end, self.pad = decoder, context, settings, end, pad
        self.ids = prompt.expand(rows, -1)  # (rows, length so far)
        self.cache = KeyValueCache()

    def logits(self) -> Tensor:
        """Logits (rows, V) of the next token, fp32 or wider. Rows are in groups of one size per image."""
        new = self.ids[:, self.cache.length :]
        group = len(self.ids) // len(self.context)
        states = self.decoder(
            new, None, self.context.kv, self.context.mask, group_size=group, cache=self.cache
        )
        logits = self.decoder.scores(states[:, -1])
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def adjusted(self, scores: Tensor) -> Tensor:
        """Repetition penalty and least length on scores (rows, V)."""
        penalty = self.settings.repetition_penalty
        if penalty != 1.0:
            own = scores.gather(1, self.ids)
            scores = scores.scatter(1, self.ids, torch.where(own < 0, own * penalty, own / penalty))
        if self.ids.shape[1] < self.settings.min_length:
            scores = scores.index_fill(1, torch.tensor([self.end], device=scores.device), -torch.inf)
        return scores

    def append(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """One token per row, tokens (rows,); with `rows`, row i continues what row `rows[i]` was."""
        if rows is not None:
            self.ids = self.ids[rows]
            self.cache.reorder(rows)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
