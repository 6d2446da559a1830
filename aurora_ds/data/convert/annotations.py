"""Caption files as entries, in the order of the file: BLIP's lists and Karpathy's dataset_*.json.

BLIP train lists have one entry per caption (an image comes several times, told by `image_id`); val and test lists
have one entry per image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.data.convert import json_stream
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.json_stream import shape
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import rows
from aurora_ds.errors import AuroraError

FORMATS = ("blip", "karpathy")


def read_captions(
    way: AnnotationFiles, files: dict[str, Path], medium: str = "image"
) -> Iterator[Entry | Reject]:
    """The entries of all files of one of FORMATS. `medium`: the field of BLIP's lists that names the file."""
    for split, path in files.items():
        if way.format == "karpathy":
            yield from karpathy(path, way.splits)
        else:
            yield from blip_list(path, "" if split == "all" else split, medium)


def blip_list(path: Path, split: str = "", medium: str = "image") -> Iterator[Entry | Reject]:
    """[{image, caption, image_id?, split?}] -> an entry per caption. `caption`: a string or a list of strings.

    split: the split of all, else each entry's own `split`, else train. medium: the field that names the file, whose
    `…_id` tells media of one file apart. Raises AuroraError for another shape, naming the entry.
    """
    medium_id = f"{medium}_id"
    number = -1
    for number, entry in enumerate(json_stream.items(path, "item")):
        if not isinstance(entry, dict) or not isinstance(entry.get(medium), str) or not entry[medium]:
            wanted = f'{{"{medium}": "path", "caption": …}}'
            raise shape(path, f"entry {number} without a text `{medium}`", wanted)
        captions = entry.get("caption")
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            wanted = "a string or a list of strings as `caption`"
            raise shape(path, f"entry {number} ({entry[medium]}) with another `caption`", wanted)
        own_split = split or entry.get("split", "train")
        if not isinstance(own_split, str):
            raise shape(path, f"entry {number} with a `split` that is no text", "train, val or test")
        name = entry.get(medium_id, entry[medium])
        if not isinstance(name, (str, int)):
            raise shape(path, f"entry {number} with an `{medium_id}` that is neither text nor number", "one")
        extra: dict[str, Any] = {medium_id: name} if medium_id in entry else {}
        if not captions:
            yield Reject(own_split, entry[medium], "the caption list is empty")
        for caption in captions:
            yield Entry(own_split, entry[medium], "captions", caption, key=name, extra=extra)
    if number < 0:
        raise AuroraError(f"Annotation file {path} is an empty list: there is nothing to convert.")


def karpathy(path: Path, splits: dict[str, list[str]]) -> Iterator[Entry | Reject]:
    """{images: [{filename, filepath?, split, sentences: [{raw, sentid}], cocoid?}]} -> entries of our split names.

    Splits of the file that `splits` does not name are an error: nothing is left out in silence.
    """
    ours = {theirs: name for name, names in splits.items() for theirs in names}
    for row in rows(path, "images.item"):
        if row.text("split") not in ours:
            raise row.wrong("split", f"one of {', '.join(ours)}")
        split, name = ours[row.text("split")], row.text("filename")
        if "filepath" in row:
            name = f"{row.text('filepath')}/{name}"
        extra = {"image_id": row.identity("cocoid" if "cocoid" in row else "imgid")}
        sentences = row.rows("sentences")
        if not sentences:
            yield Reject(split, name, "the caption list is empty")
        for each in sentences:
            identity = each.identity("sentid")
            yield Entry(split, name, "captions", each.words("raw"), annotation_id=identity, extra=extra)
