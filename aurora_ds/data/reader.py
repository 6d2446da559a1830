"""Samples out of tar shards by number: one positioned read per sample, at the offset that the manifest gives.

Tar headers are parsed by the standard library, but nothing is ever extracted: only regular members KEY.json and
KEY.<known media type> are accepted, and JSON is the only format that is interpreted.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from aurora_ds.data.manifest import Manifest, SampleAddress
from aurora_ds.errors import AuroraError

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
IMAGE_TYPES = ("jpg", "png", "webp")
VIDEO_TYPES = ("mp4", "webm", "mkv", "avi", "mov")
RECORD_SCHEMA = 1


class BadSample(AuroraError):
    """One sample cannot be used (damaged, unreadable, too large). data.bad_samples=skip puts another in its place."""


@dataclass(frozen=True)
class Sample:
    """A medium as it came, and its record: the JSON beside it."""

    key: str
    extension: str
    media: bytes
    record: dict[str, Any]


class ShardReader:
    """Random access to the samples of a manifest. The `most_open` files used last stay open; forks are safe."""

    def __init__(self, manifest: Manifest, most_open: int = 16):
        self.manifest = manifest
        self._most_open = most_open
        self._handles: OrderedDict[str, int] = OrderedDict()

    def read(self, split: str, medium: int) -> Sample:
        """Medium number `medium` of the split. Raises BadSample when its bytes are not a sample."""
        address = self.manifest.address(split, medium)
        return parse_sample(self._bytes(address, address.end - address.start), address)

    def record(self, split: str, medium: int) -> tuple[str, dict[str, Any]]:
        """(key, record) without reading the medium: the record is the first member of a sample."""
        address = self.manifest.address(split, medium)
        # Most records fit into one small read; a longer one is read again in full.
        block = self._bytes(address, min(4096, address.end - address.start))
        name, size = _member(block, 0, address)
        if BLOCK + size > len(block):
            block = self._bytes(address, BLOCK + size)
        return name[: -len(".json")], _record(name, block[BLOCK : BLOCK + size], address)

    def close(self) -> None:
        """Closes all files; reading opens them again."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _bytes(self, address: SampleAddress, size: int) -> bytes:
        handle = self._handles.get(address.shard)
        if handle is None:
            path = self.manifest.folder / address.shard
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise AuroraError(
                    f"Shard {path} is in the manifest but not in the folder. Copy it there, or convert the "
                    "dataset again."
                ) from error
            except OSError as error:
                raise AuroraError(f"Shard {path} cannot be opened: {error.strerror}.") from error
            self._handles[address.shard] = handle
            if len(self._handles) > self._most_open:
                os.close(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(address.shard)
        try:
            block = os.pread(handle, size, address.start)
        except OSError as error:
            raise BadSample(
                f"{address.shard} at byte {address.start} cannot be read: {error.strerror}."
            ) from error
        if len(block) != size:
            raise BadSample(
                f"{address.shard} ends inside the sample at byte {address.start}: the file was cut. Copy or "
                "convert it again; `aurora-ds shards verify` lists all damage."
            )
        return block


def parse_sample(block: bytes, address: SampleAddress) -> Sample:
    """The tar bytes of one sample (its members, nothing else) -> Sample. Raises BadSample."""
    record, media, position = None, None, 0
    while position < len(block):
        name, size = _member(block, position, address)
        key, _, extension = name.partition(".")
        content = block[position + BLOCK : position + BLOCK + size]
        if len(content) != size:
            raise BadSample(
                f"{address.shard}: member {name} reaches beyond its sample at byte {address.start}."
            )
        if extension == "json":
            record = (key, _record(name, content, address))
        elif extension in IMAGE_TYPES + VIDEO_TYPES:
            media = (key, extension, content)
        else:
            raise BadSample(f"{address.shard}: member {name} is of a type that samples do not have.")
        position += BLOCK + -(-size // BLOCK) * BLOCK
    if record is None or media is None or record[0] != media[0]:
        raise BadSample(
            f"{address.shard}: bytes {address.start} to {address.end} are not one record and one medium."
        )
    return Sample(key=record[0], extension=media[1], media=media[2], record=record[1])


def _member(block: bytes, position: int, address: SampleAddress) -> tuple[str, int]:
    """(name, size) of the tar member whose header stands at `position`."""
    try:
        header = tarfile.TarInfo.frombuf(block[position : position + BLOCK], "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
        raise BadSample(
            f"{address.shard} has no tar header at byte {address.start + position} ({error}). The file is "
            "damaged or not the one the manifest describes; `aurora-ds shards verify` lists all damage."
        ) from error
    if not header.isreg() or "/" in header.name or "\\" in header.name or header.name.startswith("."):
        raise BadSample(f"{address.shard}: member {header.name!r} is not a plain file name; it is not read.")
    return header.name, header.size


def _record(name: str, content: bytes, address: SampleAddress) -> dict[str, Any]:
    try:
        record = json.loads(content) if name.endswith(".json") else None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadSample(f"{address.shard}: {name} is not JSON ({error}).") from error
    if not isinstance(record, dict) or record.get("schema") != RECORD_SCHEMA:
        raise BadSample(f"{address.shard}: {name} is not a record of schema {RECORD_SCHEMA}.")
    return record
