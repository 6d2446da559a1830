"""Annotation files -> media with captions, in the order of the file: BLIP's lists and Karpathy's dataset_*.json.

BLIP train lists have one entry per caption (an image comes several times, told by `image_id`); val and test lists
have one entry per image. An image's number in a split is its order of first appearance: the index that BLIP trains
with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurora_ds.data.text import pre_caption
from aurora_ds.errors import AuroraError


@dataclass
class Medium:
    """One image of a split as its annotation names it. `extra` goes into the record beside the captions."""

    image: str
    captions: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    """Something that could not be converted: which image of which split, and why."""

    split: str
    media_id: str
    reason: str


def read_json(path: Path) -> tuple[Any, str]:
    """(content, sha256 of the bytes). Raises AuroraError when the file is missing or not JSON."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise AuroraError(f"Annotation file {path} cannot be read: {error.strerror}.") from error
    try:
        return json.loads(raw), hashlib.sha256(raw).hexdigest()
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AuroraError(
            f"Annotation file {path} is not JSON ({error}). It may be cut, or a web page saved in its place; "
            "get it again."
        ) from error


def blip_list(content: Any, path: Path) -> dict[str, list[Medium]]:
    """[{image, caption, image_id?, split?}] -> media by the entries' own split ("" where they name none).

    `caption`: a string or a list of strings. Raises AuroraError for another shape, naming the entry.
    """
    if not isinstance(content, list):
        raise AuroraError(
            _shape(path, f"a {_json_type(content)}", 'a list like [{"image": …, "caption": …}]')
        )
    if not content:
        raise AuroraError(f"Annotation file {path} is an empty list: there is nothing to convert.")
    found: dict[str, dict[Any, Medium]] = {}
    for number, entry in enumerate(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
            raise AuroraError(
                _shape(path, f"entry {number} without a text `image`", '{"image": "path", "caption": …}')
            )
        captions = entry.get("caption")
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            wanted = "a string or a list of strings as `caption`"
            raise AuroraError(
                _shape(path, f"entry {number} ({entry['image']}) with another `caption`", wanted)
            )
        split = entry.get("split", "")
        if not isinstance(split, str):
            raise AuroraError(
                _shape(path, f"entry {number} with a `split` that is no text", "train, val or test")
            )
        media = found.setdefault(split, {})
        name = entry.get("image_id", entry["image"])
        if not isinstance(name, (str, int)):
            raise AuroraError(
                _shape(path, f"entry {number} with an `image_id` that is neither text nor number", "one")
            )
        medium = media.setdefault(name, Medium(entry["image"]))
        if medium.image != entry["image"]:
            raise AuroraError(
                f"{path}, entry {number}: image_id {name!r} is given to both {medium.image} and "
                f"{entry['image']}. One image_id must mean one image."
            )
        medium.captions += captions
        if "image_id" in entry:
            medium.extra["image_id"] = name
    return {split: list(media.values()) for split, media in found.items()}


def karpathy(content: Any, path: Path, splits: dict[str, list[str]]) -> dict[str, list[Medium]]:
    """{images: [{filename, filepath?, split, sentences: [{raw, sentid}], cocoid?}]} -> media by our split names.

    Splits of the file that `splits` does not name are an error: nothing is left out in silence.
    """
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise AuroraError(
            _shape(path, f"a {_json_type(content)} without `images`", '{"images": [{"filename": …}, …]}')
        )
    ours = {theirs: name for name, names in splits.items() for theirs in names}
    found: dict[str, list[Medium]] = {name: [] for name in splits}
    for number, image in enumerate(images):
        try:
            sentences = image["sentences"]
            folder = image.get("filepath", "")
            medium = Medium(
                f"{folder}/{image['filename']}" if folder else image["filename"],
                [sentence["raw"] for sentence in sentences],
                {
                    "image_id": image.get("cocoid", image["imgid"]),
                    "caption_ids": [each["sentid"] for each in sentences],
                },
            )
            split = image["split"]
        except (KeyError, TypeError, AttributeError) as error:
            wanted = "filename, imgid, split, and sentences with raw and sentid"
            raise AuroraError(
                _shape(path, f"images[{number}] that does not fit ({error!r})", wanted)
            ) from error
        if not all(isinstance(caption, str) for caption in medium.captions):
            raise AuroraError(
                _shape(path, f"images[{number}] with a sentence that is no text", "strings as `raw`")
            )
        if split not in ours:
            raise AuroraError(
                _shape(path, f"images[{number}] of split {split!r}", f"one of {', '.join(ours)}")
            )
        found[ours[split]].append(medium)
    return {split: media for split, media in found.items() if media}


def usable(split: str, media: list[Medium]) -> tuple[list[tuple[int, Medium]], list[Reject]]:
    """(number in the list, medium) of those with a caption, and a reject for the others and for each blank caption."""
    kept, rejects = [], []
    for number, medium in enumerate(media):
        words = [bool(pre_caption(caption, 1)) for caption in medium.captions]
        for place, has_words in enumerate(words):
            if not has_words and any(words):
                rejects.append(
                    Reject(
                        split, medium.image, f"caption {place} is blank; the image keeps its other captions"
                    )
                )
        if not any(words):
            reason = "all captions are blank" if words else "the caption list is empty"
            rejects.append(Reject(split, medium.image, reason))
            continue
        kept.append((number, _with(medium, words)))
    return kept, rejects


def _with(medium: Medium, keep: list[bool]) -> Medium:
    """The medium with only the captions to keep, and their ids."""
    extra = dict(medium.extra)
    if "caption_ids" in extra:
        extra["caption_ids"] = [each for each, kept in zip(extra["caption_ids"], keep, strict=True) if kept]
    return Medium(
        medium.image, [each for each, kept in zip(medium.captions, keep, strict=True) if kept], extra
    )


def _json_type(content: Any) -> str:
    return {list: "list", dict: "object", str: "text", type(None): "null"}.get(type(content), "number")


def _shape(path: Path, found: str, wanted: str) -> str:
    return f"Annotation file {path} has another shape than expected: found {found}, expected {wanted}."
