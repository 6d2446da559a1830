"""CIDEr-D (Vedantam et al., 2015) as in COCO's caption evaluation, and as the reward of self-critical training.

    g(s)[w] = count of n-gram w in s · (ln documents - ln max(1, documents with w))
    CIDEr-D = 10/4 · Σ_n mean over references r of  min(g_n(c), g_n(r))·g_n(r) / (|g_n(c)| |g_n(r)|) · exp(-Δ²/2σ²)

σ = 6; Δ is the difference in length, counted in 2-grams. A document is all references of one image.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.bleu import LONGEST, Words, count_ngrams

SIGMA = 6.0

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' references each n-gram occurs, and how many images there are."""

    counts: Mapping[Ngram, int]
    documents: int

    @classmethod
    def of(cls, references: Iterable[Sequence[Words]]) -> DocumentFrequency:
        """Counted over the references (lists of words) of every image. The SCST reward takes the training split's."""
        counts: Counter[Ngram] = Counter()
        documents = 0
        for texts in references:
            documents += 1
            counts.update({ngram for text in texts for ngram in count_ngrams(text)})
        return cls(counts, documents)

    def compact(self) -> DocumentFrequency:
        """Without the n-grams of a single document, most of all: they weigh as much as those of none."""
        return DocumentFrequency(
            {ngram: count for ngram, count in self.counts.items() if count > 1}, self.documents
        )

    def save(self, path: Path) -> None:
        """As JSON: `{"documents": n, "counts": {"a dog": 12, …}}`, the words of an n-gram joined by blanks."""
        counts = {" ".join(ngram): count for ngram, count in sorted(self.counts.items())}
        path.write_text(json.dumps({"documents": self.documents, "counts": counts}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> DocumentFrequency:
        """What `save` wrote.

        Raises:
            AuroraError: the file cannot be read, or has another layout.
        """
        advice = 'Make it with DocumentFrequency.of(…).save(…): {"documents": n, "counts": {"a dog": 12}}.'
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AuroraError(f"{path} is no document-frequency table: {error}. {advice}") from error
        documents = found.get("documents") if isinstance(found, dict) else None
        counts = found.get("counts") if isinstance(found, dict) else None
        if type(documents) is not int or documents < 1 or not isinstance(counts, dict):
            raise AuroraError(
                f"{path} is no document-frequency table: documents or counts are missing. {advice}"
            )
        for text, count in counts.items():
            if type(count) is not int or not 1 <= count <= documents:
                raise AuroraError(
                    f"{path}: the count of {text!r} is {count!r}; allowed are 1 to {documents}, the documents. {advice}"
                )
        return cls({tuple(text.split(" ")): count for text, count in counts.items()}, documents)


@dataclass(frozen=True)
class _Weighted:
    """One text: tf-idf weight of each n-gram, the weights' length for n = 1..4, and the number of 2-grams."""

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    length: int


class CiderD:
    """CIDEr-D under one document-frequency table. What references weigh can be kept from step to step."""

    def __init__(self, frequency: DocumentFrequency):
        self.frequency = frequency
        self._log_documents = math.log(frequency.documents) if frequency.documents else 0.0

    def prepare(self, references: Sequence[Words]) -> list[_Weighted]:
        """The references of one image, ready for `score` and `rewards`."""
        return [self._weigh(words) for words in references]

    def score(self, candidate: Words, prepared: Sequence[_Weighted]) -> float:
        """CIDEr-D (0 to 10) of one candidate against the prepared references of its image."""
        own = self._weigh(candidate)
        total = 0.0
        for other in prepared:
            products = [0.0] * LONGEST
            theirs = other.weights
            for ngram, weight in own.weights.items():
                if ngram in theirs:
                    products[len(ngram) - 1] += min(weight, theirs[ngram]) * theirs[ngram]
            penalty = math.exp(-((own.length - other.length) ** 2) / (2 * SIGMA**2))
            for product, mine, yours in zip(products, own.norms, other.norms, strict=True):
                if mine and yours:
                    product /= mine * yours
                total += product * penalty
        return 10.0 * total / LONGEST / len(prepared)

    def rewards(
        self, candidates: Sequence[Sequence[Words]], prepared: Sequence[Sequence[_Weighted]]
    ) -> np.ndarray:
        """CIDEr-D of several candidates for each image of a batch.

        Args:
            candidates: for each image the same number of candidates, each a list of words.
            prepared: for each image what `prepare` gave.
        Returns: (images, candidates) float32. Equal candidates of an image are scored once.
        """
        rows = []
        for texts, references in zip(candidates, prepared, strict=True):
            known: dict[Ngram, float] = {}
            for words in texts:
                key = tuple(words)
                if key not in known:
                    known[key] = self.score(words, references)
            rows.append([known[tuple(words)] for words in texts])
        return np.asarray(rows, np.float32)

    def _weigh(self, words: Words) -> _Weighted:
        counts, log_documents = self.frequency.counts, self._log_documents
        weights: dict[Ngram, float] = {}
        squares = [0.0] * LONGEST
        for ngram, count in count_ngrams(words).items():
            weight = count * (log_documents - math.log(max(1, counts.get(ngram, 0))))
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return _Weighted(weights, tuple(math.sqrt(each) for each in squares), max(0, len(words) - 1))


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """(n,) float64: CIDEr-D of each candidate, with document frequencies from these references.

    The corpus score is the mean. A corpus of one image gives 0: every n-gram is in every document.
    """
    scorer = CiderD(DocumentFrequency.of(references))
    return np.array(
        [
            scorer.score(words, scorer.prepare(texts))
            for words, texts in zip(candidates, references, strict=True)
        ]
    )
