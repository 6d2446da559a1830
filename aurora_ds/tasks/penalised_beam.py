"""Beam search as mPLUG's published code does it.

A text's score is its summed log-probability over ((5 + n) / 6)^0.6, n the tokens written (Wu et al., 2016). The search
of an image ends when its best text is finished: the K texts of that step are kept, finished or not. Others that finish
are kept too, and also go on, so that a text may have tokens behind its end. The best K of all that were kept are the
result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.writer import Writer

PENALTY = 0.6


@dataclass(frozen=True)
class Hypothesis:
    """`ids`: the prompt and what follows, as it was kept. `score` as above."""

    ids: list[int]
    score: float


def length_penalty(written: int) -> float:
    """What the summed log-probability of a text with so many tokens after its prompt is divided by."""
    return ((5 + written) / 6) ** PENALTY


def hypotheses(writer: Writer) -> list[list[Hypothesis]]:
    """The `beams` best texts of each image, best first. `writer`: one row per image, since all texts begin alike."""
    settings, images, beams = writer.settings, len(writer.context), writer.settings.beams
    vocabulary, begin = writer.decoder.cls.predictions.bias.numel(), writer.ids.shape[1]
    if beams >= vocabulary:
        raise AuroraError(f"generation.beams={beams} is too many for a vocabulary of {vocabulary} tokens.")
    kept: list[list[Hypothesis]] = [[] for _ in range(images)]
    done, width = [False] * images, 1
    running = torch.zeros(images, 1, device=writer.ids.device)
    while not all(done):
        penalty = length_penalty(writer.ids.shape[1] + 1 - begin)
        scores = writer.adjusted(writer.logits().log_softmax(1)).unflatten(0, (images, width))
        leading, place = ((scores + running[..., None]) / penalty).flatten(1).topk(beams, dim=1)
        first = torch.arange(images, device=place.device)[:, None] * width
        writer.append((place % vocabulary).flatten(), (first + place // vocabulary).flatten())
        running, width = leading * penalty, beams
        texts, found = writer.ids.tolist(), leading.tolist()
        last = writer.ids.shape[1] == settings.max_length
        for image in range(images):
            if done[image]:
                continue
            own = [Hypothesis(texts[image * beams + rank], score) for rank, score in enumerate(found[image])]
            done[image] = last or own[0].ids[-1] == writer.end
            kept[image] += [each for each in own if done[image] or each.ids[-1] == writer.end]
    return [sorted(each, key=lambda text: -text.score)[:beams] for each in kept]
