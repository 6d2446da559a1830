"""Files of answers, `[{"question_id", "answer"}]`: each question of a split answered exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.json_source import Identifier, is_identifier, json_content, origin

_LAYOUT = 'expected [{"question_id": 1, "answer": "yes"}]'


def check_submission(results: Path | str | Sequence[Mapping[str, Any]], question_ids: Iterable[int]) -> None:
    """Whether VQA's evaluation server will take the file: `[{"question_id": integer, "answer": text}]`, nothing else
    in an entry, every question of the split exactly once.

    Raises:
        AuroraError: what is wrong, and in which entry.
    """
    asked = list(question_ids)
    where = origin(results, "the results")
    content = json_content(results, _LAYOUT)
    checked_answers(content, asked, where)
    for number, entry in enumerate(content):
        if type(entry["question_id"]) is not int:
            raise AuroraError(
                f"{where}, entry {number}: question_id is {entry['question_id']!r}; the server takes integers."
            )
        if set(entry) != {"question_id", "answer"}:
            raise AuroraError(
                f"{where}, entry {number}: has {sorted(entry)}; the server takes question_id and answer only."
            )


def checked_answers(
    results: Path | str | Sequence[Mapping[str, Any]],
    question_ids: Sequence[Identifier],
    where: str | None = None,
) -> dict[Identifier, str]:
    """Question id -> answer, for exactly these ids.

    Raises:
        AuroraError: another layout; an id missing, unknown or there twice, among the results or the questions.
    """
    where = where or origin(results, "the results")
    entries = json_content(results, _LAYOUT)
    if not isinstance(entries, list):
        raise AuroraError(f"{where}: found {type(entries).__name__}; {_LAYOUT}.")
    asked = set(question_ids)
    if len(asked) != len(question_ids):
        seen: set[Identifier] = set()
        twice = [each for each in question_ids if each in seen or seen.add(each)]
        raise AuroraError(f"the ground truth has {_some(twice)} more than once. Keep one entry per question.")
    answers: dict[Identifier, str] = {}
    twice = []
    for number, entry in enumerate(entries):
        identifier = entry.get("question_id") if isinstance(entry, Mapping) else None
        answer = entry.get("answer") if isinstance(entry, Mapping) else None
        if not is_identifier(identifier) or not isinstance(answer, str):
            raise AuroraError(f"{where}, entry {number}: {json.dumps(entry, default=str)[:120]}; {_LAYOUT}.")
        if identifier in answers:
            twice.append(identifier)
        answers[identifier] = answer
    missing = [each for each in question_ids if each not in answers]
    unknown = [each for each in answers if each not in asked]
    faults = [
        f"{_some(found)} {what}"
        for found, what in (
            (twice, "answered more than once (merge the ranks' files first)"),
            (missing, "without an answer"),
            (unknown, "not in the ground truth"),
        )
        if found
    ]
    if faults:
        raise AuroraError(
            f"{where}: {'; '.join(faults)}. Each question of the split is answered exactly once."
        )
    return answers


def _some(identifiers: Sequence[Identifier]) -> str:
    first = ", ".join(repr(each) for each in identifiers[:5]) + (", …" if len(identifiers) > 5 else "")
    return f"{len(identifiers)} question{'' if len(identifiers) == 1 else 's'} ({first})"
