"""Sentences about toy pictures: labels are true, and words alone say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, SETTING_NAMES
from aurora_ds.quickstart.hypotheses import LABELS, sample_hypotheses, write
from aurora_ds.quickstart.questions import language_vocabulary
from aurora_ds.quickstart.scenes import HIDDEN


def test_labels_are_what_the_scenes_say() -> None:
    """Checked from the words, by another way than they were made."""
    for one in sample_hypotheses("target", "train", 300):
        words = set(one.sentence.split())
        things = [g for g in one.scene.groups if words & {singular for singular, _ in KIND_NAMES[g.kind]}]
        place = any(name in one.sentence for name in SETTING_NAMES[one.scene.setting])
        if not things:
            assert one.label == "neutral"
            continue
        (thing,) = things
        claimed = bool(words & set(COLOUR_NAMES[thing.colour])) if one.claim == "colour" else place
        assert one.label == ("entailment" if claimed else "contradiction") and thing.count == 1


def test_each_sentence_is_said_with_each_label() -> None:
    found = sample_hypotheses("target", "test", 90)
    for first in range(0, 90, 3):
        three = found[first : first + 3]
        assert len({each.sentence for each in three}) == 1
        assert tuple(each.label for each in three) == LABELS
        assert set(three[0].sentence.split()) <= set(language_vocabulary())
    assert {each.claim for each in found} == {"colour", "place"}


def test_what_is_claimed_is_often_there_of_something_else() -> None:
    """So that neither a colour nor a place in the picture decides."""
    found = sample_hypotheses("target", "train", 600)
    for claim in ("colour", "place"):
        open_ones = [each for each in found if (each.claim, each.label) == (claim, "neutral")]
        elsewhere = 0
        for each in open_ones:
            names = (
                [name for group in each.scene.groups for name in COLOUR_NAMES[group.colour]]
                if claim == "colour"
                else SETTING_NAMES[each.scene.setting]
            )
            elsewhere += any(f" {name} " in f" {each.sentence} " for name in names)
        assert 0.4 < elsewhere / len(open_ones) < 0.7


def test_every_thing_can_be_seen() -> None:
    for each in sample_hypotheses("target", "val", 150):
        assert not {(group.colour, each.scene.setting) for group in each.scene.groups} & HIDDEN
        assert len({(group.kind, group.colour) for group in each.scene.groups}) == len(each.scene.groups)


def test_what_is_written_converts_with_its_identifiers(tmp_path: Path) -> None:
    assert write(tmp_path / "raw", counts={"train": 6, "test": 3}) == {"train": 6, "test": 3}
    assert convert("statements", tmp_path / "raw", tmp_path / "shards")["splits"]["train"]["samples"] == 6
    with pytest.raises(AuroraError, match="already exists"):
        write(tmp_path / "raw", counts={"test": 2})
