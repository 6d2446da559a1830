"""Answers as classes of a list: the soft targets of question answering by classification (EVE, released code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FULL_SHARE = 1 / 3  # of the annotators; VQA's accuracy counts an answer in full from three of ten on


def answer_score(share: float) -> float:
    """Share of the annotators who gave an answer -> its target in [0, 1]: of ten, 1, 2, 3, 4 give 0.3, 0.6, 0.9, 1."""
    return min(1.0, share / FULL_SHARE)


def answer_targets(questions: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Tensor:
    """Targets fp32 (questions, answers) of questions as `questions.answered` gives them.

    An answer of Visual Genome, where one person answered, has 1. Answers that the list lacks cannot be learned; a
    question with no other is answered by none of the list."""
    place = {answer: number for number, answer in enumerate(answers)}
    targets = torch.zeros(len(questions), len(answers))
    for row, question in enumerate(questions):
        for each in question["answers"]:
            if each["answer"] in place:
                score = 1.0 if question["dataset"] == "vg" else answer_score(each["weight"])
                targets[row, place[each["answer"]]] = score
    return targets
