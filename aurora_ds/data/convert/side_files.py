"""Files beside the shards, written while samples pass: SPLIT_gt.json for caption metrics, and the answer list.

SPLIT_gt.json has the form that COCO's caption evaluation reads: {"images": [{"id"}], "annotations": [{"image_id", "id",
"caption"}]}. The id of an image is its `image_id` or `video_id`, else its number in the split.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from aurora_ds.data.convert import json_stream
from aurora_ds.data.convert.recipe import AnswerList, DatasetRecipe
from aurora_ds.data.convert.spool import SpooledMedium
from aurora_ds.data.manifest import write_whole
from aurora_ds.errors import AuroraError


class SideFiles:
    """Collects what a recipe asks for. Samples are to come in the order of their shards."""

    def __init__(self, recipe: DatasetRecipe, source: Path, output: Path):
        self._output = output
        self._with_truth = recipe.ground_truth
        self._truth: dict[str, _GroundTruth] = {}
        self._answers = recipe.answer_list
        self._given = _given_answers(recipe, source)
        self._counted: Counter[str] = Counter()
        self._places: Counter[str] = Counter()

    def add(self, split: str, media: Iterable[SpooledMedium]) -> None:
        """Media that are in the shards."""
        for medium in media:
            if self._with_truth and split != "train":
                if split not in self._truth:
                    self._truth[split] = _GroundTruth(self._output / f"{split}_gt.json")
                self._truth[split].add(medium, self._places[split])
            self._places[split] += 1
            if self._answers is not None and self._given is None and split == self._answers.split:
                for question in medium.annotations.get("questions", []):
                    # The answer that most people gave; the first of equals.
                    answers = question.get("answers") or []
                    if answers:
                        self._counted[max(answers, key=lambda answer: answer["weight"])["answer"]] += 1

    def finish(self) -> dict[str, str]:
        """Puts the files under their names. Returns name -> sha256."""
        for truth in self._truth.values():
            truth.finish()
        names = [f"{split}_gt.json" for split in self._truth]
        if self._answers is not None:
            self._write_answers(self._answers)
            names.append(Path(self._answers.file).name)
        return {name: hashlib.sha256((self._output / name).read_bytes()).hexdigest() for name in names}

    def _write_answers(self, wanted: AnswerList) -> None:
        answers = self._given
        if answers is None:
            often = [(answer, count) for answer, count in self._counted.items() if count >= wanted.at_least]
            answers = [answer for answer, _ in sorted(often, key=lambda each: (-each[1], each[0]))]
            answers = answers[: wanted.at_most]
        if not answers:
            raise AuroraError(
                f"No answer of split {wanted.split} belongs to {wanted.at_least} questions, so {wanted.file} would be "
                "empty. Put the list into the source folder, or set answer_list.at_least of the recipe lower."
            )
        content = json.dumps(answers, ensure_ascii=False)
        write_whole(self._output / Path(wanted.file).name, content.encode("utf-8", "replace"))


def _given_answers(recipe: DatasetRecipe, source: Path) -> list[str] | None:
    """The list that the source has, perhaps as {answer: number}. Raises AuroraError for another shape."""
    if recipe.answer_list is None:
        return None
    names = [recipe.answer_list.file, *recipe.answer_list.other_names]
    for path in [source / place / name for name in names for place in recipe.annotation_folders]:
        if path.is_file():
            content = json_stream.load(path)
            if isinstance(content, dict):  # answer -> its number
                content = sorted(content, key=lambda answer: content[answer])
            if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
                raise json_stream.shape(path, "something else", 'a list of answers like ["yes", "no"]')
            return content
    return None


class _GroundTruth:
    """Images go into the file, annotations wait in a second one, so that neither is held in memory."""

    def __init__(self, path: Path):
        self._path = path
        self._images_path = path.with_name(f".{path.name}.partial")
        self._captions_path = path.with_name(f".{path.name}.captions.partial")
        self._images = open(self._images_path, "w+", encoding="utf-8", errors="replace")
        self._captions = open(self._captions_path, "w+", encoding="utf-8", errors="replace")
        self._images.write('{"images": [')
        self._first, self._next = True, 0

    def add(self, medium: SpooledMedium, place: int) -> None:
        identity = next(
            (medium.extra[name] for name in ("image_id", "video_id") if name in medium.extra), place
        )
        self._images.write(f"{'' if self._first else ', '}{json.dumps({'id': identity}, ensure_ascii=False)}")
        self._first = False
        captions = medium.annotations.get("captions", [])
        numbers = medium.identities.get("captions", [])
        for caption, number in zip(captions, numbers, strict=True):
            row = {"image_id": identity, "id": self._next if number is None else number, "caption": caption}
            separator = ", " if self._next else ""
            self._captions.write(f"{separator}{json.dumps(row, ensure_ascii=False)}")
            self._next += 1

    def finish(self) -> None:
        with self._images, self._captions:
            self._images.write('], "annotations": [')
            self._captions.seek(0)
            shutil.copyfileobj(self._captions, self._images)
            self._images.write("]}\n")
            self._images.flush()
            os.fsync(self._images.fileno())
        os.replace(self._images_path, self._path)
        self._captions_path.unlink()
