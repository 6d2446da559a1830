"""The order of samples: pure, complete, equal for every world size, resumable; for any shards, lanes and mixture."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from drawn_data import written_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_ds.data.manifest import Manifest
from aurora_ds.data.mixture import Mixture, Source
from aurora_ds.data.plan import CHUNKS_PER_LANE, EpochOrder, TrainPlan, evaluation_share
from aurora_ds.errors import AuroraError

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum)
WEIGHTS = st.sampled_from(
    [Fraction(1), Fraction(1, 2), Fraction(2), Fraction(1, 3), Fraction("0.7"), Fraction("1.5")]
)
few = settings(max_examples=40, deadline=None, derandomize=True)


def bounds(sizes: list[int]) -> np.ndarray:
    return np.cumsum([0, *sizes])


def epoch(
    sizes: list[list[int]],
    weights: list[Fraction],
    number: int = 0,
    lanes: int = 8,
    window: int = 16,
    seed: int = 7,
):
    return EpochOrder([bounds(each) for each in sizes], weights, seed, number, lanes, window)


def dealt(order: EpochOrder) -> list[tuple[int, int, int]]:
    """(source, turn, unit) at each position."""
    return list(zip(*(column.tolist() for column in order.units(np.arange(order.total))), strict=True))


@given(SIZES, st.integers(1, 70), st.integers(1, 30), st.integers(0, 3), st.integers(-5, 5))
@few
def test_every_unit_comes_once_an_epoch(
    sizes: list[int], lanes: int, window: int, number: int, seed: int
) -> None:
    order = epoch([sizes], [Fraction(1)], number, lanes, window, seed)
    assert sorted(dealt(order)) == [(0, number, unit) for unit in range(sum(sizes))]


@given(st.lists(SIZES, min_size=1, max_size=4), st.data(), st.integers(1, 20), st.integers(1, 30))
@few
def test_a_weight_is_how_often_units_come(
    sizes: list[list[int]], data: st.DataObject, lanes: int, window: int
) -> None:
    """Turn after turn, each complete and in order, `weight` turns an epoch, whatever the other sources are."""
    weights = [data.draw(WEIGHTS) for _ in sizes]
    epochs = [dealt(epoch(sizes, weights, number, lanes, window)) for number in range(6)]
    for source, (each, weight) in enumerate(zip(sizes, weights, strict=True)):
        total = sum(each)
        for number, listed in enumerate(epochs):
            due = int((number + 1) * total * weight) - int(number * total * weight)
            assert sum(row[0] == source for row in listed) == due
        seen = Counter(row[1:] for listed in epochs for row in listed if row[0] == source)
        turns, rest = divmod(int(6 * total * weight), total)
        assert set(seen.values()) <= {1}, "no unit comes twice in a turn"
        assert sum(turn < turns for turn, _ in seen) == turns * total, (
            "a turn is complete before the next begins"
        )
        assert sum(turn == turns for turn, _ in seen) == rest


@given(st.lists(SIZES, min_size=1, max_size=3), st.data(), st.integers(1, 30), st.integers(1, 30))
@few
def test_lanes_run_through_their_windows(
    sizes: list[list[int]], data: st.DataObject, lanes: int, window: int
) -> None:
    """A window of a lane holds neighbours of the shuffled list, so a lane is in few chunks at a time."""
    weights = [data.draw(WEIGHTS) for _ in sizes]
    order, wide = (epoch(sizes, weights, 1, lanes, each) for each in (window, 10_000))
    for lane in range(min(lanes, order.total)):
        places = np.arange(lane, order.total, lanes)
        alone = epoch(sizes, weights, 1, lanes, 1).units(places)  # windows of one place: not shuffled
        listed = list(zip(*(column.tolist() for column in alone), strict=True))
        got = list(zip(*(column.tolist() for column in order.units(places)), strict=True))
        for first in range(0, len(listed), window):
            assert sorted(got[first : first + window]) == sorted(listed[first : first + window])
        whole = zip(*(column.tolist() for column in wide.units(places)), strict=True)
        assert sorted(whole) == sorted(listed), "the window does not decide which lane a unit is in"


def plan_of(sizes: list[list[int]], weights: list[Fraction], **changes: int) -> TrainPlan:
    sources = [
        Source(written_manifest([[1] * size for size in each]), "train", float(weight))
        for each, weight in zip(sizes, weights, strict=True)
    ]
    for source, weight in zip(sources, weights, strict=True):
        source.weight = weight
    return TrainPlan(
        Mixture(sources),
        **{
            "seed": 3,
            "lanes": 12,
            "global_batch_size": 12,
            "world_size": 1,
            "rank": 0,
            "window": 10,
            **changes,
        },
    )


@given(
    st.lists(SIZES.filter(lambda sizes: sum(sizes) > 36), min_size=1, max_size=3),
    st.data(),
    st.sampled_from([1, 2, 3]),
)
@few
def test_global_batches_are_equal_for_every_world_size(
    sizes: list[list[int]], data: st.DataObject, accumulation: int
) -> None:
    weights = [data.draw(WEIGHTS) for _ in sizes]

    def global_batches(world_size: int) -> list[list[tuple]]:
        plans = [
            plan_of(sizes, weights, world_size=world_size, rank=rank, accumulation=accumulation)
            for rank in range(world_size)
        ]
        assert len({plan.steps_per_epoch for plan in plans}) == 1
        batches = []
        for step in range(plans[0].steps_per_epoch):
            for micro in range(accumulation):
                ranks = [plan.batch(1, step, micro).each() for plan in plans]
                assert {len(rows) for rows in ranks} == {12 // accumulation // world_size}
                for rank, rows in enumerate(ranks):
                    assert {row.position % 12 % world_size for row in rows} == {rank}, (
                        "a rank reads its own lanes"
                    )
                batches.append(sorted(row for rows in ranks for row in rows))
        return batches

    expected = global_batches(1)
    positions = [row.position for batch in expected for row in batch]
    assert positions == list(range(len(positions)))
    for world_size in (2, 4):
        if 12 % (world_size * accumulation) == 0:
            assert global_batches(world_size) == expected


@given(st.lists(SIZES.filter(lambda sizes: sum(sizes) > 36), min_size=1, max_size=3), st.data())
@few
def test_resume_is_the_tail_of_the_order(sizes: list[list[int]], data: st.DataObject) -> None:
    weights = [data.draw(WEIGHTS) for _ in sizes]
    whole = plan_of(sizes, weights)
    batches = [whole.batch(2, step).each() for step in range(whole.steps_per_epoch)]
    start = data.draw(st.integers(0, whole.steps_per_epoch - 1))
    resumed = plan_of(sizes, weights)
    assert [resumed.batch(2, step).each() for step in range(start, whole.steps_per_epoch)] == batches[start:]


@given(st.lists(SIZES, min_size=2, max_size=4), st.integers(1, 12))
@few
def test_sources_run_evenly_through_the_epoch(sizes: list[list[int]], lanes: int) -> None:
    """In any part of the epoch each source has its share, up to one window of a lane and one unit per lane."""
    order, window = epoch(sizes, [Fraction(1)] * len(sizes), 0, lanes, 4), 4
    source = order.units(np.arange(order.total)).source
    for number, each in enumerate(sizes):
        ahead = np.cumsum(source == number) - sum(each) / order.total * np.arange(1, order.total + 1)
        assert np.abs(ahead).max() <= lanes * (window + len(sizes) + 1)


def test_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    def order(seed: int, number: int) -> list[tuple]:
        return dealt(epoch([[40, 50]], [Fraction(1)], number, seed=seed))

    np.random.seed(1)
    first = order(42, 0)
    np.random.seed(2)
    assert order(42, 0) == first
    units = {tuple(unit for _, _, unit in each) for each in (first, order(42, 1), order(43, 0), order(-1, 0))}
    assert len(units) == 4, "a negative seed is a seed too"


def test_order_is_the_one_that_checkpoints_were_made_with() -> None:
    """Changing the plan makes a resumed run repeat and skip samples: change it knowingly, and this line with it."""
    order = epoch([[60, 60], [30]], [Fraction(1), Fraction(1, 2)], 3, seed=42)
    assert [(source, unit) for source, _, unit in dealt(order)[:8]] == [
        (0, 67),
        (0, 9),
        (0, 93),
        (0, 3),
        (0, 60),
        (0, 114),
        (1, 10),
        (0, 92),
    ]


def test_a_million_shards_deep_only_a_window_is_held() -> None:
    """10,000 shards of 1,000 samples, opened in the middle: whole shards are the chunks, a lane is in few of them."""
    order = EpochOrder([bounds([1000] * 10_000)], [Fraction(1)], 0, 5, 64, 4096)
    middle = 64 * 4096 * 20
    lane = order.units(np.arange(middle, middle + 64 * 4096, 64)).unit
    assert len(set((lane // 1000).tolist())) <= 4096 // 1000 + 2
    assert len(set(lane.tolist())) == 4096
    held = sum(each.permutation.nbytes for each in order._windows.values())
    held += sum(
        turn._first.nbytes + turn._ends.nbytes + turn._starts.nbytes for turn in order._turns.values()
    )
    assert held < 2**20
    order.units(np.arange(middle, middle + 64 * 4096 * 5, 2053))
    assert len(order._windows) <= 128


def test_shuffling_mixes_a_large_split() -> None:
    sizes = [5000] * 60  # pairs of 1,000 media with 5 captions each
    units = epoch([sizes], [Fraction(1)], 0, 8, 4096).units(np.arange(256)).unit
    assert len(set((units // 5).tolist())) > 250, "captions of one image must hardly ever meet in a batch"
    assert CHUNKS_PER_LANE == 128 and len(set((units // 5000).tolist())) > 30, (
        "a batch draws from many shards"
    )


def test_substitutes_are_the_next_of_the_lane(manifest: Manifest) -> None:
    plan = TrainPlan(Mixture([Source(manifest, "train")]), 0, 8, 16, 1, 0)

    def pairs(*positions: int) -> list[int]:
        return plan.rows(0, np.asarray(positions)).pair.tolist()

    assert plan.substitutes(0, 3, 2).pair.tolist() == pairs(11, 19)
    assert plan.substitutes(0, 83, 2).pair.tolist() == pairs(3, 11), "around the end of the lane"
    wide = TrainPlan(Mixture([Source(manifest, "train")]), 0, 64, 16, 1, 0)
    plan = wide
    assert wide.substitutes(0, 40, 3).pair.tolist() == pairs(41, 42, 43), "a lane of one place"
    assert wide.substitutes(0, 3, 3).pair.tolist() == pairs(67, 4, 5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(lanes=4, world_size=8), "8 ranks cannot share 4 lanes"),
        (dict(lanes=64, world_size=6), r"data.lanes \(64\) is not a multiple of the number of ranks \(6\)"),
        (dict(global_batch_size=12, world_size=8), r"train.global_batch_size \(12\) is not a multiple"),
        (dict(global_batch_size=16, world_size=4, accumulation=3), r"ranks x train.accumulation \(4 x 3\)"),
        (dict(global_batch_size=128), "has 90 pairs .*fewer than one step"),
        (dict(rank=2, world_size=2), "Rank 2 is not one of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(manifest: Manifest, sizes: dict[str, int], message: str) -> None:
    settings = {"lanes": 64, "global_batch_size": 16, "world_size": 1, "rank": 0, **sizes}
    with pytest.raises(AuroraError, match=message):
        TrainPlan(Mixture([Source(manifest, "train")]), 0, **settings)


@pytest.mark.parametrize("world_size", range(1, 14))
def test_evaluation_shares_cover_everything_once(world_size: int) -> None:
    shares = [evaluation_share(11, world_size, rank) for rank in range(world_size)]
    assert sorted(place for share in shares for place in share) == list(range(11))
