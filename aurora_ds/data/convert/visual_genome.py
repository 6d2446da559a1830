"""Visual Genome questions: the official question_answers.json with image_data.json, or BLIP's vg_qa.json.

Photos are in two folders, VG_100K and VG_100K_2; image_data.json tells which. Images that the file lists without any
question have nothing to convert and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import rows
from aurora_ds.data.convert.vqa import answer_weights, question_list

FORMATS = ("official", "blip")


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """`official`: files `questions` and `images`; `blip`: one list. All is of split train."""
    if way.format == "blip":
        for path in files.values():
            yield from question_list(path, "train", "vg")
    else:
        yield from _official(files["questions"], files["images"])


def candidates(name: str) -> list[str]:
    """Where a photo may be, best first."""
    file = PurePosixPath(name).name
    return [name, file, *(f"{folder}/{file}" for folder in ("VG_100K", "VG_100K_2", "image"))]


def _official(questions: Path, images: Path) -> Iterator[Entry | Reject]:
    """[{id, qas: [{question, answer, qa_id}]}] with [{image_id, url}]: the last folder of `url` is the photo's."""
    names = {row.number("image_id"): _file(row.text("url")) for row in rows(images)}
    for row in rows(questions):
        number = row.number("id")
        asked = row.rows("qas")
        if number not in names:
            yield Reject("train", f"{number}.jpg", f"image {number} is not in {images.name}")
            continue
        for each in asked:
            answer = each.words("answer")
            if not answer.strip():
                yield Reject("train", names[number], f"question {each.identity('qa_id')} has a blank answer")
                continue
            question = {
                "question": each.words("question"),
                "question_id": each.identity("qa_id"),
                "answers": answer_weights([answer]),
            }
            extra = {"dataset": "vg", "image_id": number}
            yield Entry("train", names[number], "questions", question, extra=extra)


def _file(url: str) -> str:
    """VG_100K_2/1.jpg of https://…/VG_100K_2/1.jpg"""
    return "/".join(PurePosixPath(url).parts[-2:])
