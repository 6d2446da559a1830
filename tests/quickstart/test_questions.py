"""Questions about toy scenes: their answers are right, and nothing but the picture gives them away."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, vocabulary
from aurora_ds.quickstart.questions import (
    ANNOTATORS,
    PLACES,
    answer_list,
    language_vocabulary,
    sample_questions,
    write,
)


@pytest.fixture(scope="module")
def asked() -> list:
    """(scene, question) of 300 scenes of the target domain."""
    return [(scene, q) for scene, questions in sample_questions("target", "test", 300) for q in questions]


def test_the_answer_is_what_the_scene_says(asked: list) -> None:
    """Checked from the words, by another way than they were made."""
    for scene, question in asked:
        words = question.words.split()
        named = [g for g in scene.groups if {w for pair in KIND_NAMES[g.kind] for w in pair} & set(words)]
        coloured = [g for g in scene.groups if set(COLOUR_NAMES[g.colour]) & set(words)]
        if question.kind == "colour":
            assert {COLOUR_NAMES[g.colour][0] for g in named} == {question.truth}
        elif question.kind == "thing":
            assert {g.kind for g in coloured} == {question.truth}
        elif question.kind == "number":
            assert [("one", "two", "three")[g.count - 1] for g in named] == [question.truth]
        elif question.kind == "place":
            assert PLACES[scene.setting][0] == question.truth
        elif question.kind == "exists":
            assert any(g in coloured for g in named) == (question.truth == "yes")
        else:
            across, down = abs(named[0].x - named[1].x), abs(named[0].y - named[1].y)
            assert len(named) == 2 and (across > down) == (question.truth == "across")


def test_no_answer_of_a_kind_is_much_likelier_than_its_others(asked: list) -> None:
    given = Counter((question.kind, question.truth) for _, question in asked)
    for kind in ("colour", "thing", "number", "exists", "row"):
        counts = [count for (own, _), count in given.items() if own == kind]
        assert max(counts) <= 1.25 * sum(counts) / len(counts), kind


def test_most_annotators_are_right_and_some_are_not(asked: list) -> None:
    usual = {rare: pair[0] for pair in COLOUR_NAMES.values() for rare in pair}
    colours = [q for _, q in asked if q.kind == "colour"]
    right = [usual[answer] == q.truth for q in colours for answer in q.answers]
    assert len(right) == ANNOTATORS * len(colours) and 0.85 < sum(right) / len(right) < 0.99
    assert {answer for q in colours for answer in q.answers} > {"red", "crimson"}


def test_the_words_are_the_captions_words_first_and_hold_every_question(asked: list) -> None:
    words = language_vocabulary()
    assert words[: len(vocabulary())] == vocabulary(), "ids of the retrieval backbone stay"
    said = {word for _, q in asked for text in (q.words, *q.answers) for word in text.split()}
    assert said <= set(words) and {a for _, q in asked for a in q.answers} <= set(answer_list())


def test_a_split_is_a_function_of_its_arguments() -> None:
    assert sample_questions("source", "val", 5) == sample_questions("source", "val", 5)
    assert sample_questions("source", "val", 5) != sample_questions("target", "val", 5)
    with pytest.raises(AuroraError, match="its domains are: source, target"):
        sample_questions("elsewhere", "val", 5)


def test_what_is_written_converts_with_its_weights(tmp_path: Path) -> None:
    counts = {"train": 4, "test": 3}
    assert write(tmp_path / "raw", counts=counts) == {"train": 12, "test": 9}
    results = convert("questions", tmp_path / "raw", tmp_path / "shards")
    assert results["splits"]["train"]["samples"] == 4
    assert json.loads((tmp_path / "shards" / "answer_list.json").read_text()) == answer_list()
    with pytest.raises(AuroraError, match="already exists"):
        write(tmp_path / "raw", counts=counts)
