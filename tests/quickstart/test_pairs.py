"""Pairs of toy pictures: statements are true or false as labelled, and their words alone say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES
from aurora_ds.quickstart.pairs import sample_pairs, write
from aurora_ds.quickstart.questions import language_vocabulary


def test_labels_are_what_the_scenes_say() -> None:
    """Checked from the words, by another way than they were made."""
    for pair in sample_pairs("target", "train", 200):
        words = set(pair.sentence.replace("picture to the", "").split())
        left, right = (
            any(
                set(COLOUR_NAMES[g.colour]) & words and {w for w, _ in KIND_NAMES[g.kind]} & words
                for g in s.groups
            )
            for s in (pair.left, pair.right)
        )
        if "left" in words:
            assert pair.truth == left != right
        elif "right" in words:
            assert pair.truth == right != left
        elif "both" in words or "each" in words:
            assert pair.truth == (left and right) and (left or right)
        else:
            assert pair.truth == (left != right)


def test_every_statement_is_made_truly_and_falsely() -> None:
    pairs = sample_pairs("target", "test", 100)
    for true, false in zip(pairs[::2], pairs[1::2], strict=True):
        assert (true.truth, false.truth) == (True, False) and true.sentence == false.sentence
        assert (true.left, true.right) != (false.left, false.right)
        assert set(true.sentence.split()) <= set(language_vocabulary())


def test_what_is_written_converts_with_its_identifiers(tmp_path: Path) -> None:
    assert write(tmp_path / "raw", counts={"train": 4, "test": 2}) == {"train": 4, "test": 2}
    assert convert("pairs", tmp_path / "raw", tmp_path / "shards")["splits"]["train"]["samples"] == 4
    with pytest.raises(AuroraError, match="already exists"):
        write(tmp_path / "raw", counts={"test": 2})
