"""One shard: media and their records into a tar, written under a temporary name, synced, then renamed.

Bytes depend on the media and their order only: no times, owners or modes of the source go in. Beside each shard a
sidecar in .progress/ keeps its manifest entry, its part of the index and its rejects, so a stopped conversion goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aurora_ds.data.convert.entries import Reject
from aurora_ds.data.convert.samples import MediaSettings, Member, members
from aurora_ds.data.convert.spool import SpooledMedium
from aurora_ds.data.manifest import ShardEntry
from aurora_ds.data.reader import BadSample
from aurora_ds.data.tar_header import tar_header
from aurora_ds.durable import sync_folder
from aurora_ds.errors import AuroraError

PROGRESS_FOLDER = ".progress"
WRITE_BEHIND = 8 << 20  # bytes after which the disk is asked to begin
_RECORD_SIZE = 20 * tarfile.BLOCKSIZE  # tar files are padded to whole records


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to write one shard."""

    split: str
    number: int
    media: tuple[SpooledMedium, ...]
    output: Path
    settings: MediaSettings

    @property
    def file(self) -> str:
        """Name of the tar."""
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class ShardResult:
    """The manifest entry of a shard that is whole, and what could not go into it (`rejected`: their numbers)."""

    entry: ShardEntry
    rejects: list[Reject]
    rejected: frozenset[int] = frozenset()


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
    # A worker that outlives a killed conversion must not touch the file of the next one.
    temporary = task.output / f".{task.file}.{socket.gethostname()}-{os.getpid()}.partial"
    rejects: list[Reject] = []
    rejected: set[int] = set()
    offsets: list[int] = [0]
    counts: list[dict[str, int]] = []
    checksums: list[tuple[int, int]] = []
    # Media are larger than the buffer and pass it by; headers and records wait in it.
    with open(temporary, "wb", buffering=1 << 16) as raw:
        file = _HashedTar(raw)
        for medium in task.media:
            try:
                file.start_sample()
                with file.undone_on_error():
                    for member in members(medium, task.split, task.settings):
                        file.add(member)
            except BadSample as error:
                rejects.append(Reject(task.split, medium.media_id, str(error)))
                rejected.add(medium.number)
                continue
            offsets.append(file.size)
            checksums.append((file.crc32, file.record_crc32))
            counts.append({kind: len(values) for kind, values in medium.annotations.items()})
        file.finish()
        raw.flush()
        os.fsync(raw.fileno())
    kinds = sorted({kind for each in counts for kind in each})
    by_kind = {kind: [each.get(kind, 0) for each in counts] for kind in kinds}
    totals = {kind: sum(numbers) for kind, numbers in by_kind.items()}
    entry = ShardEntry(
        file=task.file,
        samples=len(counts),
        pairs=sum(totals.values()),
        bytes=file.size,
        sha256=file.sha256.hexdigest(),
        counts=totals,
    )
    content = {
        "entry": entry.model_dump(),
        "offsets": offsets,
        "counts": by_kind,
        "crc32": [whole for whole, _ in checksums],
        "record_crc32": [record for _, record in checksums],
        "rejects": [vars(reject) for reject in rejects],
    }
    # The sidecar first: a tar under its own name always has one. It is not synced: one that a power cut leaves empty
    # only means that its shard is written again.
    unfinished = temporary.with_name(PROGRESS_FOLDER) / f"{temporary.name}.json.partial"
    unfinished.write_bytes(json.dumps(content).encode())
    os.replace(unfinished, sidecar(task.output, task.file))
    os.replace(temporary, task.output / task.file)
    sync_folder(task.output)
    return ShardResult(entry, rejects, frozenset(rejected))


def finished(task: ShardTask) -> ShardResult | None:
    """The result of a shard that an earlier run wrote in full and without rejects, else None.

    One with rejects is written again: their media may be repaired by now.
    """
    tar = task.output / task.file
    if not (tar.is_file() and sidecar(task.output, task.file).is_file()):
        return None
    try:
        content = read_sidecar(task.output, task.file)
    except json.JSONDecodeError:  # emptied by a power cut
        return None
    entry = ShardEntry.model_validate(content["entry"])
    if content["rejects"] or tar.stat().st_size != entry.bytes:
        return None
    return ShardResult(entry, [])


def sidecar(output: Path, file: str) -> Path:
    """Where the sidecar of a shard is."""
    return output / PROGRESS_FOLDER / f"{file}.json"


def read_sidecar(output: Path, file: str) -> dict[str, Any]:
    """{"entry", "offsets", "counts": {kind: [...]}, "crc32", "record_crc32", "rejects"} of a shard."""
    return json.loads(sidecar(output, file).read_text(encoding="utf-8"))


def remove_partial_files(output: Path) -> None:
    """Removes what killed conversions left unfinished. Only for the holder of the folder's lock."""
    for folder in (output, output / PROGRESS_FOLDER):
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)


class _HashedTar:
    """A tar in the making: its size and checksum as it grows, and those of the sample that is being added."""

    def __init__(self, file: BinaryIO):
        self._file, self.size, self.sha256 = file, 0, hashlib.sha256()
        self._asked = 0
        self.start_sample()

    def start_sample(self) -> None:
        """What is added from here on is a sample: its record, then its media."""
        self._members, self.crc32, self.record_crc32 = 0, 0, 0

    def add(self, member: Member) -> None:
        self._write(tar_header(member.name, member.size))
        end = self.size + member.size
        for block in _up_to(member.blocks, member.size):
            self._write(block)
        if self.size != end:
            raise BadSample("the file became shorter while it was read", reason="decode")
        self._write(bytes(-member.size % tarfile.BLOCKSIZE))
        self._members += 1
        if self._members == 1:
            self.record_crc32 = self.crc32

    def undone_on_error(self) -> _Undo:
        """A block that adds all of its members, or none when it raises BadSample."""
        return _Undo(self)

    def finish(self) -> None:
        """The two empty blocks that end a tar, and padding."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self.size + end) % _RECORD_SIZE))

    def cut(self, size: int, sha256: Any) -> None:
        self._file.seek(size)
        self._file.truncate()
        self.size, self.sha256 = size, sha256
        self._asked = min(self._asked, size)

    def _write(self, block: bytes) -> None:
        self._file.write(block)
        self.sha256.update(block)
        self.crc32 = zlib.crc32(block, self.crc32)
        self.size += len(block)
        if self.size >= self._asked + WRITE_BEHIND:
            self._file.flush()
            # Linux begins to write what is dirty and returns: the sync at the end then waits for little.
            os.posix_fadvise(
                self._file.fileno(), self._asked, self.size - self._asked, os.POSIX_FADV_DONTNEED
            )
            self._asked = self.size


class _Undo:
    def __init__(self, tar: _HashedTar):
        self._tar = tar

    def __enter__(self) -> None:
        self._size, self._sha256 = self._tar.size, self._tar.sha256.copy()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, BadSample) and self._tar.size != self._size:
            self._tar.cut(self._size, self._sha256)


def _up_to(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The blocks, but nothing that a growing file has beyond `size`."""
    for block in blocks:
        if len(block) > size:
            raise BadSample("the file became longer while it was read", reason="decode")
        size -= len(block)
        yield block
