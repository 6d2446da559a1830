"""The plain baseline of written and ranked answers: the published procedures (BLIP §4 and mPLUG as released), on our
decoder.

No cache: each step reads the whole texts again. Image tokens or question states are repeated for every beam and
every answer, and their keys and values computed anew each time. Every beam is a row from the first step on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.config import GenerationConfig


@torch.no_grad()
def next_logits(decoder: TextDecoder, ids: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (rows, V) after whole texts (rows, L), each with its own context (rows, N, D) and mask (rows, N)."""
    return decoder.scores(decoder(ids, None, decoder.context_kv(context), mask)[:, -1])


def adjusted(scores: Tensor, ids: Tensor, settings: GenerationConfig, end: int) -> Tensor:
    """Repetition penalty, then least length, row by row."""
    if settings.repetition_penalty != 1.0:
        for row, text in zip(scores, ids, strict=True):
            for token in text.unique():
                row[token] *= (
                    settings.repetition_penalty if row[token] < 0 else 1 / settings.repetition_penalty
                )
    if ids.shape[1] < settings.min_length:
        scores[:, end] = -torch.inf
    return scores


def beam_search(
    decoder: TextDecoder,
    context: Tensor,
    mask: Tensor | None,
    prompt: Tensor,
    settings: GenerationConfig,
    end: int,
) -> list[tuple[list[int], float]]:
    """For each context (B, N, D): the best text after `prompt` (1, P), without its end token, and its score."""
    images, beams = len(context), settings.beams
    context = context.repeat_interleave(beams, dim=0)
    mask = None if mask is None else mask.repeat_interleave(beams, dim=0)
    ids = prompt.repeat(images * beams, 1)
    totals = context.new_tensor([0.0] + [-1e9] * (beams - 1)).repeat(images, 1)
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(images)]
    done = [False] * images

    def keep(image: int, total: float, text: Tensor) -> None:
        finished[image].append((total / len(text), text.tolist()))
        finished[image].sort(key=lambda each: each[0])
        del finished[image][:-beams]

    while ids.shape[1] < settings.max_length and not all(done):
        scores = adjusted(next_logits(decoder, ids, context, mask).log_softmax(1), ids, settings, end)
        ranked = (scores.unflatten(0, (images, beams)) + totals[..., None]).flatten(1).topk(2 * beams)
        rows, tokens, totals = [], [], torch.zeros_like(totals)
        for image in range(images):
            following = []
            for rank in range(2 * beams):
                total, place = ranked.values[image, rank].item(), ranked.indices[image, rank].item()
                beam, token = divmod(place, scores.shape[1])
                if token != end:
                    following.append((total, image * beams + beam, token))
                elif rank < beams and not done[image]:
                    keep(image, total, ids[image * beams + beam])
                if len(following) == beams:
                    break
            rows += [row for _, row, _ in following]
            tokens += [[token] for _, _, token in following]
            totals[image] = totals.new_tensor([total for total, _, _ in following])
            best = ranked.values[image, 0].item() / ids.shape[1]
            full = len(finished[image]) == beams and finished[image][0][0] >= best
            done[image] = done[image] or full
        ids = torch.cat([ids[rows], torch.tensor(tokens)], dim=1)
    for image in range(images):
        for beam in range(beams):
            if not done[image]:
                keep(image, totals[image, beam].item(), ids[image * beams + beam])
    return [(each[-1][1], each[-1][0]) for each in finished]


@torch.no_grad()
def penalised_search(
    decoder: TextDecoder, context: Tensor, prompt: Tensor, settings: GenerationConfig, end: int
) -> list[tuple[list[int], float]]:
    """mPLUG's search: for each context (B, N, D) the best text after `prompt` (1, P) with its end token and what may
    follow it, and its score. An image whose best text is finished leaves the batch."""
    beams, begin = settings.beams, prompt.shape[1]
    kept: list[list[tuple[float, list[int]]]] = [[] for _ in context]
    images = torch.arange(len(context))
    ids = prompt.repeat(len(context) * beams, 1)
    running = context.new_tensor([0.0] + [-1e20] * (beams - 1)).repeat(len(context), 1)
    while len(images):
        memory = context[images].repeat_interleave(beams, dim=0)
        scores = adjusted(next_logits(decoder, ids, memory, None).log_softmax(1), ids, settings, end)
        penalty = ((6 + ids.shape[1] - begin) / 6) ** 0.6
        scores = (scores.unflatten(0, (len(images), beams)) + running[..., None]) / penalty
        best = scores.flatten(1).topk(beams)
        rows = torch.arange(len(images))[:, None] * beams + best.indices // scores.shape[2]
        tokens = best.indices % scores.shape[2]
        ids = torch.cat([ids[rows.flatten()], tokens.view(-1, 1)], dim=1)
        running = best.values * penalty
        ended = (tokens == end) | (ids.shape[1] == settings.max_length)
        for row, image in enumerate(images.tolist()):
            for beam in range(beams):
                if ended[row, 0] or ended[row, beam]:
                    kept[image].append((best.values[row, beam].item(), ids[row * beams + beam].tolist()))
        left = ~ended[:, 0]
        ids, images, running = ids[left.repeat_interleave(beams)], images[left], running[left]
    return [max(((text, score) for score, text in each), key=lambda found: found[1]) for each in kept]


@torch.no_grad()
def rank_answers(
    decoder: TextDecoder, states: Tensor, mask: Tensor, ids: Tensor, k: int, begin: int, pad: int
) -> Tensor:
    """states (B, N, H), mask (B, N) of questions, ids (A, L) of the answers -> the best answer of each (B,), with
    label smoothing 0.1 as in BLIP. The likeliest k first tokens, then every answer in full."""
    ids = torch.cat([ids.new_full((len(ids), 1), begin), ids[:, 1:]], dim=1)
    first = next_logits(decoder, ids[:1, :1].repeat(len(states), 1), states, mask).softmax(1)
    # the published topk takes any of the answers that begin alike; here the earlier ones, so that results compare
    top = first[:, ids[:, 1]].sort(dim=1, descending=True, stable=True).indices[:, :k]
    chosen = ids[top.flatten()]
    context, context_mask = states.repeat_interleave(k, dim=0), mask.repeat_interleave(k, dim=0)
    found = decoder(chosen, chosen != pad, decoder.context_kv(context), context_mask)
    targets = chosen.masked_fill(chosen == pad, -100)[:, 1:]
    losses = F.cross_entropy(
        decoder.scores(found)[:, :-1].transpose(1, 2), targets, reduction="none", label_smoothing=0.1
    )
    return top.gather(1, losses.sum(1).view(-1, k).argmin(1, keepdim=True))[:, 0]
