"""A look at an mp4's index before FFmpeg builds it: one that announces more samples than the file has bytes is refused.

The index can say "2**31 samples of one byte" in twelve bytes, and FFmpeg would allocate an entry for each of them.
Boxes: ISO/IEC 14496-12, 4.2 (box), 8.7.3 (stsz, stz2), 8.8.8 (trun).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from aurora_ds.data.bad_sample import BadSample

# Boxes in which FFmpeg looks for others.
FOLDERS = {
    b"moov",
    b"trak",
    b"mdia",
    b"minf",
    b"stbl",
    b"moof",
    b"traf",
    b"edts",
    b"udta",
    b"wave",
    b"tref",
    b"ipro",
}
DEEPEST = 10
ALWAYS_ALLOWED = 2_000_000  # old QuickTime counts the samples of compressed sound before compression
FIRST = (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot", b"uuid")


def check_index(file: BinaryIO, name: str) -> None:
    """Raises BadSample for an index that cannot fit the file; other files than mp4 pass. The place is back at 0."""
    length = file.seek(0, 2)
    file.seek(4)
    if file.read(4) in FIRST:
        for kind, start, end in _boxes(file, 0, length):
            count = _samples(file, kind, start, end)
            if count > max(length, ALWAYS_ALLOWED) or kind == b"cmov":
                what = f"lists {count} samples" if count else "is compressed"
                raise BadSample(
                    f"Clip {name} is damaged: its index {what}, and the file has {length} bytes. It was not opened.",
                    reason="decode",
                )
    file.seek(0)


def _boxes(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte, end) of the content of every box in the stretch, and of those inside them."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if size == 1:
            wide = file.read(8)
            size, body = struct.unpack(">Q", wide)[0] if len(wide) == 8 else 0, start + 16
        last = min(end, start + size) if size else end
        if last <= start or last < body:
            return
        yield kind, body, last
        if kind in FOLDERS and depth < DEEPEST:
            yield from _boxes(file, body, last, depth + 1)
        start = last


def _samples(file: BinaryIO, kind: bytes, start: int, end: int) -> int:
    """How many samples a box announces."""
    place = {b"stsz": 8, b"stz2": 8, b"trun": 4}.get(kind)
    if place is None or start + place + 4 > end:
        return 0
    file.seek(start + place)
    return struct.unpack(">I", file.read(4))[0]
