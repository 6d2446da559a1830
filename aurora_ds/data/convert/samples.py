"""One medium -> the tar members of its sample: KEY.json, then KEY.EXTENSION, or KEY.0.EXTENSION and so on for several.

Images are looked at and videos probed here, in the workers. A video is copied in blocks and never held in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from os.path import basename, splitext
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aurora_ds.data.convert.media_files import MediaFiles
from aurora_ds.data.convert.spool import SpooledMedium
from aurora_ds.data.decode import header, is_whole, open_with_extension
from aurora_ds.data.overhang import lies_within
from aurora_ds.data.reader import RECORD_SCHEMA, BadSample

Check = Literal["header", "decode"]
BLOCK = 1 << 20  # bytes of a video read at a time
# A key frame so often lets a reader seek to any frame at the cost of few others.
REENCODED_SECONDS = 0.5


_NO_KEY = re.compile(r"[^A-Za-z0-9_-]+")
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True)
class MediaSettings:
    """Where media are and how they are stored. All but `folders` decide the shards' bytes."""

    family: str
    media: Literal["image", "images", "video"]
    folders: tuple[Path, ...]
    max_pixels: int
    check: Check = "header"
    video_frames: int | None = None
    video_reencode: bool = False
    size: int | None = None

    def origin(self) -> dict[str, Any]:
        """The part that decides the shards' bytes, as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "folders"}


class Member(NamedTuple):
    """A tar member: its content comes in blocks."""

    name: str
    size: int
    blocks: Iterable[bytes]


def members(medium: SpooledMedium, split: str, settings: MediaSettings) -> Iterator[Member]:
    """The record, then the media as they came. Raises BadSample, perhaps after the first members."""
    names = [medium.names] if isinstance(medium.names, str) else list(medium.names)
    paths = [find(name, settings) for name in names]
    # No dot in a key: WebDataset ends it at the first one.
    stem = _NO_KEY.sub("_", splitext(basename(names[0]))[0])[-48:].strip("_")
    key = f"{split}-{medium.number:07d}-{stem}"
    if settings.media == "video":
        fields, media = _video(paths[0], key, names[0], settings)
    elif settings.media == "images":
        fields, media = _images(paths, key, names, settings)
    else:
        fields, media = _image(paths[0], key, names[0], settings)
        _check_boxes(medium.annotations.get("phrases", []), fields["width"], fields["height"])
    record: dict[str, Any] = {
        **medium.extra,
        "schema": RECORD_SCHEMA,
        "media_id": medium.names if isinstance(medium.names, str) else names,
        **fields,
        **medium.annotations,
    }
    identities = medium.identities.get("captions", [])
    if any(identity is not None for identity in identities):
        record["caption_ids"] = identities
    text = _encode(record).encode("utf-8", "replace")  # half of a surrogate pair becomes "?"
    yield Member(f"{key}.json", len(text), [text])
    yield from media


def find(name: str, settings: MediaSettings) -> Path:
    """The file of that name. Raises BadSample with the reason why there is none."""
    found = _files(settings.family, settings.folders, settings.media == "video").find(name)
    if isinstance(found, str):
        raise BadSample(found, reason="shard_missing")
    return found


@lru_cache(maxsize=8)
def _files(family: str, folders: tuple[Path, ...], video: bool) -> MediaFiles:
    from aurora_ds.data.convert.sources import FAMILIES

    return MediaFiles(folders, FAMILIES[family].candidates, video)


def _image(path: Path, key: str, name: str, settings: MediaSettings) -> tuple[dict[str, Any], list[Member]]:
    content, extension, width, height = _read_image(path, name, settings)
    fields = {"kind": "image", "width": width, "height": height}
    return fields, [Member(f"{key}.{extension}", len(content), [content])]


def _check_boxes(phrases: list[dict[str, Any]], width: int, height: int) -> None:
    for each in phrases:
        if "box" not in each:
            raise BadSample(f"the phrase {each['phrase']!r} has no box", reason="record")
        if not lies_within(each["box"], width, height):
            raise BadSample(
                f"the box {each['box']} (left, top, width, height) of {each['phrase']!r} does not lie in the image of "
                f"{width} x {height} pixels",
                reason="record",
            )


def _images(
    paths: list[Path], key: str, names: list[str], settings: MediaSettings
) -> tuple[dict[str, Any], list[Member]]:
    sizes, media = [], []
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        content, extension, width, height = _read_image(path, name, settings)
        sizes.append([width, height])
        media.append(Member(f"{key}.{number}.{extension}", len(content), [content]))
    return {"kind": "images", "sizes": sizes}, media


def _read_image(path: Path, name: str, settings: MediaSettings) -> tuple[bytes, str, int, int]:
    """(content, extension by content, width, height in pixels as stored).

    Check `header`: the header and the end mark are looked at, and only a file without an end mark is decoded; `decode`:
    all are.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(error) from error
    extension, width, height = header(content, settings.max_pixels, name)
    if settings.check == "decode" or not is_whole(content, extension):
        open_with_extension(content, settings.max_pixels, name)
    return content, extension, width, height


def _video(path: Path, key: str, name: str, settings: MediaSettings) -> tuple[dict[str, Any], list[Member]]:
    from aurora_ds.data.video import probe
    from aurora_ds.data.video_storage import frames_as_jpeg, reencode

    try:
        info = probe(path, name, settings.max_pixels)
        source = {
            "seconds": info.seconds,
            "frames": info.frames,
            "fps": info.fps,
            "width": info.width,
            "height": info.height,
        }
        if settings.video_frames is not None:
            frames = frames_as_jpeg(path, settings.video_frames, settings.size, name, settings.max_pixels)
            width, height = header(frames[0][1], settings.max_pixels, name)[1:]
            fields = {
                "kind": "frames",
                "width": width,
                "height": height,
                "frame_seconds": [seconds for seconds, _ in frames],
                "source": source,
            }
            return fields, [
                Member(f"{key}.{number:03d}.jpg", len(jpeg), [jpeg])
                for number, (_, jpeg) in enumerate(frames)
            ]
        if settings.video_reencode:
            content = reencode(path, REENCODED_SECONDS, settings.size, name, settings.max_pixels)
            stored = probe(content, name, settings.max_pixels)
            fields = {**source, "frames": stored.frames, "width": stored.width, "height": stored.height}
            return {"kind": "video", **fields, "source": source}, [
                Member(f"{key}.mp4", len(content), [content])
            ]
        if settings.check == "decode":
            _decode_all(path, name, settings)
        return {"kind": "video", **source}, [
            Member(f"{key}.{info.extension}", path.stat().st_size, _blocks(path))
        ]
    except OSError as error:
        raise _unreadable(error) from error


def _decode_all(path: Path, name: str, settings: MediaSettings) -> None:
    from aurora_ds.data.video_pyav import open_clip

    with open_clip(path, name, settings.max_pixels) as clip:
        for _ in clip.each(range(len(clip))):
            pass


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> BadSample:
    return BadSample(f"the file cannot be read: {error.strerror or error}", reason="decode")
