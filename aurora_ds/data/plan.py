"""The reading plan: which pair is read at which step, a pure function of (manifest, split, seed, epoch, lanes).

Chunks of neighbouring pairs are shuffled, the result is cut into `lanes` equal ranges, and pairs are shuffled
within windows of a lane. Global position i of the epoch is place i // lanes of lane i % lanes, so a batch draws
from all lanes. Rank r of W owns the lanes l with l % W == r, hence the positions i with i % W == r: batches do not
depend on W.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from aurora_ds.data.manifest import Manifest
from aurora_ds.errors import AuroraError

# Pairs of a lane that are shuffled among each other: a rank touches only these neighbourhoods of the shards at a
# time.
WINDOW = 16384
# At least so many chunks per lane. Small splits get chunks of one pair, which is a full shuffle.
CHUNKS_PER_LANE = 256


def epoch_order(
    manifest: Manifest,
    split: str,
    unit: Literal["pair", "medium"],
    seed: int,
    epoch: int,
    lanes: int,
    kind: str = "captions",
) -> np.ndarray:
    """int64 (n,): number of the pair (or medium) at each global position of the epoch. Every one occurs once."""
    total = manifest.pairs(split, kind) if unit == "pair" else manifest.media(split)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch])))
    chunk = max(1, total // (lanes * CHUNKS_PER_LANE))
    starts = np.arange(0, total, chunk, dtype=np.int64)
    random.shuffle(starts)
    listed = (starts[:, None] + np.arange(chunk)).ravel()
    listed = listed[listed < total]  # the last chunk may be short, wherever it was shuffled to
    places = total // lanes
    by_lane = listed[: lanes * places].reshape(lanes, places)
    for first in range(0, places, WINDOW):
        by_lane[:, first : first + WINDOW] = random.permuted(by_lane[:, first : first + WINDOW], axis=1)
    # What does not fill a place of every lane comes last; it differs from epoch to epoch.
    return np.concatenate([by_lane.T.ravel(), listed[lanes * places :]])


class TrainPlan:
    """What one rank reads in training. A step is one optimizer step of `global_batch_size` pairs over all ranks.

    With accumulation A, a step is A consecutive micro-batches of global_batch_size / A pairs. The incomplete last
    step of an epoch is left out. Raises AuroraError when the sizes do not divide or the split is smaller than one
    step.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        seed: int,
        lanes: int,
        global_batch_size: int,
        world_size: int,
        rank: int,
        accumulation: int = 1,
        kind: str = "captions",
    ):
        if world_size > lanes:
            raise AuroraError(
                f"{world_size} ranks cannot share {lanes} lanes (data.lanes): each rank needs at least one. "
                f"Use at most {lanes} ranks, or set data.lanes to a multiple of {world_size}; another number "
                "of lanes is another order."
            )
        if lanes % world_size:
            raise AuroraError(
                f"data.lanes ({lanes}) is not a multiple of the number of ranks ({world_size}), so ranks would "
                f"get unequal shares. Use a number of ranks that divides {lanes}, or set data.lanes to a "
                f"multiple of {world_size}."
            )
        if global_batch_size % (world_size * accumulation):
            raise AuroraError(
                f"train.global_batch_size ({global_batch_size}) is not a multiple of ranks x "
                f"train.accumulation ({world_size} x {accumulation}). Choose a multiple of "
                f"{world_size * accumulation}."
            )
        if not 0 <= rank < world_size:
            raise AuroraError(f"Rank {rank} is not one of the {world_size} ranks 0 to {world_size - 1}.")
        self.manifest, self.split, self.kind = manifest, split, kind
        self.seed, self.lanes, self.global_batch_size = seed, lanes, global_batch_size
        self.world_size, self.rank, self.accumulation = world_size, rank, accumulation
        self.pairs = manifest.pairs(split, kind)
        self.steps_per_epoch = self.pairs // global_batch_size
        if not self.steps_per_epoch:
            raise AuroraError(
                f"Split {split!r} in {manifest.folder} has {self.pairs} pairs ({kind}), fewer than one step of "
                f"train.global_batch_size ({global_batch_size}). Use a smaller batch or more data."
            )
        self._order: tuple[int, np.ndarray] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """epoch_order of this plan; the last epoch asked for is kept."""
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(self.manifest, self.split, "pair", self.seed, epoch, self.lanes, self.kind)
            self._order = (epoch, order)
        return self._order[1]

    def batch_positions(self, epoch: int, step: int, micro: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(global positions, pair numbers) of this rank's micro-batch, int64 (batch,) each, positions increasing."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        micro_size = self.global_batch_size // self.accumulation
        first = step * self.global_batch_size + micro * micro_size
        positions = np.arange(first + self.rank, first + micro_size, self.world_size, dtype=np.int64)
        return positions, self.order(epoch)[positions]

    def substitutes(self, epoch: int, position: int, most: int) -> np.ndarray:
        """Pairs to try, in order, when the one at `position` cannot be read: int64, at most `most`.

        The next ones of its lane, around its end; in a split so small that the lane has no others, the next positions.
        """
        order = self.order(epoch)
        lane = np.arange(position % self.lanes, len(order), self.lanes)
        following = np.roll(lane, -(position // self.lanes) - 1)[:-1]
        anywhere = np.arange(position + 1, position + 1 + most) % len(order)
        tried = dict.fromkeys([*following[:most].tolist(), *anywhere.tolist()])
        return order[[place for place in tried if place != position][:most]]


def evaluation_share(total: int, world_size: int, rank: int) -> range:
    """Which of `total` positions this rank evaluates: i % world_size == rank, so each is evaluated exactly once."""
    return range(rank, total, world_size)
