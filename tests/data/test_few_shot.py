"""data.shots: a few media of each training split, drawn by the seed; the laws of the reading plan hold for them too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawn_data import written_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_ds.config import MixEntry, RunConfig
from aurora_ds.data import loader
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.mixture import Mixture, Source, open_mixture
from aurora_ds.data.plan import TrainPlan
from aurora_ds.errors import AuroraError

Configs = Callable[..., RunConfig]
COUNTS = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=5).filter(
    lambda shards: any(map(sum, shards))
)
few = settings(max_examples=60, deadline=None, derandomize=True)


def every_row(source: Source, turn: int = 0) -> list[tuple[int, int, int]]:
    """(medium, annotation, pair) of each unit."""
    found = source.rows(np.full(source.units, turn), np.arange(source.units), (1, 0))
    return list(zip(*(column.tolist() for column in found), strict=True))


@given(COUNTS, st.data(), st.sampled_from(["pairs", "media"]), st.integers(-3, 3))
@few
def test_shots_are_so_many_media_with_all_their_pairs(
    counts: list[list[int]], data: st.DataObject, expand: str, seed: int
) -> None:
    flat = [count for shard in counts for count in shard]
    annotated = [medium for medium, count in enumerate(flat) if count]
    shots = data.draw(st.integers(1, len(annotated)))
    source = Source(written_manifest(counts), "train", 1.0, "captions", expand, shots, seed)
    rows, starts = every_row(source), np.cumsum([0, *flat])
    chosen = sorted({medium for medium, _, _ in rows})
    assert len(chosen) == shots and set(chosen) <= set(annotated)
    assert all(pair == starts[medium] + which and which < flat[medium] for medium, which, pair in rows)
    if expand == "pairs":
        assert [row[:2] for row in rows] == [(medium, n) for medium in chosen for n in range(flat[medium])]
    else:
        assert [row[0] for row in rows] == chosen
    shards = np.searchsorted(np.cumsum([len(shard) for shard in counts]), [row[0] for row in rows], "right")
    assert np.diff(source.bounds).tolist() == np.bincount(shards, minlength=len(counts)).tolist()


@given(COUNTS, st.integers(0, 5))
@few
def test_more_shots_are_the_same_and_more_and_all_are_the_split(counts: list[list[int]], seed: int) -> None:
    manifest = written_manifest(counts)
    most = sum(count > 0 for shard in counts for count in shard)
    drawn = [
        {row[0] for row in every_row(Source(manifest, "train", shots=shots, seed=seed))}
        for shots in range(1, most + 1)
    ]
    assert all(fewer < more for fewer, more in zip(drawn, drawn[1:], strict=False))
    assert every_row(Source(manifest, "train", shots=most, seed=seed)) == every_row(Source(manifest, "train"))


@given(COUNTS, st.data(), st.sampled_from(["pairs", "media"]), st.sampled_from([1, 2, 3]))
@few
def test_the_laws_of_the_plan_hold(
    counts: list[list[int]], data: st.DataObject, expand: str, accumulation: int
) -> None:
    """Each unit once an epoch, equal steps and the same global batches for every world size, resumable anywhere."""
    manifest = written_manifest([*counts, [1] * 12])
    media = sum(count > 0 for shard in counts for count in shard) + 12
    shots = data.draw(st.integers(12, media))

    def plans(world_size: int) -> list[TrainPlan]:
        source = Source(manifest, "train", 1.0, "captions", expand, shots, 5)
        sizes = {"lanes": 12, "global_batch_size": 12, "world_size": world_size, "window": 10}
        return [
            TrainPlan(Mixture([source]), 5, rank=rank, accumulation=accumulation, **sizes)
            for rank in range(world_size)
        ]

    def batches(world_size: int, epoch: int, start: int = 0) -> list[list[tuple]]:
        ranks = plans(world_size)
        assert len({plan.steps_per_epoch for plan in ranks}) == 1
        return [
            sorted(row for plan in ranks for row in plan.batch(epoch, step, micro).each())
            for step in range(start, ranks[0].steps_per_epoch)
            for micro in range(accumulation)
        ]

    whole = batches(1, 1)
    seen = Counter((row.medium, row.annotation) for batch in whole for row in batch)
    units = plans(1)[0].mixture.sources[0].units
    assert set(seen.values()) == {1} and len(seen) == units - units % 12
    for world_size in (2, 4):
        if 12 % (world_size * accumulation) == 0:
            assert batches(world_size, 1) == whole
    start = data.draw(st.integers(0, len(whole) // accumulation - 1))
    assert batches(1, 1, start) == whole[start * accumulation :]


def test_the_seed_draws_and_the_epoch_does_not(run_config: Configs, tokenizer) -> None:
    def media(seed: int, epoch: int) -> set[int]:
        config = run_config(global_batch_size=8, shots=8, expand="media")
        config.seed = seed
        (batch,) = loader.train_loader(config, tokenizer, 1, 0, epoch)
        return set(batch["media_index"].tolist())

    assert len(media(1, 0)) == 8 and media(1, 0) == media(1, 1) != media(2, 0)


def test_samples_are_those_of_a_run_on_everything(run_config: Configs, tokenizer, manifest: Manifest) -> None:
    """Their numbers are the split's own, so that a figure of one run can be looked up in another."""
    for batch in loader.train_loader(run_config(global_batch_size=4, shots=6), tokenizer, 2, 1, 3):
        owners, _ = manifest.locate_pairs("train", batch["sample_index"].numpy())
        assert owners.tolist() == batch["media_index"].tolist()
        assert batch["keys"] == [f"train-{medium:07d}-{medium:03d}" for medium in owners]


def test_every_split_of_a_mixture_has_its_shots(run_config: Configs, shards: Path) -> None:
    mix = [MixEntry(shards=str(shards)), MixEntry(shards=str(shards), split="test", weight=3.0)]
    mixture = open_mixture(run_config(mix=mix, shots=5, expand="media"))
    assert [source.units for source in mixture.sources] == [5, 5]
    assert mixture.first_medium.tolist() == [0, 45, 56], "numbered as ever"
    alone = open_mixture(run_config(shots=5, expand="media"))
    assert every_row(mixture.sources[0]) == every_row(alone.sources[0]), "another dataset changes nothing"


def test_the_fingerprint_tells_the_shots_apart(run_config: Configs) -> None:
    prints = {
        TrainPlan(open_mixture(run_config(shots=shots)), seed, 64, 4, 1, 0).fingerprint()
        for shots, seed in ((None, 1), (8, 1), (9, 1), (8, 2))
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shots": 46}, r"data.shots asks for 46 media of split 'train' in .*, which has 45 with captions"),
        (
            {"shots": 3, "expand": "media"},
            r"with 3 shots \(data.shots\) has 3 media an epoch, fewer than one step",
        ),
    ],
)
def test_shots_that_do_not_fit_are_refused(run_config: Configs, data: dict, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        loader.steps_per_epoch(run_config(**data), 1)


def test_evaluation_sees_the_whole_split(run_config: Configs) -> None:
    batches = loader.eval_image_loader(run_config(shots=2), "test", None, 1, 0, 4)
    assert sorted(n for batch in batches for n in batch["media_index"].tolist()) == list(range(11))
