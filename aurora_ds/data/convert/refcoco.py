"""RefCOCO, RefCOCO+, RefCOCOg and ReferIt: photos with phrases and the box that each means; own lists of such.

REFER's refs(…).p and TransVG's .pth files are pickles, which can run code when read. They are read without any:
`plain_pickle` builds only Python's own lists, tuples, dictionaries, texts and numbers, and .pth files go through
torch's weights-only reader. A file that asks for more is refused.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from aurora_ds.data.convert import coco
from aurora_ds.data.convert.clips import options
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.json_stream import json_type, shape
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row, rows
from aurora_ds.errors import AuroraError

FORMATS = ("refer", "xvlm", "transvg", "list")
# What a pickle that is cut or is none at all can raise while it is read.
_BROKEN = (
    pickle.UnpicklingError, struct.error, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
    MemoryError, RuntimeError,
)  # fmt: skip


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """`refer`: files `refs` and `instances`; `xvlm`: those two and lists; `transvg`: a .pth file per split; `list`:
    [{image, phrase, box: [left, top, width, height]}] per split.

    `way.splits`: our split -> names of it in `refs`. An entry of a list is of its reference's split, so that X-VLM's
    test list becomes testA and testB. Option `corners`: boxes of `transvg` are [left, top, right, bottom].
    """
    corners = options(way, "refcoco", {"corners": False})["corners"]
    if way.format == "transvg":
        for split, path in files.items():
            yield from _transvg(path, split, corners)
        return
    if way.format == "list":
        for split, path in files.items():
            for row in rows(path):
                value = {"phrase": row.words("phrase"), "box": row.box("box")}
                yield _with_box(Entry(split, row.text("image"), "phrases", value))
        return
    refs = _read_refs(files["refs"], way.splits)
    boxes = _Boxes(files["instances"], {ref.number("ann_id") for ref in refs})
    if way.format == "refer":
        for ref in refs:
            for sentence in ref.rows("sentences"):
                yield boxes.entry(ref, way.splits, _phrase(sentence), sentence.number("sent_id"))
        return
    by_identity = {ref.number("ref_id"): ref for ref in refs}
    for key in (key for key in files if key not in ("refs", "instances")):
        for row in rows(files[key]):
            ref = by_identity.get(row.number("ref_id"))
            if ref is None:
                reason = f"reference {row.number('ref_id')} is not in {files['refs'].name}"
                yield Reject(key, row.text("image"), reason)
            else:
                yield boxes.entry(ref, way.splits, row.words("text"), None)


def candidates(name: str) -> list[str]:
    """Where a COCO photo may be, best first: as for COCO, or in REFER's own folders."""
    file = PurePosixPath(name).name
    return [*coco.candidates(name), f"train2014/{file}", f"images/mscoco/images/train2014/{file}"]


def plain_pickle(path: Path) -> Any:
    """Content of a pickle of plain values. Raises AuroraError when it names any class or function, or is broken."""
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except OSError as error:
        raise AuroraError(f"Annotation file {path} cannot be read: {error.strerror}.") from error
    except _BROKEN as error:
        raise AuroraError(
            f"Annotation file {path} cannot be read as a pickle of plain values ({type(error).__name__}: {error}). "
            "The published file has only lists, dictionaries, texts and numbers; get it again."
        ) from error


class _PlainUnpickler(pickle._Unpickler):
    """Finds no class and no function, so no code of a pickle can be reached.

    The unpickler in Python: the one in C lets a few bytes of a broken file ask for gigabytes of memory.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def get_extension(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for the registered class {code}")


def _read_refs(path: Path, splits: dict[str, list[str]]) -> list[Row]:
    """[{ref_id, ann_id, image_id, category_id, split, sentences: [{sent, raw, sent_id}]}]"""
    content = plain_pickle(path)
    if not isinstance(content, list) or not content:
        raise shape(path, f"a {json_type(content)}", "a list of references that is not empty")
    known = [theirs for names in splits.values() for theirs in names]
    refs = []
    for number, each in enumerate(content):
        if not isinstance(each, dict):
            raise shape(path, f"reference {number} that is a {json_type(each)}", "a dictionary")
        ref = Row(path, f"reference {number}", each)
        for name in ("ref_id", "ann_id", "image_id", "category_id"):
            ref.number(name)
        if ref.text("split") not in known:
            raise ref.wrong("split", f"one of {', '.join(known)}")
        refs.append(ref)
    return refs


def _phrase(sentence: Row) -> str:
    """REFER's cleaned text, which its tools and the published results use; the raw text where there is none."""
    return sentence.words("sent" if "sent" in sentence else "raw")


class _Boxes:
    """Boxes and file names from instances.json, of the annotations that references name; nothing else is kept."""

    def __init__(self, path: Path, wanted: set[int]):
        self._path = path
        self._boxes = {
            row.number("id"): row.box("bbox")
            for row in rows(path, "annotations.item")
            if row.number("id") in wanted
        }
        self._files = {row.number("id"): row.text("file_name") for row in rows(path, "images.item")}

    def entry(
        self, ref: Row, splits: dict[str, list[str]], phrase: str, sent_id: int | None
    ) -> Entry | Reject:
        """A phrase of a reference with its box."""
        split = next(ours for ours, names in splits.items() if ref.content["split"] in names)
        image_id, ann_id = ref.number("image_id"), ref.number("ann_id")
        if image_id not in self._files:
            reason = f"image {image_id} of reference {ref.number('ref_id')} is not in {self._path.name}"
            return Reject(split, f"image {image_id}", reason)
        if ann_id not in self._boxes:
            reason = f"annotation {ann_id} of reference {ref.number('ref_id')} is not in {self._path.name}"
            return Reject(split, self._files[image_id], reason)
        value = {"phrase": phrase, "box": self._boxes[ann_id]}
        value |= {name: ref.number(name) for name in ("ref_id", "ann_id", "category_id")}
        if sent_id is not None:
            value["sent_id"] = sent_id
        return _with_box(Entry(split, self._files[image_id], "phrases", value, extra={"image_id": image_id}))


def _with_box(entry: Entry) -> Entry | Reject:
    """The entry, unless nothing is inside its box."""
    _, _, width, height = entry.annotation["box"]
    if width > 0 and height > 0:
        return entry
    return Reject(
        entry.split,
        str(entry.media),
        f"the box of {entry.annotation['phrase']!r} is {width} x {height} pixels",
    )


def _transvg(path: Path, split: str, corners: bool) -> Iterator[Entry | Reject]:
    """[(image file, mask file, box, phrase, attributes)]"""
    content = _weights_only(path)
    if not isinstance(content, list) or not content:
        raise shape(path, f"a {json_type(content)}", "a list of tuples that is not empty")
    for number, each in enumerate(content):
        if not isinstance(each, (list, tuple)) or len(each) != 5:
            raise shape(
                path, f"entry {number} that is no tuple of five", "(image, mask, box, phrase, attributes)"
            )
        row = Row(path, f"entry {number}", {"image": each[0], "box": each[2], "phrase": each[3]})
        image = row.text("image")
        image_id = coco.image_number(image)
        extra = {} if image_id is None else {"image_id": image_id}
        left, top, right, bottom = box = row.box("box")
        if corners:
            box = [left, top, right - left, bottom - top]
        yield _with_box(
            Entry(split, image, "phrases", {"phrase": row.words("phrase"), "box": box}, extra=extra)
        )


def _weights_only(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise AuroraError(f"Annotation file {path} cannot be read: {error.strerror}.") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise AuroraError(
            f"Annotation file {path} cannot be read without running code from it ({reason}). Get the published file "
            "again, or convert REFER's refs(…).p and instances.json instead."
        ) from error
