"""VQA accuracy equals the official program's, from annotation files and from shard records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.vqa_accuracy import (
    Question,
    annotated_questions,
    answer_accuracy,
    normalise_answer,
    recorded_questions,
    reference_answers,
    vqa_accuracy,
)

SETS = ("one_annotator", "majority_mangled", "always_yes")


@pytest.fixture(scope="module")
def questions(repository: Path) -> list[dict]:
    return json.loads((repository / "tests/goldens/metrics/vqa_questions.json").read_text())


def test_recorded_answers_have_their_official_normal_form(repository: Path):
    recorded = json.loads((repository / "tests/goldens/metrics/vqa_answers.json").read_text())
    assert [[raw, normalise_answer(raw)] for raw, _ in recorded] == recorded


@pytest.mark.parametrize("which", SETS)
def test_recorded_questions_have_their_official_accuracy(questions: list[dict], which: str):
    for each in questions:
        answer, known = each["results"][which]
        assert round(100 * answer_accuracy(answer, each["answers"]), 2) == known, each


def test_all_normalised_answers_equal_the_official_ones(shared: Path):
    path = shared / "data/metrics/vqa_eval/answer_normalisation_oracle.json"
    pairs = json.loads(path.read_text())["pairs"]
    assert len(pairs) == 1539
    assert {raw: normalise_answer(raw) for raw in pairs} == pairs


@pytest.mark.parametrize("which", SETS)
def test_all_accuracies_of_1000_questions_equal_the_official_ones(shared: Path, which: str):
    annotations = shared / "data/annotations/vqav2/v2_mscoco_train2014_annotations.SUBSET_1000.json"
    folder = shared / "data/metrics/vqa_eval"
    known = json.loads((folder / "known_scores.json").read_text())["sets"][which]
    found = vqa_accuracy(folder / f"results_{which}.json", annotated_questions(annotations))
    assert round(found["overall"], 2) == known["overall"]
    for ours, theirs in (
        ("per_answer_type", "perAnswerType"),
        ("per_question_type", "perQuestionType"),
        ("per_question", "evalQA"),
    ):
        assert {str(name): round(value, 2) for name, value in found[ours].items()} == known[theirs]


def test_unanimous_answers_are_compared_as_they_are():
    assert answer_accuracy("The Dog.", ["dog"] * 10) == 0.0
    assert answer_accuracy("The Dog.", ["dog"] * 9 + ["cat"]) == 1.0


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_accuracy_leaves_each_annotator_out_in_turn(agreeing: int, accuracy: float):
    others = [f"other {number}" for number in range(10 - agreeing)]
    assert answer_accuracy("cat", ["cat"] * agreeing + others) == pytest.approx(accuracy)


def records_of(questions: list[dict]) -> list[dict]:
    """As shards hold them: answers once, most frequent first, with their share."""
    return [
        {
            "dataset": "vqa",
            "questions": [
                {
                    "question_id": each["question_id"],
                    "question": "?",
                    "question_type": each["question_type"],
                    "answer_type": each["answer_type"],
                    "answers": [
                        {"answer": answer, "weight": count / 10}
                        for answer, count in Counter(each["answers"]).most_common()
                    ],
                }
            ],
        }
        for each in questions
    ]


def test_shard_records_give_back_the_ten_answers(questions: list[dict]):
    for question, each in zip(recorded_questions(records_of(questions)), questions, strict=True):
        assert Counter(question.answers) == Counter(each["answers"])
        assert question.question_type == each["question_type"]


@pytest.mark.parametrize("which", SETS)
def test_shard_records_are_judged_as_the_annotations_are(questions: list[dict], which: str):
    results = [
        {"question_id": each["question_id"], "answer": each["results"][which][0]} for each in questions
    ]
    direct = [
        Question(each["question_id"], tuple(each["answers"]), each["question_type"], each["answer_type"])
        for each in questions
    ]
    ours, theirs = (
        vqa_accuracy(results, recorded_questions(records_of(questions))),
        vqa_accuracy(results, direct),
    )
    assert ours["per_question"] == pytest.approx(theirs["per_question"])
    assert ours["per_answer_type"] == pytest.approx(theirs["per_answer_type"])
    assert ours["overall"] == pytest.approx(theirs["overall"])


def test_a_share_that_is_no_exact_float_is_still_a_count():
    weights = [0.1 + 0.2, 0.7000000000000001]
    found = reference_answers(
        [{"answer": "a", "weight": weights[0]}, {"answer": "b", "weight": weights[1]}], "q"
    )
    assert found == ("a",) * 3 + ("b",) * 7


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "question 5 has no answers"),
        ([{"answer": "a", "weight": 0.25}], "the weight of 'a' is 0.25"),
        ([{"answer": "a", "weight": 0.0}], "the weight of 'a' is 0.0"),
        ([{"answer": "a"}], "the weight of 'a' is None"),
        ([{"answer": "a", "weight": 0.9}], "stand for 9 annotators"),
        ([{"answer": "a", "weight": 1.0}, {"answer": "b", "weight": 0.1}], "stand for 11 annotators"),
    ],
)
def test_answers_that_are_not_of_ten_annotators_are_refused(answers: list[dict], message: str):
    with pytest.raises(AuroraError, match=message):
        recorded_questions([{"questions": [{"question_id": 5, "question": "?", "answers": answers}]}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no list of annotations"),
        ({"annotations": [{"question_id": 1}]}, "annotation 0 lacks 'answers'"),
        ({"annotations": [{"question_id": 1, "answers": []}]}, "annotation 0 has no answers"),
        ({"annotations": ["x"]}, "annotation 0 lacks"),
    ],
)
def test_an_annotation_file_of_another_layout_is_refused(content: object, message: str):
    with pytest.raises(AuroraError, match=message):
        annotated_questions(content)


def test_nothing_to_judge_is_an_error_and_not_a_score():
    with pytest.raises(AuroraError, match="no question to judge"):
        vqa_accuracy([], [])


def test_questions_without_a_type_are_in_no_break_down():
    found = vqa_accuracy(
        [{"question_id": 1, "answer": "cat"}, {"question_id": "b", "answer": "dog"}],
        [Question(1, ("cat",) * 10, "what", "other"), Question("b", ("cat",) * 10)],
    )
    assert found["overall"] == 50.0 and found["per_question_type"] == {"what": 100.0}
