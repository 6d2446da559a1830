"""Accuracy of open answers against ten human ones, as VQA's official evaluation computes it (Antol et al., 2015).

    accuracy = mean over the annotators i of  min(1, annotators other than i who gave the answer / 3)

Answers are normalised only where the annotators differ: where all ten agree, the official program compares raw text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.answer_file import checked_answers
from aurora_ds.tasks.metrics.json_source import Identifier, json_content, origin

ANNOTATORS = 10

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_STOPS_REMOVED = 32  # the official program passes a flag where the number of replacements belongs
_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = frozenset(["a", "an", "the"])
# Every form that lacks one of its apostrophes is put right.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've
""".split()
_RIGHT = {
    form[:place] + form[place + 1 :]: form
    for form in _CONTRACTIONS
    for place, sign in enumerate(form)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this one backwards


@dataclass(frozen=True)
class Question:
    """A question to judge: its id, the annotators' answers (raw), and the types that accuracy is broken down by."""

    question_id: Identifier
    answers: tuple[str, ...]
    question_type: str | None = None
    answer_type: str | None = None


def normalise_answer(answer: str) -> str:
    """Line breaks and tabs, punctuation, full stops, case, number words, articles and contractions, as the official
    program treats them: its order, and its slips, which the numbers in papers contain."""
    return _words_normalised(_punctuation_removed(_one_line(answer)))


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _punctuation_removed(answer: str) -> str:
    """A sign beside a blank, or any sign when a comma stands between digits, goes; another one becomes a blank."""
    grouped = _DIGITS_WITH_COMMA.search(answer) is not None
    text = answer
    for sign in _PUNCTUATION:
        beside_blank = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if grouped or beside_blank else " ")
    return _FULL_STOP.sub("", text, count=_STOPS_REMOVED)


def _words_normalised(answer: str) -> str:
    words = [_NUMBERS.get(word, word) for word in answer.lower().split()]
    return " ".join(_RIGHT.get(word, word) for word in words if word not in _ARTICLES)


def answer_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Accuracy (0 to 1) of one answer against the annotators' answers."""
    given = _one_line(answer)
    theirs = [_one_line(each) for each in answers]
    if len(set(theirs)) > 1:
        given = normalise_answer(given)
        theirs = [normalise_answer(each) for each in theirs]
    same = [each == given for each in theirs]
    total = sum(same)
    return sum(min(1, float(total - each) / 3) for each in same) / len(same)


def vqa_accuracy(
    results: Path | str | Sequence[Mapping[str, Any]], questions: Iterable[Question]
) -> dict[str, Any]:
    """Accuracy in percent, not rounded (papers round to two places).

    Args:
        results: a file or the list in it: `[{"question_id", "answer"}]`. questions: what to judge, each id once.
    Returns: {"questions": how many, "overall", "per_answer_type": {type: …}, "per_question_type": {type: …},
        "per_question": {question id: …}}. Questions without a type are in no break-down.
    Raises:
        AuroraError: an entry has another layout; a question is missing, unknown or there twice.
    """
    asked = list(questions)
    answers = checked_answers(results, [each.question_id for each in asked])
    if not asked:
        raise AuroraError(
            "there is no question to judge: the ground truth is empty. Choose a split with answers."
        )
    scores = {
        each.question_id: 100 * answer_accuracy(answers[each.question_id], each.answers) for each in asked
    }
    return {
        "questions": len(asked),
        "overall": sum(scores.values()) / len(asked),
        "per_answer_type": mean_by({each.question_id: each.answer_type for each in asked}, scores),
        "per_question_type": mean_by({each.question_id: each.question_type for each in asked}, scores),
        "per_question": scores,
    }


def mean_by(types: Mapping[Identifier, str | None], scores: Mapping[Identifier, float]) -> dict[str, float]:
    """Mean score of each type, in order of first appearance; without a type, in none."""
    groups: dict[str, list[float]] = {}
    for identifier, name in types.items():
        if name is not None:
            groups.setdefault(name, []).append(scores[identifier])
    return {name: sum(values) / len(values) for name, values in groups.items()}


def annotated_questions(source: Path | str | Mapping[str, Any]) -> list[Question]:
    """Questions of an official annotation file `{"annotations": [{"question_id", "answers": [{"answer"}], …}]}`.

    Raises:
        AuroraError: the file or an annotation has another layout.
    """
    where = origin(source, "the annotations")
    layout = 'expected {"annotations": [{"question_id": 1, "answers": [{"answer": "yes"}, …]}]}'
    content = json_content(source, layout)
    entries = content.get("annotations") if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise AuroraError(f"{where}: no list of annotations; {layout}.")
    questions = []
    for number, entry in enumerate(entries):
        try:
            answers = tuple(each["answer"] for each in entry["answers"])
            question = Question(
                entry["question_id"], answers, entry.get("question_type"), entry.get("answer_type")
            )
        except (KeyError, TypeError) as error:
            raise AuroraError(f"{where}: annotation {number} lacks {error}; {layout}.") from error
        if not answers or not all(isinstance(each, str) for each in answers):
            raise AuroraError(f"{where}: annotation {number} has no answers that are texts; {layout}.")
        questions.append(question)
    return questions


def recorded_questions(records: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Questions of shard records, `{"questions": [{"question_id", "answers": [{"answer", "weight"}], …}]}`.

    Raises:
        AuroraError: a question without answers (a test split), or answers that are not those of ten annotators.
    """
    return [
        Question(
            each["question_id"],
            reference_answers(each.get("answers") or [], f"question {each['question_id']}"),
            each.get("question_type"),
            each.get("answer_type"),
        )
        for record in records
        for each in record.get("questions", [])
    ]


def reference_answers(answers: Sequence[Mapping[str, Any]], where: str) -> tuple[str, ...]:
    """The ten answers behind `[{"answer", "weight"}]`, each as often as `weight = count/10` says, in that order.

    Accuracy does not depend on which annotator said what, so nothing is lost.

    Raises:
        AuroraError: no answers, a weight that is no tenth, or counts that do not make ten. `where` names the place.
    """
    if not answers:
        raise AuroraError(f"{where} has no answers: accuracy needs a split with answers, such as val.")
    found: list[str] = []
    for each in answers:
        weight = each.get("weight")
        count = round(weight * ANNOTATORS) if isinstance(weight, (int, float)) else 0
        if count < 1 or abs(weight * ANNOTATORS - count) > 1e-6:
            raise AuroraError(
                f"{where}: the weight of {each['answer']!r} is {weight!r}; allowed are 0.1, 0.2 … 1.0, the share "
                f"of the {ANNOTATORS} annotators. Convert the dataset again."
            )
        found += [each["answer"]] * count
    if len(found) != ANNOTATORS:
        raise AuroraError(
            f"{where}: its answers stand for {len(found)} annotators, not {ANNOTATORS}. VQA accuracy is for VQA's "
            "ten answers; convert the dataset again, or judge by exact match."
        )
    return tuple(found)
