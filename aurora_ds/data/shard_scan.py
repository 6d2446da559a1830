"""One shard against its manifest entry: read once from start to end, with one sample in memory at a time."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from dataclasses import dataclass, field

import numpy as np

from aurora_ds.config import DataConfig
from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.decode import open_with_extension
from aurora_ds.data.manifest import SampleAddress, ShardEntry
from aurora_ds.data.reader import Part, Sample, key_of, parse_sample
from aurora_ds.data.store import ShardStore

READ_SIZE = 1 << 20  # bytes


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, or with one sample of a shard: its `number` in there, and its key if that is readable.

    `reason` is a word to count by: one of BadSample's, or size, padding, tar, counts, index, manifest, duplicate_key,
    missing, extra.
    """

    file: str
    reason: str
    message: str
    number: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        sample = "" if self.number is None else f", sample {self.number} ({self.key or 'key unreadable'})"
        return f"{self.file}{sample}: {self.message}"


@dataclass(frozen=True)
class ShardScan:
    """One shard to check, with its part of the index.

    offsets: int64 (samples + 1,). checksums: uint32 (samples,). counts[kind]: int32 (samples,).
    """

    store: ShardStore
    entry: ShardEntry
    offsets: np.ndarray
    checksums: np.ndarray
    counts: dict[str, np.ndarray]


@dataclass
class ScanResult:
    """The problems of a shard, and uint64 (n, 2): number and key_hash of every sample whose key can be read."""

    problems: list[Problem] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.uint64))


def scan_shard(scan: ShardScan) -> ScanResult:
    """All that is wrong with a shard. Every image is decoded, and every frame of every clip."""
    result, file = ScanResult(), scan.entry.file
    try:
        handle = scan.store.open(file)
    except BadSample as error:
        result.problems.append(Problem(file, error.reason, str(error)))
        return result
    try:
        _Scanner(scan, _Stream(handle), result).run()
    except OSError as error:
        message = f"it cannot be read: {error.strerror or error}"
        result.problems.append(Problem(file, "unreachable", message))
    finally:
        os.close(handle)
    return result


def check_media(sample: Sample) -> None:
    """Decodes all media of a sample, every frame of a clip; sizes must be those of the record. Raises BadSample."""
    record, sizes = sample.record, sample.record.get("sizes")
    if sizes is None:
        sizes = [[record.get("width"), record.get("height")]] * len(sample.parts)
    if not isinstance(sizes, list) or [len(each) for each in sizes if isinstance(each, list)] != [2] * len(
        sample.parts
    ):
        raise BadSample(
            f"its record does not have the size of each of its {len(sample.parts)} media", "record"
        )
    for part, (width, height) in zip(sample.parts, sizes, strict=True):
        found = _clip_size(part, sample.key) if sample.kind == "video" else _image_size(part, sample.key)
        if (width, height) not in (found, (None, None)):
            raise BadSample(
                f"it has {found[0]} x {found[1]} pixels, but its record says {width} x {height}", "record"
            )


def key_hash(key: str) -> int:
    """64 bits of a key: enough to find candidates for duplicates among many millions without keeping the keys."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


class _Scanner:
    def __init__(self, scan: ShardScan, stream: _Stream, result: ScanResult):
        self.scan, self.entry, self.stream, self.result = scan, scan.entry, stream, result
        self.member_keys: list[str] = []
        self.totals = dict.fromkeys(scan.entry.counts, 0)

    def run(self) -> None:
        if self.stream.size != self.entry.bytes:
            self._found("size", f"it has {self.stream.size} bytes, the manifest says {self.entry.bytes}")
        keys = [(number, self._sample(number)) for number in range(self.entry.samples)]
        hashed = [(number, key_hash(key)) for number, key in keys if key is not None]
        self.result.keys = np.array(hashed, dtype=np.uint64).reshape(-1, 2)
        samples_are_right = not self.result.problems
        self._end()
        # With damaged samples these would only say the same again.
        if samples_are_right:
            self._sums()

    def _sample(self, number: int) -> str | None:
        """Checks one sample. Returns its key, if that can be read."""
        start, end = (int(offset) for offset in self.scan.offsets[number : number + 2])
        if not 0 <= start < end <= self.entry.bytes:
            self._found("index", f"the index places it at bytes {start} to {end}", number)
            return None
        key = None
        try:
            block = self.stream.read(start, end)
            key = key_of(block)
            self._content(number, block, SampleAddress(self.entry.file, start, end))
        except BadSample as error:
            self._found(error.reason, str(error), number, key)
        return key

    def _content(self, number: int, block: bytes, address: SampleAddress) -> None:
        sample = parse_sample(block, address)
        check_media(sample)
        if zlib.crc32(block) != int(self.scan.checksums[number]):
            raise BadSample("its bytes are not those that were written", "checksum")
        for kind in self.totals:
            found = len(sample.record.get(kind, []))
            self.totals[kind] += found
            if found != self.scan.counts[kind][number]:
                raise BadSample(
                    f"it has {found} {kind}, the index says {self.scan.counts[kind][number]}", "record"
                )
        self.member_keys += [sample.key] * (1 + len(sample.parts))

    def _end(self) -> None:
        """What follows the last sample, and the checksum of it all."""
        samples_end = self.stream.hashed == self.scan.offsets[-1]
        after = self.stream.rest()
        if samples_end and after.strip(b"\0"):
            self._found("padding", "there is something behind its last sample")
        if self.stream.sha256.hexdigest() != self.entry.sha256:
            self._found("checksum", "its sha256 is not the manifest's")

    def _sums(self) -> None:
        """What a plain reader of tar files finds, and the manifest's sums."""
        try:
            found = [name.partition(".")[0] for name in self.stream.member_names()]
        except tarfile.TarError as error:
            self._found("tar", f"it is not a whole tar file ({error})")
        else:
            if found != self.member_keys:
                message = f"a tar reader finds {len(found)} members, the index leads to {len(self.member_keys)} others"
                self._found("tar", message)
        if self.totals != self.entry.counts:
            self._found("counts", f"it has {self.totals}, the manifest says {self.entry.counts}")

    def _found(self, reason: str, message: str, number: int | None = None, key: str | None = None) -> None:
        self.result.problems.append(Problem(self.entry.file, reason, message, number, key))


class _Stream:
    """A file read forward, hashed on the way up to byte `hashed`. What is read out of order is hashed in its turn."""

    def __init__(self, handle: int):
        self._handle, self.hashed, self.sha256 = handle, 0, hashlib.sha256()
        self.size = os.fstat(handle).st_size

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end). Raises BadSample when the file ends before."""
        if end > self.size:
            raise BadSample(
                f"the file ends at byte {self.size}, before the end of this sample at {end}", "shard_cut"
            )
        content = os.pread(self._handle, end - start, start)
        if start == self.hashed:
            self._hash(content)
        return content

    def rest(self) -> bytes:
        """Hashes what was not hashed yet, to the end; the first READ_SIZE bytes of it."""
        first = b""
        while block := os.pread(self._handle, READ_SIZE, self.hashed):
            first = first or block
            self._hash(block)
        return first

    def member_names(self) -> list[str]:
        """All members as the standard library finds them from the start. Raises tarfile.TarError."""
        os.lseek(self._handle, 0, os.SEEK_SET)
        with os.fdopen(os.dup(self._handle), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return tar.getnames()

    def _hash(self, block: bytes) -> None:
        self.sha256.update(block)
        self.hashed += len(block)


def _image_size(part: Part, key: str) -> tuple[int, int]:
    image, extension = open_with_extension(part.content, DataConfig().max_pixels, key)
    if extension != part.extension:
        raise BadSample(f"it is called .{part.extension}, but its content is .{extension}", "not_a_sample")
    return image.size


def _clip_size(part: Part, key: str) -> tuple[int, int]:
    from aurora_ds.data.video_pyav import open_clip

    with open_clip(part.content, key, DataConfig().max_pixels, jumps=False) as clip:
        for _ in clip.decoded(range(len(clip))):
            pass
        info = clip.info()
    return info.width, info.height
