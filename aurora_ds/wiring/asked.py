"""The questions of a split: what is asked about which medium, the right answers, and how good given ones are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aurora_ds.data.questions import check_answers
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.answer_file import check_submission, checked_answers
from aurora_ds.tasks.metrics.json_source import Identifier, is_identifier
from aurora_ds.tasks.metrics.videoqa_accuracy import ClipQuestion, videoqa_accuracy
from aurora_ds.tasks.metrics.vqa_accuracy import Question, reference_answers, vqa_accuracy

Accuracy = Literal["vqa", "exact"]


@dataclass(frozen=True)
class Asked:
    """A question about medium number `medium`, of sample `key`. `references`: the answers of ten people (accuracy vqa),
    the only right one (exact), or none: a test split. `words`: what stands behind it, of its image."""

    medium: int
    key: str
    identity: Identifier
    text: str
    references: tuple[str, ...]
    question_type: str | None
    answer_type: str | None
    words: tuple[str, ...] = ()

    @property
    def known(self) -> str | None:
        """The answer that most people gave."""
        return Counter(self.references).most_common(1)[0][0] if self.references else None


def asked_questions(
    records: Sequence[tuple[str, Mapping[str, Any]]],
    how: Accuracy,
    words: Callable[[Mapping[str, Any]], Sequence[str]] = lambda question: (),
) -> list[Asked]:
    """The questions of (key, record) of media 0, 1, … in their order. `words`: those of a question's image, if any.

    A split whose questions have no ids (own data) has them numbered from 0. Raises AuroraError: no questions, ids that
    are missing in part or there twice, answers that are missing in part or are not what `how` judges by.
    """
    entries = [
        (medium, key, _checked(each, key))
        for medium, (key, record) in enumerate(records)
        for each in record.get("questions") or []
    ]
    if not entries:
        raise AuroraError(
            "There are no questions in what data.eval_split and evaluate.limit choose. `aurora-ds shards inspect DIR` "
            "shows which splits have some."
        )
    numbered = not any("question_id" in each for _, _, each in entries)
    judged = any(each.get("answers") for _, _, each in entries)
    found: list[Asked] = []
    first: dict[Identifier, str] = {}
    for number, (medium, key, each) in enumerate(entries):
        identity = number if numbered else each.get("question_id")
        where = f"Question {identity!r} of sample {key}"
        if not is_identifier(identity):
            raise AuroraError(
                f"{where} ({each['question']!r}): its question_id must be a number or a text. Correct the annotations "
                "and convert them again."
            )
        if identity in first:
            raise AuroraError(
                f"Question id {identity!r} is there twice, in samples {first[identity]} and {key}: answers could not "
                "be told apart. Give each question of a split an id of its own and convert the annotations again."
            )
        first[identity] = key
        references = _references(each, where, how) if judged else ()
        found.append(
            Asked(
                medium,
                key,
                identity,
                each["question"],
                references,
                each.get("question_type"),
                each.get("answer_type"),
                tuple(words(each)),
            )
        )
    return found


def _checked(entry: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("question"), str):
        raise AuroraError(
            f"Sample {key} has a question without text. Correct the annotations and convert them again."
        )
    return entry


def _references(entry: Mapping[str, Any], where: str, how: Accuracy) -> tuple[str, ...]:
    answers = entry.get("answers") or []
    check_answers(answers, where)
    if not answers:
        raise AuroraError(
            f"{where} has no answers, but other questions of the split have: a metric over a part of them would mean "
            "nothing. Convert the annotations again, with all answers or without any."
        )
    if how == "vqa":
        try:
            return reference_answers(answers, where)
        except AuroraError as error:
            raise AuroraError(
                f"{error} Where each question has one answer, set vqa.accuracy=exact."
            ) from error
    if len(answers) != 1:
        raise AuroraError(
            f"{where} has {len(answers)} different answers; vqa.accuracy=exact compares with one. Where ten people "
            "answered, set vqa.accuracy=vqa; else convert the annotations again with the one answer that counts."
        )
    return (answers[0]["answer"],)


def submission(asked: Sequence[Asked], answers: Sequence[str]) -> list[dict[str, Any]]:
    """The file of VQA's evaluation server, in the order of the questions, its layout checked; with ids that are texts,
    which that server does not know, checked but for this."""
    content = [
        {"question_id": each.identity, "answer": answer} for each, answer in zip(asked, answers, strict=True)
    ]
    identities = [each.identity for each in asked]
    if all(isinstance(each, int) for each in identities):
        check_submission(content, identities)
    else:
        checked_answers(content, identities)
    return content


@dataclass(frozen=True)
class Judgement:
    """`metrics`: accuracies in percent, of all and by type. `credit`: of each question, 0 to 1; None without right
    answers."""

    metrics: dict[str, float]
    credit: list[float] | None


def judge(asked: Sequence[Asked], answers: Sequence[str], how: Accuracy) -> Judgement:
    """Accuracy of one answer per question: VQA's official one, or equality with the right answer."""
    if not asked[0].references:
        return Judgement({}, None)
    given = submission(asked, answers)
    if how == "exact":
        found = videoqa_accuracy(
            given, [ClipQuestion(each.identity, each.text, each.references[0]) for each in asked]
        )
        credit = [float(answer == each.references[0]) for each, answer in zip(asked, answers, strict=True)]
    else:
        found = vqa_accuracy(
            given,
            [
                Question(each.identity, each.references, each.question_type, each.answer_type)
                for each in asked
            ],
        )
        credit = [found["per_question"][each.identity] / 100 for each in asked]
    metrics = {"accuracy": found["overall"]}
    for kind in ("answer_type", "question_type"):
        types = found.get(f"per_{kind}", {})
        metrics |= {f"accuracy_{kind}/{plain_name(name)}": value for name, value in types.items()}
    return Judgement(metrics, credit)


def plain_name(name: str) -> str:
    """A type's name as part of a metric's: `yes/no` is yes_no."""
    return re.sub(r"\W+", "_", name).strip("_")
