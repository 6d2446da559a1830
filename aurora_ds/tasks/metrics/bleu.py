"""BLEU-1..4 as COCO's caption evaluation computes it: closest reference length, sums over the corpus.

    precision_n = (clipped matches + 1e-15) / (n-grams of the candidate + 1e-9)
    BLEU-n      = (precision_1 · … · precision_n)^(1/n) · min(1, exp(1 - reference length / candidate length))

(Papineni et al., 2002; the two small numbers are COCO's and show in scores of single captions without a match.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = 4
_TINY, _SMALL = 1e-15, 1e-9

Words = Sequence[str]


def count_ngrams(words: Words, longest: int = LONGEST) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to `longest` words occurs."""
    counts: Counter[tuple[str, ...]] = Counter()
    for length in range(1, longest + 1):
        counts.update(zip(*(words[start:] for start in range(length)), strict=False))
    return counts


@dataclass(frozen=True)
class BleuScores:
    """corpus: (4,) float64, BLEU-1..4 of all captions together. items: (n, 4) float64, of each caption alone.
    matches, guesses: (4,) int64, clipped matches and n-grams of the candidates. lengths: words of the candidates and
    of the closest references."""

    corpus: np.ndarray
    items: np.ndarray
    matches: np.ndarray
    guesses: np.ndarray
    lengths: tuple[int, int]


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> BleuScores:
    """BLEU of one candidate per item against its references, all as lists of words.

    Of two reference lengths equally close to the candidate's, the shorter counts. No items give zeros.
    """
    number = len(candidates)
    matches = np.zeros((number, LONGEST), np.int64)
    lengths = np.zeros((number, 2), np.int64)
    for row, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
        most: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            most |= count_ngrams(text)
        for ngram, count in count_ngrams(candidate).items():
            matches[row, len(ngram) - 1] += min(count, most[ngram])
        own = len(candidate)
        lengths[row] = own, min((abs(len(text) - own), len(text)) for text in texts)[1]
    guesses = np.maximum(0, lengths[:, :1] - np.arange(LONGEST))
    return BleuScores(
        corpus=_combine(matches.sum(0)[None], guesses.sum(0)[None], lengths.sum(0)[None])[0],
        items=_combine(matches, guesses, lengths),
        matches=matches.sum(0),
        guesses=guesses.sum(0),
        lengths=(int(lengths[:, 0].sum()), int(lengths[:, 1].sum())),
    )


def _combine(matches: np.ndarray, guesses: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(n, 4) matches and guesses, (n, 2) candidate and reference lengths -> (n, 4) scores."""
    precision = np.cumprod((matches + _TINY) / (guesses + _SMALL), axis=1)
    scores = precision ** (1 / np.arange(1, LONGEST + 1))
    ratio = (lengths[:, 0] + _TINY) / (lengths[:, 1] + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return scores * brevity[:, None]
