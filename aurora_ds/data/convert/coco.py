"""COCO captions: BLIP's lists and Karpathy's file (his split), or the official captions JSON.

Annotations name images as val2014/COCO_val2014_000000391895.jpg or by the file alone. COCO 2017 is the same photos
under other names (000000391895.jpg in train2017/ or val2017/), so those are found as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from aurora_ds.data.convert.annotations import FORMATS as CAPTION_FORMATS
from aurora_ds.data.convert.annotations import read_captions
from aurora_ds.data.convert.coco_json import coco_captions
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import rows
from aurora_ds.errors import AuroraError

FORMATS = (*CAPTION_FORMATS, "coco")
_TRUTH = "_gt"
_NAME = re.compile(r"(?:COCO_[a-z]+\d+_)?(\d{12})\.\w+")
_EXAMPLE = "COCO_val2014_000000391895.jpg"


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """`blip`: a list per split, and with `SPLIT_gt` the ids of its captions; `karpathy`: one file; `coco`: a file each.

    Option `numbers: true`, or a ground truth, makes COCO's own number of the image its `image_id`, in place of BLIP's
    in training lists.
    """
    if way.format == "coco":
        for split, path in files.items():
            yield from coco_captions(path, split)
        return
    truths = {key.removesuffix(_TRUTH): _Truth(path) for key, path in files.items() if key.endswith(_TRUTH)}
    lists = {key: path for key, path in files.items() if not key.endswith(_TRUTH)}
    for entry in read_captions(way, lists):
        if isinstance(entry, Entry) and (truths or way.options.get("numbers")):
            number = image_number(str(entry.media))
            if number is None:
                raise AuroraError(
                    f"{lists[entry.split]} names an image {entry.media}, which is no file name of COCO such as "
                    f"{_EXAMPLE}. Convert lists of other images with the recipe folder."
                )
            entry = replace(entry, extra=entry.extra | {"image_id": number})
            if entry.split in truths:
                entry = replace(entry, annotation_id=truths[entry.split].identity(number, entry.annotation))
        yield entry


def candidates(name: str) -> list[str]:
    """Where the image may be under an image folder, best first."""
    file = PurePosixPath(name).name
    number = file.rpartition("_")[2]
    return [
        name,
        file,
        *(f"{folder}/COCO_{folder}_{number}" for folder in ("train2014", "val2014")),
        *(f"{folder}/{number}" for folder in ("train2017", "val2017")),
    ]


def image_number(name: str) -> int | None:
    """391895 of val2014/COCO_val2014_000000391895.jpg; None for a name that is not COCO's."""
    fits = _NAME.fullmatch(PurePosixPath(name).name)
    return int(fits[1]) if fits else None


class _Truth:
    """Ids of a split's captions, from the ground truth that its scores are computed with; both have one order."""

    def __init__(self, path: Path):
        self._path = path
        self._left: dict[int, list[tuple[int, str]]] = {}
        for row in rows(path, "annotations.item"):
            known = self._left.setdefault(row.number("image_id"), [])
            known.append((row.number("id"), row.words("caption")))

    def identity(self, image: int, caption: str) -> int:
        """The id of the next caption of an image. Raises AuroraError when that is another text."""
        left = self._left.get(image, [])
        if not left or left[0][1] != caption:
            raise AuroraError(
                f"{self._path} does not have the captions of its list: for image {image}, the list goes on with "
                f"{caption[:60]!r}, the ground truth with {left[0][1][:60] if left else 'nothing'!r}. Get both files "
                "from one place, or take the ground truth away: it is then made from the list."
            )
        return left.pop(0)[0]
