"""Accuracy of answers to questions about clips by exact equality: MSRVTT-QA and MSVD-QA (Xu et al., 2017).

Answers are compared as they are: the datasets' answers are single lower-case words, and papers normalise nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.answer_file import checked_answers
from aurora_ds.tasks.metrics.json_source import Identifier
from aurora_ds.tasks.metrics.vqa_accuracy import mean_by

TYPES = ("what", "who", "how", "when", "where")


@dataclass(frozen=True)
class ClipQuestion:
    """A question about a clip with its one right answer."""

    question_id: Identifier
    question: str
    answer: str


def question_type(question: str) -> str:
    """The question's first word where it is one of the datasets' five types, else `other`."""
    first = question.lower().split(maxsplit=1)
    return first[0] if first and first[0] in TYPES else "other"


def videoqa_accuracy(
    results: Path | str | Sequence[Mapping[str, Any]], questions: Iterable[ClipQuestion]
) -> dict[str, Any]:
    """Share of answers that equal the right one, in percent.

    Args:
        results: a file or the list in it: `[{"question_id", "answer"}]`. questions: what to judge, each id once.
    Returns: {"questions": how many, "right": how many, "overall": percent, "per_question_type": {type: percent},
        "questions_per_type": {type: how many}}; only types that occur, `other` last.
    Raises:
        AuroraError: an entry has another layout; a question is missing, unknown or there twice; there is no question.
    """
    asked = list(questions)
    answers = checked_answers(results, [each.question_id for each in asked])
    if not asked:
        raise AuroraError(
            "there is no question to judge: the ground truth is empty. Choose a split with answers."
        )
    right = {each.question_id: float(answers[each.question_id] == each.answer) for each in asked}
    types = {each.question_id: question_type(each.question) for each in asked}
    means = mean_by(types, right)
    occurring = [name for name in (*TYPES, "other") if name in means]
    return {
        "questions": len(asked),
        "right": int(sum(right.values())),
        "overall": 100 * sum(right.values()) / len(asked),
        "per_question_type": {name: 100 * means[name] for name in occurring},
        "questions_per_type": {name: sum(each == name for each in types.values()) for name in occurring},
    }


def recorded_clip_questions(records: Iterable[Mapping[str, Any]]) -> list[ClipQuestion]:
    """Questions of shard records, `{"questions": [{"question_id", "question", "answers": [{"answer", "weight"}]}]}`.

    Raises:
        AuroraError: a question has no answer, or several: then exact match is not how its dataset is judged.
    """
    found = []
    for record in records:
        for each in record.get("questions", []):
            answers = each.get("answers") or []
            if len(answers) != 1:
                raise AuroraError(
                    f"question {each['question_id']} has {len(answers)} answers; exact match needs one. Choose a "
                    "split with answers, or judge by VQA accuracy where ten annotators answered."
                )
            found.append(ClipQuestion(each["question_id"], each["question"], answers[0]["answer"]))
    return found
