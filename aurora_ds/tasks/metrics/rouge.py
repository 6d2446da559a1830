"""ROUGE-L of single sentences with β = 1.2, as COCO's caption evaluation computes it.

    P = max over references of LCS / candidate length,   R = max over references of LCS / reference length
    ROUGE-L = (1 + β²) P R / (R + β² P)

(Lin, 2004. The two maxima may come from different references.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BETA = 1.2


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length. One integer holds a row of the table (Hyyrö, 2004), so a word of `second` costs a few operations."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        same = row & places.get(word, 0)
        row = (row + same) | (row - same)
    return len(first) - (row & every).bit_count()


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of each tokenised candidate against its tokenised references; the corpus score is the mean.

    Args:
        candidates: n texts, words joined by single blanks. references: for each, at least one such text.
    Returns: (n,) float64.

    As in the original a text without words is one empty word, so that it equals another text without words.
    """
    scores = np.zeros(len(candidates))
    for row, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
        words = candidate.split(" ")
        precision = recall = 0.0
        for text in texts:
            other = text.split(" ")
            common = longest_common_subsequence(words, other)
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(other))
        if precision and recall:
            scores[row] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores
