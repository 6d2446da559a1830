"""Samples out of tar shards by number: one positioned read per sample, at the offset that the manifest gives.

A sample's tar members are KEY.json, then its media: KEY.jpg, KEY.mp4, …, or KEY.0.jpg, KEY.1.png, … when there are
several. Tar headers other than those that we write are parsed by the standard library, and nothing is ever extracted:
only regular members with a plain name and a listed type are accepted, no name becomes a path, and JSON is all that is
interpreted here.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from aurora_ds.data.bad_sample import BadSample as BadSample
from aurora_ds.data.bad_sample import Reason as Reason
from aurora_ds.data.manifest import Manifest, SampleAddress
from aurora_ds.data.tar_header import plain_member

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
IMAGE_TYPES = ("jpg", "png", "webp", "gif", "bmp")
VIDEO_TYPES = ("mp4", "webm", "mkv", "avi", "mov", "m4v", "mpg", "flv", "wmv", "3gp", "ts")
RECORD_SCHEMA = 1
T = TypeVar("T")

Kind = Literal["image", "images", "video", "frames"]


@dataclass(frozen=True)
class Part:
    """One medium as it came, and the extension (without dot) that fits its content."""

    extension: str
    content: bytes


@dataclass(frozen=True)
class Sample:
    """The record (the JSON member) and the media beside it: one, the pictures of a set, or a clip's frames in order."""

    key: str
    record: dict[str, Any]
    parts: tuple[Part, ...]

    @property
    def kind(self) -> Kind:
        """What the media are: the record's "kind"; one of an older shard, without it, goes by the extension."""
        return self.record.get("kind") or ("video" if self.parts[0].extension in VIDEO_TYPES else "image")

    @property
    def media(self) -> bytes:
        """The bytes of the only medium. Raises BadSample when there are several."""
        return self._only_part().content

    @property
    def extension(self) -> str:
        """The extension of the only medium. Raises BadSample when there are several."""
        return self._only_part().extension

    def _only_part(self) -> Part:
        if len(self.parts) != 1:
            raise BadSample(
                f"Sample {self.key} holds {len(self.parts)} media ({self.kind}), where one is expected.",
                "not_a_sample",
            )
        return self.parts[0]


class ShardReader:
    """Random access to the samples of a manifest. The `most_open` files used last stay open; forks are safe."""

    def __init__(self, manifest: Manifest, most_open: int = 16):
        self.manifest = manifest
        self._store = manifest.store
        self._most_open = most_open
        self._handles: OrderedDict[str, int] = OrderedDict()

    def read(self, split: str, medium: int) -> Sample:
        """Medium number `medium` of the split. Raises BadSample when its bytes are not a sample."""
        address = self.manifest.address(split, medium)
        return self._renewing(address.shard, lambda: self._read(split, medium, address))

    def _read(self, split: str, medium: int, address: SampleAddress) -> Sample:
        block = self._bytes(address, address.end - address.start)
        _check_sum(block, int(self.manifest.checksums(split)[medium]), address)
        sample = parse_sample(block, address)
        self._check_counts(split, medium, sample.record, address)
        return sample

    def record(self, split: str, medium: int) -> tuple[str, dict[str, Any]]:
        """(key, record) without reading the medium: the record is the first member of a sample."""
        address = self.manifest.address(split, medium)
        return self._renewing(address.shard, lambda: self._read_record(split, medium, address))

    def _read_record(self, split: str, medium: int, address: SampleAddress) -> tuple[str, dict[str, Any]]:
        # Most records fit into one small read; a longer one is read again in full.
        block = self._bytes(address, min(4096, address.end - address.start))
        name, size = _member(block, 0, address)
        if address.start + _after(0, size) > address.end:
            raise _reaches_beyond(name, address)
        end = _after(0, size)
        if end > len(block):
            block = self._bytes(address, end)
        _check_sum(block[:end], int(self.manifest.checksums(split, "record")[medium]), address)
        record = _record(name, block[BLOCK : BLOCK + size], address)
        self._check_counts(split, medium, record, address)
        return name.partition(".")[0], record

    def expect(self, split: str, media: Iterable[int]) -> None:
        """Begins to bring the shards of these media near, which will be read next."""
        shards = dict.fromkeys(self.manifest.address(split, medium).shard for medium in media)
        self._store.expect(shard for shard in shards if shard not in self._handles)

    def extensions(self, split: str, medium: int) -> list[str]:
        """The media types of a sample, by the names of its members; no medium is read. Raises BadSample."""
        address = self.manifest.address(split, medium)
        found, place = [], address.start
        while place < address.end:
            name, size = _member(self._bytes(address._replace(start=place), BLOCK), 0, address)
            found.append(name.rpartition(".")[2])
            place += _after(0, size)
        return found[1:]

    def _renewing(self, shard: str, read: Callable[[], T]) -> T:
        """read(); once more when the store's copy of the shard turns out to be damaged and can be replaced."""
        try:
            return read()
        except BadSample:
            handle = self._handles.get(shard)
            if handle is None or not self._store.renew(shard, handle):
                raise
        os.close(self._handles.pop(shard))
        return read()

    def _check_counts(self, split: str, medium: int, record: dict[str, Any], address: SampleAddress) -> None:
        """An index with other counts would number the pairs in another way than the run before."""
        for kind in self.manifest.kinds(split):
            found, expected = record.get(kind, []), int(self.manifest.annotation_counts(split, kind)[medium])
            if not isinstance(found, list) or len(found) != expected:
                raise BadSample(
                    f"{address.shard}: the record at byte {address.start} does not have the {expected} {kind} that the "
                    "index says. They do not belong together; `aurora-ds shards verify` lists all damage.",
                    "record",
                )

    def close(self) -> None:
        """Closes all files; reading opens them again."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _bytes(self, address: SampleAddress, size: int) -> bytes:
        handle = self._handles.get(address.shard)
        if handle is None:
            handle = self._store.open(address.shard)
            self._handles[address.shard] = handle
            if len(self._handles) > self._most_open:
                os.close(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(address.shard)
        try:
            block = os.pread(handle, size, address.start)
        except OSError as error:
            raise BadSample(
                f"{address.shard} at byte {address.start} cannot be read: {error.strerror}.", "unreachable"
            ) from error
        if len(block) != size:
            raise BadSample(
                f"{address.shard} ends inside the sample at byte {address.start}: the file was cut. Copy or "
                "convert it again; `aurora-ds shards verify` lists all damage.",
                "shard_cut",
            )
        return block


def _check_sum(block: bytes, crc32: int, address: SampleAddress) -> None:
    if zlib.crc32(block) != crc32:
        name = key_of(block)
        raise BadSample(
            f"{address.shard}: the sample at byte {address.start} ({name or 'its key is unreadable'}) is not what was "
            "written: its checksum differs. The file is damaged or not the one the manifest describes; `aurora-ds "
            "shards verify` lists all damage.",
            "checksum",
        )


def key_of(block: bytes) -> str | None:
    """The key of the sample that begins with these bytes, if its tar header can be read."""
    try:
        key = tarfile.TarInfo.frombuf(block[:BLOCK], "utf-8", "strict").name.partition(".")[0]
    except (tarfile.HeaderError, ValueError):
        return None
    return key if key and key.isprintable() else None


def parse_sample(block: bytes, address: SampleAddress) -> Sample:
    """The tar bytes of one sample (its members, nothing else) -> Sample. Raises BadSample."""
    name, size = _member(block, 0, address)
    record = _record(name, _content(block, 0, name, size, address), address)
    key = name.partition(".")[0]
    numbers, parts, position = [], [], _after(0, size)
    while position < len(block):
        name, size = _member(block, position, address)
        stem, _, extension = name.rpartition(".")
        if extension not in IMAGE_TYPES + VIDEO_TYPES:
            raise BadSample(
                f"{address.shard}: member {name!r} is of a type that samples do not have.", "not_a_sample"
            )
        owner, _, number = stem.partition(".")
        if owner != key:
            raise BadSample(
                f"{address.shard}: member {name!r} stands among those of sample {key}.", "not_a_sample"
            )
        numbers.append(number)
        parts.append(Part(extension, _content(block, position, name, size, address)))
        position = _after(position, size)
    sample = Sample(key, record, tuple(parts))
    if not parts or numbers not in _numberings(sample):
        raise BadSample(
            f"{address.shard}: sample {key} is of kind {record.get('kind', 'image or video')!r}, but bytes "
            f"{address.start} to {address.end} hold {len(parts)} media that are not named as one.",
            "not_a_sample",
        )
    return sample


def _numberings(sample: Sample) -> list[list[str]]:
    """What may stand between key and extension of a sample's media, given its kind; nothing for a wrong type."""
    types = (*VIDEO_TYPES, "gif") if sample.kind == "video" else IMAGE_TYPES
    if any(part.extension not in types for part in sample.parts):
        return []
    if sample.kind in ("image", "video"):
        return [[""]]
    total = range(len(sample.parts))
    return [[f"{number:0{digits}d}" for number in total] for digits in range(1, 7)]


def _content(block: bytes, position: int, name: str, size: int, address: SampleAddress) -> bytes:
    """The bytes of the member whose header stands at `position`."""
    start = position + BLOCK
    if start + size > len(block):
        raise _reaches_beyond(name, address)
    return block[start : start + size]


def _after(position: int, size: int) -> int:
    """Where the header after this member stands."""
    return position + BLOCK + -(-size // BLOCK) * BLOCK


def _reaches_beyond(name: str, address: SampleAddress) -> BadSample:
    return BadSample(
        f"{address.shard}: member {name!r} reaches beyond its sample at byte {address.start}.", "not_a_sample"
    )


def _member(block: bytes, position: int, address: SampleAddress) -> tuple[str, int]:
    """(name, size) of the tar member whose header stands at `position`."""
    name, size = plain_member(block[position : position + BLOCK]) or _any_member(block, position, address)
    if not name.isprintable() or name.startswith(".") or "/" in name or "\\" in name:
        raise _no_plain_file(name, address)
    return name, size


def _any_member(block: bytes, position: int, address: SampleAddress) -> tuple[str, int]:
    """The same by the standard library, for headers that another program wrote, or that are none."""
    try:
        header = tarfile.TarInfo.frombuf(block[position : position + BLOCK], "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise BadSample(
            f"{address.shard} has no tar header at byte {address.start + position} ({error}). The file is "
            "damaged or not the one the manifest describes; `aurora-ds shards verify` lists all damage.",
            "not_a_sample",
        ) from error
    # isreg() would let sparse members pass: their size in the header is not that of their content.
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or header.size < 0:
        raise _no_plain_file(header.name, address)
    return header.name, header.size


def _no_plain_file(name: str, address: SampleAddress) -> BadSample:
    return BadSample(
        f"{address.shard}: member {name!r} is not a file with a plain name; it is not read.", "not_a_sample"
    )


def _record(name: str, content: bytes, address: SampleAddress) -> dict[str, Any]:
    if name.count(".") != 1 or not name.endswith(".json"):
        raise BadSample(
            f"{address.shard}: the sample at byte {address.start} begins with {name!r}, not with its record.",
            "not_a_sample",
        )
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{address.shard}: {name} is not JSON ({error}).", "record") from error
    if not isinstance(record, dict) or record.get("schema") != RECORD_SCHEMA:
        raise BadSample(f"{address.shard}: {name} is not a record of schema {RECORD_SCHEMA}.", "record")
    if record.get("kind", "image") not in get_args(Kind):
        raise BadSample(
            f"{address.shard}: {name} is of kind {record['kind']!r}; this version reads "
            f"{', '.join(get_args(Kind))}.",
            "record",
        )
    return record
