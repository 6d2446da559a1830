"""Exact-match accuracy of answers about clips, by question type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.videoqa_accuracy import (
    ClipQuestion,
    question_type,
    recorded_clip_questions,
    videoqa_accuracy,
)

QUESTIONS = [
    ClipQuestion(1, "what is a man doing?", "cook"),
    ClipQuestion(2, "What plays?", "music"),
    ClipQuestion(3, "who sings?", "girl"),
    ClipQuestion(4, "is it red?", "yes"),
]


def results(*answers: str) -> list[dict]:
    return [{"question_id": number + 1, "answer": answer} for number, answer in enumerate(answers)]


def test_accuracy_is_the_share_of_equal_answers_by_type():
    assert videoqa_accuracy(results("cook", "song", "girl", "no"), QUESTIONS) == {
        "questions": 4,
        "right": 2,
        "overall": 50.0,
        "per_question_type": {"what": 50.0, "who": 100.0, "other": 0.0},
        "questions_per_type": {"what": 2, "who": 1, "other": 1},
    }


def test_equal_means_equal():
    assert videoqa_accuracy(results("Cook", "music ", "girls", "yes"), QUESTIONS)["right"] == 1


@pytest.mark.parametrize(
    ("question", "kind"),
    [("how many?", "how"), ("When is it", "when"), ("where", "where"), ("whose dog", "other"), ("", "other")],
)
def test_the_first_word_is_the_type(question: str, kind: str):
    assert question_type(question) == kind


def test_the_types_of_the_500_msrvtt_questions(shared: Path):
    entries = json.loads((shared / "data/annotations/msrvtt_qa/val_qa.REBUILT_500.json").read_text())
    questions = [ClipQuestion(each["id"], each["question"], each["answer"]) for each in entries]
    found = videoqa_accuracy(
        [{"question_id": each["id"], "answer": each["answer"]} for each in entries], questions
    )
    assert found["overall"] == 100.0 and sum(found["questions_per_type"].values()) == 500
    assert "other" not in found["questions_per_type"]


def test_the_published_predictions_have_the_published_accuracy(shared: Path):
    path = shared / "data/metrics/msvd_qa_hqga/HQGA-msvd-test-predictions.json"
    if not path.is_file():
        pytest.skip(f"{path.parent.name}/{path.name} is not in this reference folder")
    predictions = json.loads(path.read_text())
    # class 0 stands for every answer outside the list: as an answer it is right nowhere
    given = [
        {"question_id": name, "answer": str(each["prediction"] or "none")}
        for name, each in predictions.items()
    ]
    asked = [ClipQuestion(name, "what", str(each["answer"])) for name, each in predictions.items()]
    found = videoqa_accuracy(given, asked)
    assert (found["right"], found["questions"]) == (5414, 13157)
    assert round(found["overall"], 1) == 41.1 and found["overall"] == pytest.approx(41.1492, abs=1e-4)


def test_shard_records_give_the_questions():
    record = {
        "questions": [
            {"question_id": 9, "question": "who?", "answers": [{"answer": "man", "weight": 1.0}]},
        ]
    }
    assert recorded_clip_questions([record, {"captions": []}]) == [ClipQuestion(9, "who?", "man")]


@pytest.mark.parametrize(
    "answers", [[], None, [{"answer": "a", "weight": 0.5}, {"answer": "b", "weight": 0.5}]]
)
def test_a_question_without_its_one_answer_is_refused(answers: object):
    with pytest.raises(AuroraError, match="question 9 has"):
        recorded_clip_questions([{"questions": [{"question_id": 9, "question": "who?", "answers": answers}]}])


def test_missing_answers_and_an_empty_split_are_refused():
    with pytest.raises(AuroraError, match=r"1 question \(4\) without an answer"):
        videoqa_accuracy(results("cook", "song", "girl"), QUESTIONS)
    with pytest.raises(AuroraError, match="no question to judge"):
        videoqa_accuracy([], [])
