"""Files of answers: every question once, the right types, and clear words where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.answer_file import check_submission, checked_answers

RIGHT = [{"question_id": 2, "answer": "yes"}, {"question_id": 1, "answer": ""}]


def test_a_right_file_is_taken(tmp_path: Path):
    (tmp_path / "answers.json").write_text(json.dumps(RIGHT))
    check_submission(tmp_path / "answers.json", [1, 2])
    assert checked_answers(tmp_path / "answers.json", [1, 2]) == {1: "", 2: "yes"}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (RIGHT[:1], r"1 question \(1\) without an answer"),
        ([*RIGHT, {"question_id": 3, "answer": "x"}], r"1 question \(3\) not in the ground truth"),
        ([*RIGHT, RIGHT[0]], r"1 question \(2\) answered more than once"),
        ([{"question_id": 1, "answer": 4}], "entry 0"),
        ([{"question_id": 1.0, "answer": "4"}], "entry 0"),
        (["yes"], "entry 0"),
        ({"1": "yes"}, "found dict"),
        ([], r"2 questions \(1, 2\) without an answer"),
        (
            [{"question_id": 1, "answer": "a", "score": 1}, RIGHT[0]],
            "entry 0: has .*server takes question_id and",
        ),
    ],
)
def test_what_the_server_would_refuse_is_found(results: object, message: str):
    with pytest.raises(AuroraError, match=message):
        check_submission(results, [1, 2])


def test_text_ids_are_answers_but_no_submission():
    results = [{"question_id": "q1", "answer": "yes"}]
    assert checked_answers(results, ["q1"]) == {"q1": "yes"}
    with pytest.raises(AuroraError, match="the server takes integers"):
        check_submission(results, ["q1"])


def test_a_question_asked_twice_is_refused():
    with pytest.raises(AuroraError, match=r"the ground truth has 1 question \(2\) more than once"):
        checked_answers(RIGHT, [1, 2, 2])


def test_a_file_that_is_cut_is_named(tmp_path: Path):
    (tmp_path / "answers.json").write_text('[{"question_id":')
    with pytest.raises(AuroraError, match="answers.json cannot be read as JSON"):
        check_submission(tmp_path / "answers.json", [1])
