"""Evaluation cut into fixed blocks of media that are dealt to ranks: every number is computed from the same tensors on
any number of ranks, so results are equal to the last digit, and none is counted twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist

from aurora_ds.config import RunConfig
from aurora_ds.data.loader import eval_image_loader
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.collectives import world

Result = TypeVar("Result")


def eval_records(config: RunConfig) -> list[tuple[str, dict[str, Any]]]:
    """Key and record of every medium of data.eval_split, of its first evaluate.limit ones, in order. Without media."""
    manifest, split = open_manifest(config), config.data.eval_split
    media = min(manifest.media(split), config.evaluate.limit or manifest.media(split))
    reader = ShardReader(manifest)
    try:
        return [reader.record(split, medium) for medium in range(media)]
    finally:
        reader.close()


def media_blocks(config: RunConfig, media: int) -> Iterator[tuple[range, dict[str, Any]]]:
    """This rank's blocks of the first `media` media of data.eval_split: their numbers, and the batch
    (`eval_image_loader`) that holds them. Blocks are of evaluate.image_batch_size, dealt round-robin."""
    rank, ranks = world()
    size = config.evaluate.image_batch_size
    blocks = [range(first, min(first + size, media)) for first in range(0, media, size)][rank::ranks]
    loader = eval_image_loader(
        config, config.data.eval_split, [medium for block in blocks for medium in block], 1, 0, size
    )
    batches = iter(loader)
    for block in blocks:
        batch = next(batches, None)
        if batch is None or batch["media_index"].tolist() != list(block):
            raise AuroraError(
                "Evaluation read other media than planned: the shards do not match their manifest."
            )
        yield block, batch


def in_order(own: Iterable[list[Result]], blocks: int) -> list[Result]:
    """Results of all blocks in their order, on every rank; `own`: those of this rank's blocks, one list each."""
    rank, ranks = world()
    mine = list(own)
    everyone: list[list[list[Result]]] = [mine]
    if ranks > 1:
        everyone = [[] for _ in range(ranks)]
        dist.all_gather_object(everyone, mine)
    return [result for block in range(blocks) for result in everyone[block % ranks][block // ranks]]


def number_of_blocks(config: RunConfig, media: int) -> int:
    """How many blocks `media_blocks` of all ranks makes."""
    return -(-media // config.evaluate.image_batch_size)
