"""Beam search as the published code runs it: no cache, every beam a row of its own from the first step, the image's
keys and values repeated per beam and computed anew each step. Slow and plain: what ours is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.config import GenerationConfig


@torch.no_grad()
def next_logits(decoder: TextDecoder, ids: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (rows, V) after whole texts (rows, L), each with its own context (rows, N, D)."""
    return decoder.scores(decoder(ids, None, decoder.context_kv(context), mask)[:, -1])


def adjusted(scores: Tensor, ids: Tensor, settings: GenerationConfig, end: int) -> Tensor:
    for row, text in zip(scores, ids, strict=True):
        for token in text.unique():
            row[token] *= settings.repetition_penalty if row[token] < 0 else 1 / settings.repetition_penalty
        if len(text) < settings.min_length:
            row[end] = -torch.inf
    return scores


def beam_search(
    decoder: TextDecoder,
    context: Tensor,
    mask: Tensor | None,
    prompt: Tensor,
    settings: GenerationConfig,
    end: int,
) -> list[tuple[list[int], float]]:
    """Per context (B, N, D): the best text without its end token, and its score."""
    return [
        _one(decoder, row, None if mask is None else mask[i], prompt, settings, end)
        for i, row in enumerate(context)
    ]


def _one(decoder, context, mask, prompt, settings, end) -> tuple[list[int], float]:
    beams = settings.beams
    ids = prompt.repeat(beams, 1)
    totals = torch.tensor([0.0] + [-1e9] * (beams - 1))
    context = context.expand(beams, -1, -1)
    mask = None if mask is None else mask.expand(beams, -1)
    finished: list[tuple[float, list[int]]] = []

    def keep(total: float, text: Tensor) -> None:
        finished.append((total / len(text), text.tolist()))
        finished.sort(key=lambda each: each[0])
        del finished[:-beams]

    while ids.shape[1] < settings.max_length:
        scores = adjusted(next_logits(decoder, ids, context, mask).log_softmax(1), ids, settings, end)
        ranked = (scores + totals[:, None]).flatten().sort(descending=True, stable=True)
        following = []
        for rank in range(2 * beams):
            total, place = ranked.values[rank].item(), ranked.indices[rank].item()
            beam, token = divmod(place, scores.shape[1])
            if token != end:
                following.append((total, beam, token))
            elif rank < beams:
                keep(total, ids[beam])
            if len(following) == beams:
                break
        stop = len(finished) == beams and finished[0][0] >= ranked.values[0].item() / ids.shape[1]
        totals = torch.tensor([total for total, _, _ in following])
        tokens = torch.tensor([[token] for _, _, token in following])
        ids = torch.cat([ids[[beam for _, beam, _ in following]], tokens], dim=1)
        if stop:
            break
    else:
        stop = False
    if not stop:
        for total, text in zip(totals.tolist(), ids, strict=True):
            keep(total, text)
    score, text = finished[-1]
    return text, score
