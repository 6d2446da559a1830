"""Pairs of toy pictures: statements are true or false as labelled, and their words alone say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, SETTING_NAMES
from aurora_ds.quickstart.pairs import sample_pairs, write
from aurora_ds.quickstart.questions import language_vocabulary
from aurora_ds.quickstart.scenes import Scene


def test_labels_are_what_the_scenes_say() -> None:
    """Checked from the words, by another way than they were made."""
    for pair in sample_pairs("target", "train", 200):
        words = set(pair.sentence.split())

        def fits(scene: Scene, words: set[str] = words, sentence: str = pair.sentence) -> bool:
            looks = ((COLOUR_NAMES[g.colour], [name for name, _ in KIND_NAMES[g.kind]]) for g in scene.groups)
            thing = any(words & set(colours) and words & set(kinds) for colours, kinds in looks)
            return thing or any(name in sentence for name in SETTING_NAMES[scene.setting])

        first, second = fits(pair.first), fits(pair.second)
        if words & {"both", "each"}:
            assert pair.truth == (first and second) and (first or second)
        else:
            assert pair.truth == (first != second)


def test_every_statement_is_made_truly_and_falsely() -> None:
    pairs = sample_pairs("target", "test", 100)
    for true, false in zip(pairs[::2], pairs[1::2], strict=True):
        assert (true.truth, false.truth) == (True, False) and true.sentence == false.sentence
        assert (true.first, true.second) != (false.first, false.second)
        assert set(true.sentence.split()) <= set(language_vocabulary())


def test_what_is_written_converts_with_its_identifiers(tmp_path: Path) -> None:
    assert write(tmp_path / "raw", counts={"train": 4, "test": 2}) == {"train": 4, "test": 2}
    assert convert("pairs", tmp_path / "raw", tmp_path / "shards")["splits"]["train"]["samples"] == 4
    with pytest.raises(AuroraError, match="already exists"):
        write(tmp_path / "raw", counts={"test": 2})
