"""Loaders: batches of the reading plan by PyTorch's DataLoader, one whole batch per item.

Workers take batches in turn and hand them back in order, and all randomness of a sample is keyed by (seed, turn of its
source, pair), so neither the number of workers nor of ranks changes a batch's samples. Starting at a step reads nothing
before it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aurora_ds.config import RunConfig
from aurora_ds.data.batch_memory import BatchMemory, FilledSlot, Filling, keep_freed_memory
from aurora_ds.data.blank import BlankMedium
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.media import NO_MOMENT, MediaReader, Medium, all_annotations, annotation
from aurora_ds.data.mixture import Row, open_manifest, open_mixture
from aurora_ds.data.phrases import PlacedMedium, placed
from aurora_ds.data.plan import TrainPlan, evaluation_share
from aurora_ds.data.questions import answered
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.text import caption_rule
from aurora_ds.data.unreadable import Limit, TooManyUnreadable, read_or_replace
from aurora_ds.data.waiting import ReadingBoard, Watch
from aurora_ds.data.worker_signals import end_only_with_the_run
from aurora_ds.errors import AuroraError


class Tokenizer(Protocol):
    """What this module needs of backbones.tokenizer.Tokenizer."""

    def encode(self, texts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask), int64 (texts, longest)."""
        ...


@dataclass(frozen=True)
class _Failure:
    """An AuroraError on its way out of a worker: raised there, DataLoader would put a stack trace into its message."""

    message: str
    bad: tuple[dict[str, Any], ...] = ()


class BatchLoader:
    """Iterates batches; len() is exact. A shell over DataLoader that raises errors of workers as they were, tells of
    long waits, and stops when too much is unreadable."""

    def __init__(
        self, batches: DataLoader, board: ReadingBoard, slow_seconds: float, limit: Limit | None = None
    ):
        self.batches, self.board, self.slow_seconds, self.limit = batches, board, slow_seconds, limit

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = iter(self.batches)
        try:
            with Watch(self.board, self.slow_seconds) as watch:
                while True:
                    watch.begin()
                    batch = _next(iterator)
                    watch.end()
                    if batch is None:
                        return
                    if isinstance(batch, _Failure):
                        raise (
                            TooManyUnreadable(batch.message, list(batch.bad))
                            if batch.bad
                            else AuroraError(batch.message)
                        )
                    if self.limit is not None:
                        self.limit.add(batch["bad"])
                    if isinstance(batch["image"], FilledSlot):
                        batch["image"] = batch["image"].tensor()
                    yield batch
        finally:
            # Its workers end with its last reference; left to a traceback or to garbage collection, that takes seconds.
            del iterator


def _next(iterator: Iterator[Any]) -> dict[str, Any] | _Failure | None:
    """The next item, or None at the end."""
    try:
        return next(iterator, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Caught" in str(error):
            raise
        raise AuroraError(
            "A data worker process was killed, perhaps because memory ran out. Use fewer data.workers or a smaller "
            "data.prefetch and resume."
        ) from error


class _Batches(Dataset):
    """Item n is `batch(n)`, or the failure to make it: the mapping that DataLoader's workers share."""

    batch: Callable[[int], dict[str, Any]]
    media: MediaReader
    memory: BatchMemory | None = None

    def __getitem__(self, number: int) -> dict[str, Any] | _Failure:
        try:
            return self.batch(number)
        except TooManyUnreadable as error:
            return _Failure(str(error), tuple(error.bad))
        except AuroraError as error:
            return _Failure(str(error))


class _TrainBatches(_Batches):
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


class _EvaluationBatches(_Batches):
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
        input_ids, attention_mask = tokenizer.encode(cleaned, retrieval.max_tokens)
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
    return _loader(config, batches, numbers, rows, limit)


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
    return _loader(config, batches, range(len(batches)), batch_size)


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
        input_ids, mask = tokenizer.encode(captions[first : first + 1024], retrieval.max_tokens)
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


def _loader(
    config: RunConfig, batches: _Batches, numbers: range, rows: int, limit: Limit | None = None
) -> BatchLoader:
    """A loader of the items `numbers`, of at most `rows` media each."""
    # A single batch is made faster here than in a process that must be started for it.
    workers = min(config.data.workers, len(numbers)) if len(numbers) > 1 else 0
    board = ReadingBoard(workers, batches.media.place)
    batches.media.note = board.note
    if workers:
        # as many as can be under way, and two for the run that reads them; each takes two file descriptors
        slots = min(workers * config.data.prefetch + 2, 100)
        batches.memory = _batch_memory(
            slots, rows * config.data.video.frames * 3 * config.backbone.vision.image_size**2
        )
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=config.data.prefetch if workers else None,
        # fork: a start costs milliseconds; workers run no CUDA and one thread, which is what fork needs to be safe.
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_prepare_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return BatchLoader(loader, board, config.data.slow_seconds, limit)


def _batch_memory(slots: int, floats: int) -> BatchMemory | None:
    try:
        return BatchMemory(slots, floats)
    except OSError:  # every batch then takes memory of its own
        return None


def _prepare_worker(worker: int) -> None:
    # The tokenizers library warns once per fork unless told that its threads are not wanted here.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    keep_freed_memory()
    end_only_with_the_run()
    # Objects of the main process need no collecting here; looking at them would copy their pages.
    gc.freeze()
