"""One shard: media and their records into a tar, written under a temporary name, synced, then renamed.

Bytes depend on the media and their order only: no times, owners or modes of the source go in. Beside each shard in
progress a sidecar in .progress/ keeps its manifest entry and its rejects, so a stopped conversion continues.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aurora_ds.data.convert.annotations import Reject
from aurora_ds.data.convert.sources import SourceMedium
from aurora_ds.data.decode import open_with_extension
from aurora_ds.data.manifest import ShardEntry, sync_folder, write_whole
from aurora_ds.data.reader import RECORD_SCHEMA, BadSample
from aurora_ds.errors import AuroraError

PROGRESS_FOLDER = ".progress"
_RECORD_SIZE = 20 * tarfile.BLOCKSIZE  # tar files are padded to whole records


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to write one shard."""

    split: str
    number: int
    media: tuple[SourceMedium, ...]
    output: Path
    max_pixels: int

    @property
    def file(self) -> str:
        """Name of the tar."""
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class ShardResult:
    """The manifest entry of a shard that is whole, and what could not go into it."""

    entry: ShardEntry
    rejects: list[Reject]


def write_shard(task: ShardTask) -> ShardResult:
    """Writes the shard of `task` and its sidecar; a shard that is there and whole is left as it is."""
    done = finished(task)
    if done is not None:
        return done
    try:
        return _write(task)
    except OSError as error:
        raise AuroraError(
            f"{task.file} cannot be written to {task.output}: {error.strerror or error}. What is written so "
            "far is whole: make room, and the same command continues."
        ) from error


def _write(task: ShardTask) -> ShardResult:
    temporary = task.output / f".{task.file}.partial"
    rejects: list[Reject] = []
    offsets, counts = [0], []
    with open(temporary, "wb") as raw:
        file = _Hashed(raw)
        for source in task.media:
            members = _members(source, task)
            if isinstance(members, Reject):
                rejects.append(members)
                continue
            for name, content in members:
                file.add(name, content)
            offsets.append(file.size)
            counts.append(len(source.medium.captions))
        file.finish()
        raw.flush()
        os.fsync(raw.fileno())
    entry = ShardEntry(
        file=task.file,
        samples=len(counts),
        pairs=sum(counts),
        bytes=file.size,
        sha256=file.sha256.hexdigest(),
        offsets=offsets,
        counts={"captions": counts},
    )
    # The sidecar first: a tar under its own name always has one.
    content = {"entry": entry.model_dump(), "rejects": [vars(reject) for reject in rejects]}
    write_whole(_sidecar(task), json.dumps(content).encode())
    os.replace(temporary, task.output / task.file)
    sync_folder(task.output)
    return ShardResult(entry, rejects)


def finished(task: ShardTask) -> ShardResult | None:
    """The result of a shard that an earlier run wrote in full and without rejects, else None.

    One with rejects is written again: their images may be repaired by now.
    """
    tar, sidecar = task.output / task.file, _sidecar(task)
    if not (tar.is_file() and sidecar.is_file()):
        return None
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    entry = ShardEntry.model_validate(content["entry"])
    if content["rejects"] or tar.stat().st_size != entry.bytes:
        return None
    return ShardResult(entry, [])


def _sidecar(task: ShardTask) -> Path:
    return task.output / PROGRESS_FOLDER / f"{task.file}.json"


def _members(source: SourceMedium, task: ShardTask) -> list[tuple[str, bytes]] | Reject:
    """The record, then the medium as it came."""
    medium = source.medium
    if source.path is None:
        return Reject(task.split, medium.image, source.problem)
    try:
        content = source.path.read_bytes()
    except OSError as error:
        return Reject(task.split, medium.image, f"the file cannot be read: {error.strerror}")
    try:
        image, extension = open_with_extension(content, task.max_pixels, medium.image)
    except BadSample as error:
        return Reject(task.split, medium.image, str(error))
    record: dict[str, Any] = {
        "schema": RECORD_SCHEMA,
        "media_id": medium.image,
        "width": image.width,
        "height": image.height,
        "captions": medium.captions,
        **medium.extra,
    }
    # No dot in a key: WebDataset ends it at the first one.
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(medium.image).stem)[-48:].strip("_")
    key = f"{task.split}-{source.number:07d}-{stem}"
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return [(f"{key}.json", text.encode("utf-8")), (f"{key}.{extension}", content)]


class _Hashed:
    """A tar in the making: its size and checksum as it grows."""

    def __init__(self, file: BinaryIO):
        self._file, self.size, self.sha256 = file, 0, hashlib.sha256()

    def add(self, name: str, content: bytes) -> None:
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(content), 0o644
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """The two empty blocks that end a tar, and padding."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self.size + end) % _RECORD_SIZE))

    def _write(self, block: bytes) -> None:
        self._file.write(block)
        self.sha256.update(block)
        self.size += len(block)
