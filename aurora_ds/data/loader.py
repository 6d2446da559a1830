"""Loaders: batches of the reading plan by PyTorch's DataLoader, one whole batch per item.

Workers take batches in turn and hand them back in order, and all randomness of a sample is keyed by (seed, epoch,
pair), so neither the number of workers nor of ranks changes a batch's samples. Starting at a step reads nothing
before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aurora_ds.config import RunConfig
from aurora_ds.data.decode import open_image
from aurora_ds.data.image import test_transform, train_transform
from aurora_ds.data.manifest import MANIFEST_NAME, Manifest
from aurora_ds.data.plan import TrainPlan, evaluation_share
from aurora_ds.data.reader import BadSample, Sample, ShardReader
from aurora_ds.data.text import pre_caption
from aurora_ds.errors import AuroraError

# Other pairs of the lane that are tried for an unreadable one before the run is stopped: damage on a large scale.
MOST_SUBSTITUTES = 16


class Tokenizer(Protocol):
    """What this module needs of backbones.tokenizer.Tokenizer."""

    def encode(self, texts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask), int64 (texts, longest)."""
        ...


@dataclass(frozen=True)
class _Failure:
    """An AuroraError on its way out of a worker: raised there, DataLoader would put a stack trace into its message."""

    message: str


class BatchLoader:
    """Iterates batches; len() is exact. A thin shell over DataLoader that raises errors of workers as they were."""

    def __init__(self, batches: DataLoader):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = iter(self.batches)
        try:
            while True:
                batch = _next(iterator)
                if batch is None:
                    return
                if isinstance(batch, _Failure):
                    raise AuroraError(batch.message)
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

    def __getitem__(self, number: int) -> dict[str, Any] | _Failure:
        try:
            return self.batch(number)
        except AuroraError as error:
            return _Failure(str(error))


class _TrainBatches(_Batches):
    """Item n is micro-batch n of the epoch."""

    def __init__(self, config: RunConfig, plan: TrainPlan, tokenizer: Tokenizer, epoch: int):
        self.config, self.plan, self.tokenizer, self.epoch = config, plan, tokenizer, epoch
        self.reader = ShardReader(plan.manifest)
        plan.order(epoch)  # computed once here, not in every worker

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.accumulation

    def batch(self, number: int) -> dict[str, Any]:
        step, micro = divmod(number, self.plan.accumulation)
        positions, pairs = self.plan.batch_positions(self.epoch, step, micro)
        media, which = self._locate(pairs)
        rows = [
            self._row(*row)
            for row in zip(positions.tolist(), pairs.tolist(), media.tolist(), which.tolist(), strict=True)
        ]
        retrieval = self.config.retrieval
        captions = [pre_caption(row["caption"], retrieval.max_words) for row in rows]
        input_ids, attention_mask = self.tokenizer.encode(captions, retrieval.max_tokens)
        return {
            "image": torch.stack([row["image"] for row in rows]),  # (batch, 3, size, size)
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "media_index": torch.tensor([row["medium"] for row in rows]),
            "sample_index": torch.tensor([row["pair"] for row in rows]),
            "keys": [row["key"] for row in rows],
            "skipped": sum(row["skipped"] for row in rows),
        }

    def _row(self, position: int, pair: int, medium: int, which: int) -> dict[str, Any]:
        """The pair's row, or with data.bad_samples=skip that of the first readable one of its substitutes."""
        try:
            return {**self._read(pair, medium, which), "skipped": 0}
        except BadSample as error:
            problem = error
        if self.config.data.bad_samples == "error":
            raise AuroraError(
                f"Pair {pair} of split {self.plan.split!r} cannot be used. {problem} Set data.bad_samples=skip "
                "to go on with other pairs in the place of such ones."
            )
        others = self.plan.substitutes(self.epoch, position, MOST_SUBSTITUTES)
        places = zip(others.tolist(), *map(np.ndarray.tolist, self._locate(others)), strict=True)
        for other in places:
            try:
                return {**self._read(*other), "skipped": 1}
            except BadSample as error:
                problem = error
        raise AuroraError(
            f"Pair {pair} of split {self.plan.split!r} and {len(others)} pairs tried in its place cannot be "
            f"read. {problem} `aurora-ds shards verify` lists all damage."
        )

    def _locate(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.plan.manifest.locate_pairs(self.plan.split, pairs)

    def _read(self, pair: int, medium: int, which: int) -> dict[str, Any]:
        data = self.config.data
        sample = self.reader.read(self.plan.split, medium)
        image = open_image(sample.media, data.max_pixels, sample.key, data.image_decoder)
        size = self.config.backbone.vision.image_size
        if data.augment == "train":
            key = np.random.SeedSequence([self.config.seed % 2**64, self.epoch, pair])
            pixels = train_transform(
                image,
                size,
                np.random.Generator(np.random.Philox(key)),
                data.crop_scale,
                data.horizontal_flip,
                data.randaugment,
            )
        else:
            pixels = test_transform(image, size)
        return {
            "image": pixels,
            "caption": _caption(sample.record, which, sample.key),
            "medium": medium,
            "pair": pair,
            "key": sample.key,
        }


class _EvaluationBatches(_Batches):
    """Item n is the n-th batch of this rank's media."""

    def __init__(self, config: RunConfig, manifest: Manifest, split: str, media: list[int], batch_size: int):
        self.config, self.split, self.media, self.batch_size = config, split, media, batch_size
        self.reader = ShardReader(manifest)

    def __len__(self) -> int:
        return -(-len(self.media) // self.batch_size)

    def batch(self, number: int) -> dict[str, Any]:
        media = self.media[number * self.batch_size : (number + 1) * self.batch_size]
        samples: list[Sample] = [self.reader.read(self.split, medium) for medium in media]
        size, data = self.config.backbone.vision.image_size, self.config.data
        opened = (open_image(one.media, data.max_pixels, one.key, data.image_decoder) for one in samples)
        images = [test_transform(image, size) for image in opened]
        return {
            "image": torch.stack(images),  # (batch, 3, size, size)
            "media_index": torch.tensor(media),
            "keys": [sample.key for sample in samples],
        }


def train_plan(config: RunConfig, manifest: Manifest, world_size: int, rank: int) -> TrainPlan:
    """The plan that `train_loader` reads by: steps_per_epoch without opening a shard."""
    data, train = config.data, config.train
    return TrainPlan(
        manifest,
        data.train_split,
        config.seed,
        data.lanes,
        train.global_batch_size,
        world_size,
        rank,
        train.accumulation,
    )


def steps_per_epoch(config: RunConfig, world_size: int) -> int:
    """Optimizer steps of an epoch, the same on every rank. Raises AuroraError for sizes that do not fit."""
    return train_plan(config, open_manifest(config), world_size, 0).steps_per_epoch


def train_loader(
    config: RunConfig, tokenizer: Tokenizer, world_size: int, rank: int, epoch: int, start_step: int = 0
) -> BatchLoader:
    """This rank's micro-batches of an epoch from optimizer step `start_step` on, train.accumulation of them per step.

    Each is a dict: image float32 (B, 3, S, S); input_ids, attention_mask int64 (B, longest text); media_index,
    sample_index int64 (B,): number of the medium and of the (medium, caption) pair in the split; keys; skipped:
    unreadable samples that were replaced by others of their lane. B = global_batch_size / world_size /
    accumulation. len() is exact and the same on every rank. Raises AuroraError for wrong sizes at once, for
    unreadable samples while iterating (data.bad_samples).
    """
    plan = train_plan(config, open_manifest(config), world_size, rank)
    if not 0 <= start_step <= plan.steps_per_epoch:
        raise AuroraError(
            f"Step {start_step} is not in an epoch of {plan.steps_per_epoch} steps: the checkpoint belongs to "
            "other data or another batch size."
        )
    batches = _TrainBatches(config, plan, tokenizer, epoch)
    return _loader(config, batches, range(start_step * plan.accumulation, len(batches)))


def eval_image_loader(
    config: RunConfig,
    split: str,
    indices: Sequence[int] | None,
    world_size: int,
    rank: int,
    batch_size: int,
) -> BatchLoader:
    """This rank's share of the media `indices` (None: all) of the split; over all ranks each comes exactly once.

    Rank r reads positions i % world_size == r of the list. Batches: image float32 (B, 3, S, S), media_index int64
    (B,), keys; the last may be short, and a rank may have none. An unreadable image is an error here whatever
    data.bad_samples says: a recall over another gallery would not be comparable.
    """
    manifest = open_manifest(config)
    listed = range(manifest.media(split)) if indices is None else [int(index) for index in indices]
    media = [listed[position] for position in evaluation_share(len(listed), world_size, rank)]
    batches = _EvaluationBatches(config, manifest, split, media, batch_size)
    return _loader(config, batches, range(len(batches)))


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
    captions, owners, keys = [], [], []
    for medium in range(media):
        key, record = reader.record(split, medium)
        keys.append(key)
        for caption in record.get("captions", []):
            captions.append(pre_caption(caption, retrieval.max_words))
            owners.append(medium)
    reader.close()
    if not captions:
        raise AuroraError(f"Split {split!r} in {manifest.folder} has no captions to evaluate on.")
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


def open_manifest(config: RunConfig) -> Manifest:
    """The manifest in data.shards. Raises AuroraError when the key is not set or the folder holds no shards."""
    if config.data.shards is None:
        raise AuroraError(
            "data.shards is not set: name the folder that `aurora-ds shards convert` wrote, for example "
            "data.shards=shards/coco_retrieval."
        )
    path = Path(config.data.shards)
    manifest = path / MANIFEST_NAME
    # Evaluation asks once per batch of images, and a large manifest takes a second to read.
    return _load(path, manifest.stat().st_mtime_ns if manifest.is_file() else 0)


@lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> Manifest:
    return Manifest.load(path)


def _caption(record: dict[str, Any], which: int, key: str) -> str:
    captions = record.get("captions")
    if not isinstance(captions, list) or which >= len(captions) or not isinstance(captions[which], str):
        raise BadSample(
            f"Sample {key} has no caption {which}: its record does not fit the manifest.", "no_annotation"
        )
    return captions[which]


def _loader(config: RunConfig, batches: Dataset, numbers: range) -> BatchLoader:
    # A single batch is made faster here than in a process that must be started for it.
    workers = min(config.data.workers, len(numbers)) if len(numbers) > 1 else 0
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
    return BatchLoader(loader)


def _prepare_worker(worker: int) -> None:
    # The tokenizers library warns once per fork unless told that its threads are not wanted here.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
