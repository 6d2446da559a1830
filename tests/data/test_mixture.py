"""Sources and their mixture: which medium and annotation a unit is, and numbers that never mean two samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_data import written_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_ds.config import MixEntry
from aurora_ds.data.mixture import Mixture, Source, open_mixture
from aurora_ds.data.plan import TrainPlan
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config, to_yaml

COUNTS = st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=5).filter(
    lambda shards: any(map(sum, shards))
)


def rows(source: Source, units: np.ndarray, turn: int = 0) -> tuple[list[int], ...]:
    found = source.rows(np.full(len(units), turn), units, (1, 0))
    return tuple(column.tolist() for column in found)


@given(COUNTS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pairs_are_numbered_medium_by_medium(counts: list[list[int]]) -> None:
    source = Source(written_manifest(counts), "train")
    flat = [count for shard in counts for count in shard]
    expected = [(medium, which) for medium, count in enumerate(flat) for which in range(count)]
    shuffled = np.random.default_rng(0).permutation(len(expected))
    media, annotations, pairs = rows(source, shuffled)
    assert list(zip(media, annotations, strict=True)) == [expected[pair] for pair in shuffled]
    assert pairs == shuffled.tolist()
    assert np.diff(source.bounds).tolist() == [sum(shard) for shard in counts]


@given(COUNTS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_media_come_with_one_of_their_own_annotations(counts: list[list[int]]) -> None:
    source = Source(written_manifest(counts), "train", expand="media")
    flat = [count for shard in counts for count in shard]
    media, annotations, pairs = rows(source, np.arange(source.units), turn=4)
    assert media == [medium for medium, count in enumerate(flat) if count], "none without annotation"
    starts = np.cumsum([0, *flat])
    for medium, annotation, pair in zip(media, annotations, pairs, strict=True):
        assert 0 <= annotation < flat[medium] and pair == starts[medium] + annotation


def test_another_turn_draws_other_annotations() -> None:
    source = Source(written_manifest([[5] * 50]), "train", expand="media")
    units = np.arange(50)
    first, second = rows(source, units, 0)[1], rows(source, units, 1)[1]
    assert first == rows(source, units, 0)[1] and first != second
    assert set(first) == {0, 1, 2, 3, 4}


def test_numbers_and_keys_of_a_mixture_are_its_own(shards: Path, run_config) -> None:
    config = run_config(
        mix=[MixEntry(shards=str(shards)), MixEntry(shards=str(shards), split="test", weight=2.0)]
    )
    mixture = open_mixture(config)
    assert mixture.first_medium.tolist() == [0, 45, 56] and mixture.first_pair.tolist() == [0, 90, 111]
    assert mixture.key(0, "a") == "shards/train/a" and mixture.key(1, "a") == "shards/test/a"
    twice = Mixture([Source(mixture.sources[0].manifest, "train")] * 2)
    assert twice.key(0, "a") != twice.key(1, "a")
    assert open_mixture(run_config()).key(0, "a") == "a"


def test_the_fingerprint_tells_what_decides_the_order(shards: Path, run_config) -> None:
    def fingerprint(lanes: int = 64, window: int = 4096, **data: object) -> str:
        return TrainPlan(open_mixture(run_config(**data)), 42, lanes, 16, 1, 0, window=window).fingerprint()

    one, two = MixEntry(shards=str(shards)), MixEntry(shards=str(shards), split="test")
    heavy = MixEntry(shards=str(shards), split="test", weight=0.5)
    different = [
        fingerprint(),
        fingerprint(expand="media"),
        fingerprint(lanes=32),
        fingerprint(window=64),
        fingerprint(mix=[one, two]),
        fingerprint(mix=[two, one]),
        fingerprint(mix=[one, heavy]),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(mix=[one]) == fingerprint()


def test_a_source_without_annotations_is_refused(shards: Path, manifest) -> None:
    with pytest.raises(AuroraError, match="Split 'train' in .* has no questions to train on"):
        Source(manifest, "train", kind="questions")


def recipe(path: Path, data: str) -> str:
    path.write_text("data:\n" + data)
    return str(path)


def test_a_recipe_may_list_datasets(tmp_path: Path) -> None:
    text = "  shards: a\n  mix:\n    - {shards: a}\n    - {shards: b, split: extra, weight: 0.5}\n"
    config = load_config(recipe(tmp_path / "mix.yaml", text))
    assert [(each.shards, each.split, each.weight) for each in config.data.mix] == [
        ("a", "train", 1),
        ("b", "extra", 0.5),
    ]
    again = load_config(
        recipe(tmp_path / "again.yaml", to_yaml(config).partition("data:\n")[2].partition("train:\n")[0])
    )
    assert again.data == config.data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  mix: [{shards: a}]\n", "data.shards, whose data.eval_split is evaluated, is not set"),
        ("  shards: a\n  mix: [{shards: a, weigth: 2}]\n", "data.mix.*weigth"),
        ("  shards: a\n  mix: [{shards: a, weight: 0}]\n", "data.mix.*greater than 0"),
        ("  shards: a\n  mix: [{weight: 1}]\n", "data.mix.*shards"),
    ],
)
def test_a_wrong_mixture_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        load_config(recipe(tmp_path / "mix.yaml", text))
