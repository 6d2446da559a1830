"""Moving toy scenes: questions are answered rightly, and those about motion by no single frame."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.clips import ask, caption, sample_split, write
from aurora_ds.quickstart.questions import answer_list, language_vocabulary
from aurora_ds.quickstart.world import DOMAINS

LOOK, PHRASING = DOMAINS["target"].look, DOMAINS["target"].phrasing


def test_twins_share_their_middle_and_differ_at_the_ends() -> None:
    clip, twin = sample_split("target", "train", 2)
    assert replace(clip, way=twin.way) == twin and clip.way != twin.way
    one, other = clip.frames(LOOK, 3).astype(int), twin.frames(LOOK, 3).astype(int)
    assert np.array_equal(one[1], other[1])
    assert np.abs(one[0] - other[0]).max() > 60 and np.abs(one[0] - one[2]).max() > 60


def test_only_the_mover_moves() -> None:
    for clip in sample_split("source", "test", 10):
        frames = clip.frames(DOMAINS["source"].look).astype(int)
        moved = np.abs(frames - frames[:1]).max((0, 3)) > 60
        row, column = int(clip.rest.y * 60), int(clip.rest.x * 60)
        assert moved.any() and not moved[row - 3 : row + 3, column - 3 : column + 3].any()


def test_answers_about_motion_are_right_and_even() -> None:
    generator, given = np.random.default_rng(0), Counter()
    for clip in sample_split("target", "train", 200):
        for question in ask(clip, 4, PHRASING, generator, given):
            if question.kind == "how":
                assert question.answer == clip.way
            elif question.kind == "does":
                assert (question.answer == "yes") == (clip.way in question.words.split())
    assert (
        given["how", "across"] == given["how", "down"] == given["does", "yes"] == given["does", "no"] == 100
    )
    assert sum(given.values()) == 800


def test_every_word_is_known() -> None:
    generator, words = np.random.default_rng(0), set(language_vocabulary())
    for clip in sample_split("target", "train", 60):
        questions = ask(clip, 4, PHRASING, generator, Counter())
        assert {word for q in questions for word in q.words.split()} <= words
        assert {q.answer for q in questions} <= set(answer_list())
        assert set(caption(clip, PHRASING, generator).split()) <= words


def test_what_is_written_converts_as_captions_and_as_questions(tmp_path: Path) -> None:
    assert write(tmp_path / "raw", counts={"train": 2, "test": 2}) == {"train": 2, "test": 2}
    captions = convert("clips", tmp_path / "raw", tmp_path / "captions")
    questions = convert("clip_questions", tmp_path / "raw", tmp_path / "questions")
    assert captions["splits"]["test"]["samples"] == questions["splits"]["test"]["samples"] == 2
    with pytest.raises(AuroraError, match="already exists"):
        write(tmp_path / "raw", counts={"test": 2})
