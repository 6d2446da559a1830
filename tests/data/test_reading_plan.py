"""The order of pairs: pure, complete, equal for every world size, resumable."""

from __future__ import annotations

import numpy as np
import pytest

from aurora_ds.data.manifest import Manifest, ShardEntry, SplitEntry
from aurora_ds.data.plan import WINDOW, TrainPlan, epoch_order, evaluation_share
from aurora_ds.errors import AuroraError

WORLD_SIZES = (1, 2, 4, 8)


def large(samples: int, captions: int = 5) -> Manifest:
    """A manifest without files."""
    shard = ShardEntry(
        file="train-000000.tar",
        samples=samples,
        pairs=samples * captions,
        bytes=samples,
        sha256="0" * 64,
        offsets=list(range(samples + 1)),
        counts={"captions": [captions] * samples},
    )
    split = SplitEntry(samples=samples, pairs=samples * captions, shards=[shard])
    return Manifest(schema=1, dataset="large", splits={"train": split})


@pytest.mark.parametrize("lanes", [1, 8, 64, 1000])
def test_every_pair_comes_once(manifest: Manifest, lanes: int) -> None:
    order = epoch_order(manifest, "train", "pair", 42, 0, lanes)
    assert sorted(order.tolist()) == list(range(90))
    assert sorted(epoch_order(manifest, "train", "medium", 42, 0, lanes).tolist()) == list(range(45))


def test_order_depends_on_seed_and_epoch_and_nothing_else(manifest: Manifest) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_order(manifest, "train", "pair", seed, epoch, 8).tolist()

    np.random.seed(1)
    first = order(42, 0)
    np.random.seed(2)
    assert order(42, 0) == first
    assert order(42, 1) != first and order(43, 0) != first
    assert order(-1, 0) != first  # a negative seed is a seed too


def test_order_is_the_one_that_checkpoints_were_made_with() -> None:
    """Changing the plan makes a resumed run repeat and skip samples: change it knowingly, and this line with it."""
    order = epoch_order(large(40, 3), "train", "pair", 42, 3, 8)
    assert order[:8].tolist() == [83, 47, 106, 118, 25, 37, 10, 64]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_global_batches_are_equal_for_every_world_size(manifest: Manifest, accumulation: int) -> None:
    def global_batches(world_size: int) -> list[list[tuple[int, int]]]:
        plans = [
            TrainPlan(manifest, "train", 7, 64, 16, world_size, rank, accumulation)
            for rank in range(world_size)
        ]
        assert {plan.steps_per_epoch for plan in plans} == {5}
        batches = []
        for step in range(5):
            for micro in range(accumulation):
                rows = [plan.batch_positions(1, step, micro) for plan in plans]
                assert {len(positions) for positions, _ in rows} == {16 // accumulation // world_size}
                for rank, (positions, _) in enumerate(rows):
                    assert (positions % world_size == rank).all() and (np.diff(positions) > 0).all()
                pairs = [each for positions, pairs in rows for each in zip(positions, pairs, strict=True)]
                batches.append(sorted(pairs))
        return batches

    expected = global_batches(1)
    assert [position for batch in expected for position, _ in batch] == list(range(80))
    for world_size in WORLD_SIZES[1:]:
        assert global_batches(world_size) == expected


def test_a_rank_reads_its_own_lanes_only() -> None:
    plan = TrainPlan(large(500), "train", 0, 16, 32, 4, 3)
    positions, _ = plan.batch_positions(0, 7)
    assert set((positions % 16 % 4).tolist()) == {3}


def test_shuffling_mixes_a_large_split_and_stays_in_its_neighbourhood() -> None:
    manifest, lanes = large(60_000), 8
    order = epoch_order(manifest, "train", "pair", 0, 0, lanes)
    assert len(set(order.tolist())) == 300_000
    batch = order[:256] // 5
    assert len(set(batch.tolist())) > 250, "captions of one image must hardly ever meet in a batch"
    # all pairs of a window of a lane come from few chunks: that is what keeps reading local
    lane = order[: lanes * (len(order) // lanes)].reshape(-1, lanes)[:WINDOW, 0]
    chunk = 300_000 // (lanes * 256)
    assert len(set((lane // chunk).tolist())) <= WINDOW // chunk + 2


def test_substitutes_are_the_next_of_the_lane(manifest: Manifest) -> None:
    plan = TrainPlan(manifest, "train", 0, 8, 16, 1, 0)
    order = plan.order(0)
    assert plan.substitutes(0, 3, 2).tolist() == [order[11], order[19]]
    last_of_lane = 83
    assert plan.substitutes(0, last_of_lane, 2).tolist() == [order[3], order[11]], "around the end"


def test_substitutes_exist_even_where_a_lane_has_one_pair(manifest: Manifest) -> None:
    plan = TrainPlan(manifest, "train", 0, 64, 16, 1, 0)
    order = plan.order(0)
    assert plan.substitutes(0, 40, 3).tolist() == [order[41], order[42], order[43]]
    assert plan.substitutes(0, 3, 3).tolist() == [order[67], order[4], order[5]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(lanes=4, world_size=8), "8 ranks cannot share 4 lanes"),
        (dict(lanes=64, world_size=6), r"data.lanes \(64\) is not a multiple of the number of ranks \(6\)"),
        (dict(global_batch_size=12, world_size=8), r"train.global_batch_size \(12\) is not a multiple"),
        (dict(global_batch_size=16, world_size=4, accumulation=3), r"ranks x train.accumulation \(4 x 3\)"),
        (dict(global_batch_size=128), "90 pairs .*fewer than one step"),
        (dict(rank=2, world_size=2), "Rank 2 is not one of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(manifest: Manifest, sizes: dict[str, int], message: str) -> None:
    settings = {"lanes": 64, "global_batch_size": 16, "world_size": 1, "rank": 0, **sizes}
    with pytest.raises(AuroraError, match=message):
        TrainPlan(manifest, "train", 0, **settings)


@pytest.mark.parametrize("world_size", range(1, 14))
def test_evaluation_shares_cover_everything_once(world_size: int) -> None:
    shares = [evaluation_share(11, world_size, rank) for rank in range(world_size)]
    assert sorted(place for share in shares for place in share) == list(range(11))
