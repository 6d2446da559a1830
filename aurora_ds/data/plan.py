"""The reading plan: which sample is read at which step, a pure function of (sources, seed, epoch, lanes, window).

Chunks of neighbouring units (pairs or media), each within one shard, are shuffled; the result is cut into `lanes`
equal ranges; units are shuffled within windows of a lane. Global position i of the epoch is place i // lanes of lane
i % lanes, so a batch draws from all lanes. Rank r of W owns the lanes l with l % W == r, hence the positions i with
i % W == r: batches do not depend on W. Nothing is computed for an epoch as a whole: a place is found from its window's
permutation and a table of chunks, so what is held grows with shards, lanes and window, not with samples.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from aurora_ds.data.mixture import Mixture, Rows
from aurora_ds.errors import AuroraError

# At least so many chunks per lane. Small splits get chunks of one unit, which is a full shuffle; a split of more shards
# than that gets whole shards, so that a shard is read by the ranks of one lane, seldom two.
CHUNKS_PER_LANE = 128
# First numbers of the keys of the generators, so that no two of them share a key.
_CHUNKS, _WINDOW = 1, 2


class Units(NamedTuple):
    """At each position: source, how many times its units were dealt before, unit. int64 (n,) each."""

    source: np.ndarray
    turn: np.ndarray
    unit: np.ndarray


class ChunkOrder:
    """One turn through the units of a source: its chunks, shuffled."""

    def __init__(self, bounds: np.ndarray, lanes: int, key: Sequence[int]):
        """bounds: int64 (shards + 1,), the first unit of each shard, then their number. key: of the generator."""
        shards = np.diff(bounds)
        most = max(1, int(bounds[-1]) // (lanes * CHUNKS_PER_LANE))
        parts = -(-shards // most)  # chunks of each shard, of nearly equal size
        owner = np.repeat(np.arange(len(shards)), parts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
        first = bounds[owner] + shards[owner] * place // parts[owner]
        size = bounds[owner] + shards[owner] * (place + 1) // parts[owner] - first
        shuffled = _generator(_CHUNKS, *key).permutation(len(owner))
        self._first, ends = first[shuffled], np.cumsum(size[shuffled])
        self._ends, self._starts = ends, ends - size[shuffled]

    def units(self, places: np.ndarray) -> np.ndarray:
        """The units at `places` of this turn, int64."""
        chunk = np.searchsorted(self._ends, places, side="right")
        return self._first[chunk] + places - self._starts[chunk]


class _Window(NamedTuple):
    """The units of some places of a lane, source by source, and their permutation."""

    first: np.ndarray  # int64 (sources,): how many units of each source this epoch deals before the window
    count: np.ndarray  # int64 (sources,): how many of each it holds
    permutation: np.ndarray  # int32 (units in the window,)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many of its units this epoch deals before it) at places of the window."""
        items = self.permutation[places].astype(np.int64)
        ends = np.cumsum(self.count)
        source = np.searchsorted(ends, items, side="right")
        return source, self.first[source] + items - (ends - self.count)[source]


class EpochOrder:
    """What is read at any position of one epoch. Every unit of a source of weight 1 occurs exactly once.

    The units of a source are dealt turn after turn without end, weight times their number in each epoch: weight 0.5
    spreads a turn over two epochs, weight 2 makes two turns in one. A lane gets every source's share in proportion.
    """

    def __init__(
        self,
        bounds: Sequence[np.ndarray],
        weights: Sequence[Fraction],
        seed: int,
        epoch: int,
        lanes: int,
        window: int,
    ):
        self.bounds, self.seed, self.epoch = bounds, seed % 2**64, epoch
        self.lanes, self.window = lanes, window
        sizes = [int(each[-1]) for each in bounds]
        self._sizes = np.asarray(sizes, dtype=np.int64)
        begun = [int(epoch * size * weight) for size, weight in zip(sizes, weights, strict=True)]
        drawn = [
            int((epoch + 1) * size * weight) - past
            for size, weight, past in zip(sizes, weights, begun, strict=True)
        ]
        self.total = sum(drawn)
        self._begun = np.asarray(begun, dtype=np.int64)  # units of each source dealt in earlier epochs
        self._shares = _lane_shares(drawn, lanes)
        self._before = np.cumsum(self._shares, axis=0) - self._shares  # in earlier lanes
        self._turns: dict[tuple[int, int], ChunkOrder] = {}
        # A rank that reads straight on is in one window of each lane, or in two around a border.
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    def units(self, positions: np.ndarray) -> Units:
        """What stands at global `positions`, int64 (n,) each below `total`."""
        positions = np.asarray(positions, dtype=np.int64)
        source, dealt = np.empty_like(positions), np.empty_like(positions)
        place, lane = np.divmod(positions, self.lanes)
        window, inside = np.divmod(place, self.window)
        where = window * self.lanes + lane
        for each in np.unique(where):
            chosen = where == each
            source[chosen], dealt[chosen] = self._window(*divmod(int(each), self.lanes)).at(inside[chosen])
        turn, index = np.divmod(self._begun[source] + dealt, self._sizes[source])
        unit = np.empty_like(positions)
        for key in np.unique(np.stack([source, turn]), axis=1).T.tolist():
            chosen = (source == key[0]) & (turn == key[1])
            unit[chosen] = self._turn(*key).units(index[chosen])
        return Units(source, turn, unit)

    def _window(self, window: int, lane: int) -> _Window:
        if (window, lane) not in self._windows:
            first, last = (self._dealt(lane, self.window * each) for each in (window, window + 1))
            generator = _generator(_WINDOW, self.seed, self.epoch, lane, window)
            permutation = generator.permutation(int((last - first).sum())).astype(np.int32)
            self._windows[window, lane] = _Window(self._before[lane] + first, last - first, permutation)
            if len(self._windows) > 2 * self.lanes:
                self._windows.popitem(last=False)
        return self._windows[window, lane]

    def _dealt(self, lane: int, place: int) -> np.ndarray:
        """int64 (sources,): how many units of each source stand before `place` of a lane, windows not yet shuffled.

        Unit k of a source with q places in lane l of L stands at (k + (l + 1/2) / L) / q of the way, so that sources
        run evenly through a lane, and what is rare comes at another time in every lane. What comes first fills the
        first places.
        """
        shares: list[int] = self._shares[lane].tolist()
        place = min(place, sum(shares))
        counts = [max(0, place * share // max(1, sum(shares)) - len(shares) - 1) for share in shares]
        while sum(counts) < place:
            ways = [
                (Fraction(2 * self.lanes * count + 2 * lane + 1, share), source)
                for source, (count, share) in enumerate(zip(counts, shares, strict=True))
                if count < share
            ]
            counts[min(ways)[1]] += 1
        return np.asarray(counts, dtype=np.int64)

    def _turn(self, source: int, turn: int) -> ChunkOrder:
        if (source, turn) not in self._turns:
            self._turns[source, turn] = ChunkOrder(self.bounds[source], self.lanes, (self.seed, source, turn))
        return self._turns[source, turn]


class TrainPlan:
    """What one rank reads in training. A step is one optimizer step of `global_batch_size` samples over all ranks.

    With accumulation A, a step is A consecutive micro-batches of global_batch_size / A samples. The incomplete last
    step of an epoch is left out. Raises AuroraError when the sizes do not divide or the data is smaller than one
    step.
    """

    def __init__(
        self,
        mixture: Mixture,
        seed: int,
        lanes: int,
        global_batch_size: int,
        world_size: int,
        rank: int,
        accumulation: int = 1,
        window: int = 4096,
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
        self.mixture, self.seed, self.lanes, self.window = mixture, seed, lanes, window
        self.global_batch_size, self.accumulation = global_batch_size, accumulation
        self.world_size, self.rank = world_size, rank
        # Weights that are no whole numbers deal one more in some epochs than in others.
        self.least = sum(int(source.units * source.weight) for source in mixture.sources)
        self.steps_per_epoch = self.least // global_batch_size
        if not self.steps_per_epoch:
            raise AuroraError(
                f"{mixture.described} has {self.least} {mixture.unit_name} an epoch, fewer than one step of "
                f"train.global_batch_size ({global_batch_size}). Use a smaller batch or more data."
            )
        self._order: EpochOrder | None = None

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch; the last one asked for is kept."""
        if self._order is None or self._order.epoch != epoch:
            sources = self.mixture.sources
            self._order = EpochOrder(
                [source.bounds for source in sources],
                [source.weight for source in sources],
                self.seed,
                epoch,
                self.lanes,
                self.window,
            )
        return self._order

    def rows(self, epoch: int, positions: np.ndarray) -> Rows:
        """The samples at global positions of an epoch."""
        units = self.order(epoch).units(positions)
        return self.mixture.rows(positions, units.source, units.turn, units.unit, self.seed)

    def batch(self, epoch: int, step: int, micro: int = 0) -> Rows:
        """This rank's micro-batch, in increasing positions."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        micro_size = self.global_batch_size // self.accumulation
        first = step * self.global_batch_size + micro * micro_size
        return self.rows(
            epoch, np.arange(first + self.rank, first + micro_size, self.world_size, dtype=np.int64)
        )

    def substitutes(self, epoch: int, position: int, most: int) -> Rows:
        """Samples to try, in order, when the one at `position` cannot be read; at most `most`.

        The next ones of its lane, around its end; in data so small that the lane has no others, the next positions.
        """
        total = self.order(epoch).total
        place, lane = divmod(position, self.lanes)
        length = -(-(total - lane) // self.lanes)
        following = [
            (place + ahead) % length * self.lanes + lane for ahead in range(1, min(length, most + 1))
        ]
        anywhere = [(position + ahead) % total for ahead in range(1, most + 1)]
        tried = [each for each in dict.fromkeys([*following, *anywhere]) if each != position][:most]
        return self.rows(epoch, np.asarray(tried, dtype=np.int64))

    def fingerprint(self) -> str:
        """sha256 of what decides the order of samples: a checkpoint's cursor means the same only under the same one."""
        return self.mixture.fingerprint(self.seed, self.lanes, self.window)


def evaluation_share(total: int, world_size: int, rank: int) -> range:
    """Which of `total` positions this rank evaluates: i % world_size == rank, so each is evaluated exactly once."""
    return range(rank, total, world_size)


def _lane_shares(drawn: Sequence[int], lanes: int) -> np.ndarray:
    """int64 (lanes, sources): how many units of each source a lane gets; lane l of L gets ceil((total - l) / L) in all.

    What a source has left after equal shares goes round the lanes, from where the source before it ended.
    """
    shares = np.empty((lanes, len(drawn)), dtype=np.int64)
    next_lane = 0
    for source, count in enumerate(drawn):
        share, left = divmod(count, lanes)
        shares[:, source] = share
        shares[(next_lane + np.arange(left)) % lanes, source] += 1
        next_lane += left
    return shares


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
