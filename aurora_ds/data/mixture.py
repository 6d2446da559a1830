"""What training draws from: one or several splits of shards, each with a weight, and their samples by number.

A source deals in units: pairs (medium, annotation), or media, of which one annotation is drawn each time; of all its
media, or of a few that the seed draws (data.shots). Media and pairs of all sources are numbered on end, in the order of
data.mix, so no two samples of a run share a number, and a sample has the same one whatever else is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from aurora_ds.config import DataConfig, RunConfig
from aurora_ds.data.manifest import MANIFEST_NAME, Manifest
from aurora_ds.data.remote import is_remote, open_shards
from aurora_ds.errors import AuroraError

Expand = Literal["pairs", "media"]
_ANNOTATION, _SHOTS = 3, 5  # first numbers of the keys of these draws; plan.py and media.py have others


class Rows(NamedTuple):
    """Samples to read: int64 (n,) each. Medium, pair and annotation are numbers inside the source."""

    position: np.ndarray  # in the epoch, over all ranks
    source: np.ndarray
    turn: np.ndarray  # how many times the source's units were dealt before: with weight 1 the epoch
    medium: np.ndarray
    annotation: np.ndarray  # which one of its medium
    pair: np.ndarray

    def each(self) -> list[Row]:
        """The same, one by one, as plain numbers."""
        return [Row(*numbers) for numbers in zip(*(column.tolist() for column in self), strict=True)]


class Row(NamedTuple):
    """One of Rows."""

    position: int
    source: int
    turn: int
    medium: int
    annotation: int
    pair: int


class Source:
    """A split of shards in a mixture. `shots`: only so many of its media, drawn by `seed`; of more they are a part.

    Raises AuroraError when it holds no annotation of the kind, or fewer media with one than `shots`.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        weight: float = 1.0,
        kind: str = "captions",
        expand: Expand = "pairs",
        shots: int | None = None,
        seed: int = 0,
    ):
        self.shots = shots
        self.manifest, self.split, self.kind, self.expand = manifest, split, kind, expand
        self.weight = Fraction(str(weight))  # as written: 0.1 is a tenth
        self._first_media = manifest.split(split).first_media
        self._counts = manifest.annotation_counts(split, kind)
        self.media = manifest.media(split)
        # int64 (shards + 1,): the first pair of each shard, then their number
        shards = manifest.split(split).shards
        self._first_pairs = np.cumsum([0, *(shard.counts.get(kind, 0) for shard in shards)])
        self.pairs = int(self._first_pairs[-1])
        if not self.pairs:
            raise AuroraError(
                f"Split {split!r} in {manifest.store.place} has no {kind} to train on. `aurora-ds shards inspect "
                f"{manifest.store.place}` shows what it has."
            )
        # int64 (shards + 1,): the first unit of each shard, then their number
        self.bounds = self._first_pairs
        # int64, ascending: the media that are dealt; None: all
        self._dealt: np.ndarray | None = None
        if shots is not None:
            self._dealt = self._draw_shots(shots, seed)
        elif expand == "media":
            self.bounds = self._first_media
            if not np.all(self._counts):
                self._dealt = np.flatnonzero(self._counts)
        if self._dealt is not None:
            each = np.ones(len(self._dealt), np.int64) if expand == "media" else self._counts[self._dealt]
            self._ends = np.cumsum(each, dtype=np.int64)  # one past the last unit of each dealt medium
            past = np.concatenate([[0], self._ends])
            self.bounds = past[np.searchsorted(self._dealt, self._first_media)]
        self.units = int(self.bounds[-1])

    def _draw_shots(self, shots: int, seed: int) -> np.ndarray:
        annotated = np.flatnonzero(self._counts)
        if shots > len(annotated):
            raise AuroraError(
                f"data.shots asks for {shots} media of split {self.split!r} in {self.manifest.store.place}, which has "
                f"{len(annotated)} with {self.kind}. Ask for {len(annotated)} or fewer, or leave data.shots unset to "
                "train on all of them."
            )
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_SHOTS, seed % 2**64))))
        return np.sort(generator.permutation(annotated)[:shots])

    def rows(self, turns: np.ndarray, units: np.ndarray, key: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """(media, annotations, pairs), int64 (n,) each, of units dealt in these turns. `key` is of the draws."""
        if self.expand == "pairs" and self._dealt is None:
            media, annotations = self._locate(units)
            return media, annotations, units
        if self.expand == "pairs":
            places = np.searchsorted(self._ends, units, side="right")
            media = self._dealt[places]
            annotations = units - self._ends[places] + self._counts[media]
        else:
            media = units if self._dealt is None else self._dealt[units]
            draws = zip(turns.tolist(), media.tolist(), self._counts[media].tolist(), strict=True)
            annotations = np.asarray(
                [_draw(count, (*key, turn, medium)) for turn, medium, count in draws], dtype=np.int64
            )
        return media, annotations, self._first_pair_of(media) + annotations

    def dealt(self) -> np.ndarray:
        """int64, ascending: the media that have annotations and are dealt."""
        media = np.arange(self.media) if self._dealt is None else self._dealt
        return media[self._counts[media] > 0]

    def _first_pair_of(self, media: np.ndarray) -> np.ndarray:
        """int64 (n,): number of the first pair of each medium, looking at the counts of their shards only."""
        shards = np.searchsorted(self._first_media, media, side="right") - 1
        starts = [
            int(self._first_pairs[shard])
            + int(self._counts[self._first_media[shard] : medium].sum(dtype=np.int64))
            for shard, medium in zip(shards.tolist(), media.tolist(), strict=True)
        ]
        return np.asarray(starts, dtype=np.int64)

    def _locate(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs -> (media, which annotation of its medium each is), looking at the counts of their shards only."""
        media, annotations = np.empty_like(pairs), np.empty_like(pairs)
        shards = np.searchsorted(self._first_pairs, pairs, side="right") - 1
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            first, last = self._first_media[shard], self._first_media[shard + 1]
            ends = np.cumsum(self._counts[first:last], dtype=np.int64)
            inside = pairs[chosen] - self._first_pairs[shard]
            places = np.searchsorted(ends, inside, side="right")
            media[chosen] = first + places
            annotations[chosen] = inside - np.where(places > 0, ends[places - 1], 0)
        return media, annotations


class Mixture:
    """Sources in a fixed order. Its numbers of media and pairs run over all of them."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self.unit_name = "media" if self.sources[0].expand == "media" else f"pairs ({self.sources[0].kind})"
        self.first_medium = np.cumsum([0, *(source.media for source in sources)])
        self.first_pair = np.cumsum([0, *(source.pairs for source in sources)])
        places = [f"{Path(source.manifest.store.place).name}/{source.split}" for source in sources]
        seen = Counter(places)
        self.names = [
            f"{place}#{number}" if seen[place] > 1 else place for number, place in enumerate(places, 1)
        ]

    @property
    def described(self) -> str:
        """How messages call it."""
        shots = self.sources[0].shots
        few = "" if shots is None else f" with {shots} shots (data.shots)"
        if len(self.sources) == 1:
            return f"Split {self.sources[0].split!r} in {self.sources[0].manifest.store.place}{few}"
        return f"The mixture of {', '.join(self.names)}{few}"

    def key(self, source: int, key: str) -> str:
        """A sample's key in batches and messages: the shard's, after its source's name where there are several."""
        return key if len(self.sources) == 1 else f"{self.names[source]}/{key}"

    def rows(
        self, positions: np.ndarray, sources: np.ndarray, turns: np.ndarray, units: np.ndarray, seed: int
    ) -> Rows:
        """The samples that units of sources are; all int64 (n,)."""
        columns = [np.empty_like(positions) for _ in range(3)]
        for number in np.unique(sources).tolist():
            chosen = sources == number
            found = self.sources[number].rows(turns[chosen], units[chosen], (seed % 2**64, number))
            for column, values in zip(columns, found, strict=True):
                column[chosen] = values
        return Rows(positions, sources, turns, *columns)

    def fingerprint(self, *others: int) -> str:
        """sha256 of the sources, what they deal in, their weights, and other numbers that decide the order."""
        sources = [
            (
                source.manifest.fingerprint(source.split),
                source.kind,
                source.expand,
                str(source.weight),
                *(() if source.shots is None else (source.shots,)),  # without: as it always was
            )
            for source in self.sources
        ]
        return hashlib.sha256(json.dumps([sources, others]).encode()).hexdigest()


def open_mixture(config: RunConfig, kind: str = "captions") -> Mixture:
    """What `data` says training reads: data.mix, or the one split of data.shards. Raises AuroraError.

    With data.video.window=moments, moments are read where captions are asked for: captions of stretches of clips.
    """
    data = config.data
    if data.video.window == "moments":
        if kind not in ("captions", "moments"):
            raise AuroraError(
                f"data.video.window is moments, which have captions, but {config.task} trains on {kind}. Set it to "
                "[start, end] in seconds, or to null."
            )
        kind = "moments"
    if data.mix:
        parts = [(entry.shards, entry.split, entry.weight) for entry in data.mix]
    else:
        parts = [(data.shards, data.train_split, 1.0)]
    return Mixture(
        [
            Source(_manifest(shards, data), split, weight, kind, data.expand, data.shots, config.seed)
            for shards, split, weight in parts
        ]
    )


def open_manifest(config: RunConfig) -> Manifest:
    """The manifest in data.shards. Raises AuroraError when the key is not set or the folder holds no shards."""
    return _manifest(config.data.shards, config.data)


def _manifest(shards: str | None, data: DataConfig) -> Manifest:
    """The manifest of a folder or URL of shards; read once as long as the folder does not change."""
    if shards is None:
        raise AuroraError(
            "data.shards is not set: name the folder that `aurora-ds shards convert` wrote, for example "
            "data.shards=shards/coco_retrieval."
        )
    # What lies behind a URL is taken as it is at the start of the process: later changes are errors.
    file = None if is_remote(shards) else Path(shards) / MANIFEST_NAME
    return _load(shards, data.cache, data.cache_gb, file.stat().st_mtime_ns if file and file.is_file() else 0)


# Evaluation asks once per batch of images, and a large manifest takes a second to read.
@lru_cache(maxsize=8)
def _load(shards: str, cache: str | None, cache_gb: float, changed: int) -> Manifest:
    return open_shards(shards, cache, cache_gb)


def _draw(count: int, key: tuple[int, ...]) -> int:
    if count == 1:
        return 0
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_ANNOTATION, *key))))
    return int(generator.integers(count))
