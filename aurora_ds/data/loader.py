"""Loaders: batches of the reading plan by PyTorch's DataLoader, one whole batch per item.

Workers take batches in turn and hand them back in order, and all randomness of a sample is keyed by (seed, turn of its
source, pair), so neither the number of workers nor of ranks changes a batch's samples. Starting at a step reads nothing
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from aurora_ds.config import RunConfig
from aurora_ds.data.batch_memory import Filling
from aurora_ds.data.batch_workers import Batches, BatchLoader, batch_loader
from aurora_ds.data.blank import BlankMedium
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.media import NO_MOMENT, MediaReader, Medium, all_annotations, annotation
from aurora_ds.data.mixture import Row, open_manifest, open_mixture
from aurora_ds.data.phrases import PlacedMedium, placed
from aurora_ds.data.plan import TrainPlan, evaluation_share
from aurora_ds.data.questions import answered
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.text import caption_rule
from aurora_ds.data.unreadable import Limit, read_or_replace
from aurora_ds.errors import AuroraError


class Tokenizer(Protocol):
    """What this module needs of backbones.tokenizer.Tokenizer."""

    def encode(self, texts: list[str], max_tokens: int, single: bool = False) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask), int64 (texts, longest)."""
        ...


class _TrainBatches(Batches):
    """Item n is micro-batch n of the epoch. `texts` makes its tensors of the annotations, `every`: of all that each
    medium has."""

    def __init__(
        self,
        config: RunConfig,
        plan: TrainPlan,
        texts: Callable[[list[Any]], dict[str, Any]],
        epoch: int,
        every: bool = False,
    ):
        self.config, self.plan, self.texts, self.epoch, self.every = config, plan, texts, epoch, every
        data, sources = config.data, plan.mixture.sources
        splits = [(source.manifest, source.split) for source in sources]
        augmented = data.augment == "train"
        self.media = MediaReader(config, splits, data.video.train_sampling, data.decoded_mb, augmented)
        # What comes once in an epoch need not be kept for later.
        self._several = [source.expand == "pairs" and source.pairs > source.media for source in sources]

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation

    def batch(self, number: int) -> dict[str, Any]:
        rows = self.plan.batch(self.epoch, *divmod(number, self.plan.accumulation)).each()
        filling = Filling(self.config, len(rows), self.memory)
        read, bad = [], []
        self.media.fetch((row.source, row.medium, row.turn, self._moment(row)) for row in rows)
        for planned in rows:
            (row, medium, text), unreadable = read_or_replace(
                planned, self.epoch, self.plan, self.media, self.config.data.bad_samples == "skip", self._read
            )
            filling.add(medium, self._random(row))
            read.append((row, self.plan.mixture.key(row.source, medium.key), text))
            bad += unreadable
        mixture, keys = self.plan.mixture, [key for _, key, _ in read]
        return {
            "image": filling.filled,  # (batch, 3, size, size), or (batch, frames, 3, size, size)
            **self._texts([text for _, _, text in read], keys),
            "media_index": torch.tensor(
                [mixture.first_medium[row.source] + row.medium for row, _, _ in read]
            ),
            "sample_index": torch.tensor([mixture.first_pair[row.source] + row.pair for row, _, _ in read]),
            "keys": keys,
            "skipped": sum(not entry["substitute"] for entry in bad),
            "bad": bad,
        }

    def _texts(self, annotations: list[Any], keys: list[str]) -> dict[str, Any]:
        try:
            return self.texts(annotations)
        except AuroraError as error:
            raise AuroraError(f"{error} It is one of the samples {', '.join(keys)}.") from error

    def _read(self, row: Row) -> tuple[Row, Medium | BlankMedium | PlacedMedium, Any]:
        several, kind = self._several[row.source], self.plan.mixture.sources[row.source].kind
        medium = self.media.read(row.source, row.medium, row.turn, several, self._moment(row))
        if self.every:
            return row, medium, all_annotations(medium.record, kind, medium.key)
        found = annotation(medium.record, kind, row.annotation, medium.key)
        if kind == "questions":
            found = answered(found, medium.record, medium.key)
        if kind == "phrases":
            medium = placed(medium, found, self.config, self._random(row))
            found = medium.annotation
        return row, medium, found["caption"] if kind == "moments" else found

    def _moment(self, row: Row) -> int:
        return row.annotation if self.plan.mixture.sources[row.source].kind == "moments" else NO_MOMENT

    def _random(self, row: Row) -> np.random.Generator | None:
        if self.config.data.augment == "none":
            return None
        key = np.random.SeedSequence([self.config.seed % 2**64, row.source, row.turn, row.pair])
        return np.random.Generator(np.random.Philox(key))


class _EvaluationBatches(Batches):
    """Item n is the n-th batch of this rank's media."""

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        split: str,
        media: list[int],
        batch_size: int,
    ):
        self.config, self.numbers, self.batch_size = config, media, batch_size
        self.media = MediaReader(config, [(manifest, split)], config.data.video.eval_sampling)

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch_size)

    def batch(self, number: int) -> dict[str, Any]:
        media = self.numbers[number * self.batch_size : (number + 1) * self.batch_size]
        filling, keys = Filling(self.config, len(media), self.memory), []
        self.media.fetch((0, number, 0) for number in media)
        for number in media:
            medium = self.media.read(0, number)
            filling.add(medium, None)
            keys.append(medium.key)
        return {"image": filling.filled, "media_index": torch.tensor(media), "keys": keys}


def train_plan(config: RunConfig, world_size: int, rank: int, kind: str = "captions") -> TrainPlan:
    """The plan that training reads by: steps_per_epoch without opening a shard. Raises AuroraError."""
    data, train = config.data, config.train
    return TrainPlan(
        open_mixture(config, kind),
        config.seed,
        data.lanes,
        train.global_batch_size,
        world_size,
        rank,
        train.accumulation,
        data.window,
    )


def steps_per_epoch(config: RunConfig, world_size: int) -> int:
    """Optimizer steps of an epoch, the same on every rank. Raises AuroraError for sizes that do not fit."""
    return train_plan(config, world_size, 0).steps_per_epoch


def train_loader(
    config: RunConfig, tokenizer: Tokenizer, world_size: int, rank: int, epoch: int, start_step: int = 0
) -> BatchLoader:
    """`annotated_loader` of captions, as retrieval trains on them."""
    texts = caption_texts(config, tokenizer)
    return annotated_loader(config, "captions", texts, world_size, rank, epoch, start_step)


def caption_texts(config: RunConfig, tokenizer: Tokenizer) -> Callable[[list[str]], dict[str, Tensor]]:
    """What makes input_ids and attention_mask, int64 (B, longest text), of B captions."""
    retrieval, clean = config.retrieval, caption_rule(config.backbone.name)

    def texts(captions: list[str]) -> dict[str, Tensor]:
        cleaned = [clean(caption, retrieval.max_words) for caption in captions]
        input_ids, attention_mask = tokenizer.encode(cleaned, retrieval.max_tokens, single=True)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    return texts


def annotated_loader(
    config: RunConfig,
    kind: str,
    texts: Callable[[list[Any]], dict[str, Any]],
    world_size: int,
    rank: int,
    epoch: int,
    start_step: int = 0,
    every: bool = False,
) -> BatchLoader:
    """This rank's micro-batches of an epoch from optimizer step `start_step` on, train.accumulation of them per step.

    Each is a dict: image float32 (B, 3, S, S), clips (B, T, 3, S, S); what `texts` makes of the B annotations of the
    kind; media_index, sample_index int64 (B,): number of the medium and of the (medium, annotation) pair over all
    sources; keys; skipped: how many samples were replaced by others of their lane, as they were unreadable; bad: what
    was unreadable (unreadable.py). B = global_batch_size / world_size / accumulation. len() is exact and the same on
    every rank. `every`: `texts` gets, in the place of an annotation, the list of all that its medium has of the kind.
    Raises AuroraError for wrong sizes at once, for unreadable samples (data.bad_samples) and for what `texts` refuses
    while iterating.
    """
    plan = train_plan(config, world_size, rank, kind)
    if not 0 <= start_step <= plan.steps_per_epoch:
        raise AuroraError(
            f"Step {start_step} is not in an epoch of {plan.steps_per_epoch} steps: the checkpoint belongs to "
            "other data or another batch size."
        )
    batches = _TrainBatches(config, plan, texts, epoch, every)
    numbers = range(start_step * plan.accumulation, len(batches))
    limit = Limit(config.data.max_bad_share, plan.steps_per_epoch * plan.global_batch_size)
    rows = plan.global_batch_size // plan.world_size // plan.accumulation
    return batch_loader(config, batches, numbers, rows, limit)


def eval_image_loader(
    config: RunConfig,
    split: str,
    indices: Sequence[int] | None,
    world_size: int,
    rank: int,
    batch_size: int,
) -> BatchLoader:
    """This rank's share of the media `indices` (None: all) of the split; over all ranks each comes exactly once.

    Rank r reads positions i % world_size == r of the list. Batches: image float32 (B, 3, S, S), clips (B, T, 3, S, S),
    media_index int64 (B,), keys; the last may be short, and a rank may have none. An unreadable medium is an error here
    whatever data.bad_samples says: a recall over another gallery would not be comparable.
    """
    manifest = open_manifest(config)
    listed = range(manifest.media(split)) if indices is None else [int(index) for index in indices]
    media = [listed[position] for position in evaluation_share(len(listed), world_size, rank)]
    batches = _EvaluationBatches(config, manifest, split, media, batch_size)
    return batch_loader(config, batches, range(len(batches)), batch_size)


def eval_texts(
    config: RunConfig, split: str, tokenizer: Tokenizer, limit: int | None = None
) -> dict[str, Any]:
    """All captions of the split (of its first `limit` media), in pair order, the same on every rank.

    input_ids: list of N int64 tensors without padding; captions: N normalised strings; text_index, media_index
    int64 (N,): number of the text and of the medium it belongs to; media: how many media; keys: their sample keys.
    """
    manifest = open_manifest(config)
    reader, retrieval = ShardReader(manifest), config.retrieval
    media = min(manifest.media(split), limit or manifest.media(split))
    clean = caption_rule(config.backbone.name)
    captions, owners, keys = [], [], []
    for medium in range(media):
        key, record = reader.record(split, medium)
        keys.append(key)
        for caption in record.get("captions", []):
            captions.append(clean(caption, retrieval.max_words))
            owners.append(medium)
    reader.close()
    if not captions:
        raise AuroraError(f"Split {split!r} in {manifest.store.place} has no captions to evaluate on.")
    rows: list[Tensor] = []
    for first in range(0, len(captions), 1024):
        input_ids, mask = tokenizer.encode(captions[first : first + 1024], retrieval.max_tokens, single=True)
        rows += [ids[: int(length)].clone() for ids, length in zip(input_ids, mask.sum(1), strict=True)]
    return {
        "input_ids": rows,
        "captions": captions,
        "text_index": torch.arange(len(rows)),
        "media_index": torch.tensor(owners),
        "media": media,
        "keys": keys,
    }


def pad_texts(input_ids: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """Unpadded token rows -> (input_ids, attention_mask), int64 (rows, longest row)."""
    padded = torch.nn.utils.rnn.pad_sequence(list(input_ids), batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in input_ids])
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()
