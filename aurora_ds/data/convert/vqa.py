"""VQA v2: the official question and annotation files, or the lists of BLIP and X-VLM.

An answer's weight is its share of the annotators: of ten, one that four gave has 0.4. What training makes of it is the
task's affair. Test questions have no answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from aurora_ds.data.convert import coco, json_stream
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.json_stream import shape
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row, rows
from aurora_ds.errors import AuroraError

FORMATS = ("official", "blip")
_ANSWERS = "_answers"


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """`official`: files `SPLIT` of questions, `SPLIT_answers` of annotations; `blip`: a list per split."""
    if way.format == "blip":
        for split, path in files.items():
            yield from question_list(path, split, "vqa")
        return
    for split in dict.fromkeys(key.removesuffix(_ANSWERS) for key in files):
        answers = f"{split}{_ANSWERS}"
        if split not in files or (answers in way.files and answers not in files):
            there, lacking = (answers, split) if split not in files else (split, answers)
            raise AuroraError(
                f"{files[there]} is there without {way.files.get(lacking, 'its questions file')}. Put both beside each "
                "other, or take both away to convert the other splits."
            )
        yield from _official(split, files[split], files.get(answers))


def candidates(name: str) -> list[str]:
    """Where a COCO photo may be, best first; also Visual Genome's, which X-VLM's lists mix in."""
    file = PurePosixPath(name).name
    folders = ("train2014", "val2014", "test2015", "VG_100K", "VG_100K_2", "image")
    return [name, file, *(f"{folder}/{file}" for folder in folders)]


def answer_weights(answers: list[str]) -> list[dict[str, Any]]:
    """Distinct answers in order of first appearance, each with the share of annotators who gave it."""
    return [{"answer": answer, "weight": count / len(answers)} for answer, count in Counter(answers).items()]


def question_list(path: Path, split: str, dataset: str) -> Iterator[Entry]:
    """[{image, question, question_id?, answer, dataset?, ocr?, object_label?}]; `answer`: a text or several, none in a
    test split; the last two as `detected` reads them."""
    for row in rows(path):
        image = row.text("image")
        answers: list[str] = []
        if "answer" in row or not split.startswith("test"):
            given = row.content.get("answer")
            answers = [given] if isinstance(given, str) else row.texts("answer")
            if not answers:
                raise row.wrong("answer", "a text or a list of texts, not an empty one,")
        question: dict[str, Any] = {"question": row.words("question")}
        if "question_id" in row:
            question["question_id"] = row.identity("question_id")
        question["answers"] = answer_weights(answers)
        question |= detected(row)
        extra: dict[str, Any] = {"dataset": row.text("dataset") if "dataset" in row else dataset}
        number = coco.image_number(image)
        if extra["dataset"] == "vqa" and number is not None:
            extra["image_id"] = number
        yield Entry(split, image, "questions", question, extra=extra)


def detected(row: Row) -> dict[str, list[str]]:
    """What a detector found on a question's image, each where the entry has some: `ocr`, the words that were read, of
    [[position, word], …] or [word, …]; `objects`, the names, of mPLUG's `object_label` "car&&person&&car" or of a list
    of texts under `objects`. Blank ones are left out."""
    found: dict[str, list[str]] = {}
    if "ocr" in row:
        found["ocr"] = [_ocr_word(row, each) for each in row.items("ocr")]
    if "object_label" in row:
        found["objects"] = row.words("object_label").split("&&")
    elif "objects" in row:
        found["objects"] = row.texts("objects")
    kept = {name: [word for word in words if word.strip()] for name, words in found.items()}
    return {name: words for name, words in kept.items() if words}


def _ocr_word(row: Row, entry: Any) -> str:
    word = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    if not isinstance(word, str):
        raise row.wrong("ocr", "a list of texts, or of [position, text],")
    return word


def _official(split: str, questions: Path, answers: Path | None) -> Iterator[Entry | Reject]:
    """{data_subtype, questions: [{image_id, question, question_id}]} with {annotations: [{question_id, answers}]}."""
    subset = next(json_stream.items(questions, "data_subtype"))
    if not isinstance(subset, str):
        raise shape(questions, f"{subset!r} as `data_subtype`", "a text such as train2014")
    # test-dev2015 asks about photos of test2015
    subset = subset.replace("-dev", "")
    finder = _AnswerFinder(answers) if answers else None
    for row in rows(questions, "questions.item"):
        number, identity = row.number("image_id"), row.number("question_id")
        image = f"{subset}/COCO_{subset}_{number:012d}.jpg"
        question: dict[str, Any] = {
            "question": row.words("question"),
            "question_id": identity,
            "answers": [],
        }
        if finder is not None:
            found = finder.take(identity)
            if found is None:
                yield Reject(split, image, f"question {identity} has no answers in {finder.path.name}")
                continue
            question |= found
        yield Entry(split, image, "questions", question, extra={"dataset": "vqa", "image_id": number})
    if finder is not None:
        for identity in finder.rest():
            yield Reject(split, f"question {identity}", f"it has answers but is not in {questions.name}")


class _AnswerFinder:
    """Answers by question, read beside the questions: both files list them in one order, so that few wait in memory.

    Those that do wait as JSON, so that even a file in another order needs little of it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._rows = rows(path, "annotations.item")
        self._waiting: dict[int, str] = {}

    def take(self, identity: int) -> dict[str, Any] | None:
        """The fields that the annotation of a question adds to it; None where there is none (left)."""
        if identity in self._waiting:
            return json.loads(self._waiting.pop(identity))
        for row in self._rows:
            found, fields = self._fields(row)
            if found == identity:
                return fields
            self._waiting[found] = json.dumps(fields)
        return None

    def rest(self) -> Iterator[int]:
        """Questions whose answers nobody took."""
        yield from self._waiting
        for row in self._rows:
            yield row.number("question_id")

    @staticmethod
    def _fields(row: Row) -> tuple[int, dict[str, Any]]:
        answers = [each.words("answer") for each in row.rows("answers")]
        if not answers:
            raise row.wrong("answers", "a list that is not empty")
        kinds = {name: row.text(name) for name in ("question_type", "answer_type") if name in row}
        return row.number("question_id"), {"answers": answer_weights(answers)} | kinds
