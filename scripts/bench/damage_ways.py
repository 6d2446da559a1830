"""The ways in which damage.py damages a folder of shards: name -> function(folder, random), in WAYS."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

WAYS: dict[str, Callable[[Path, random.Random], None]] = {}


def way(name: str) -> Callable:
    """Adds a function (folder, random) to WAYS."""

    def add(function: Callable[[Path, random.Random], None]) -> Callable:
        WAYS[name] = function
        return function

    return add


class _Member(NamedTuple):
    header: int
    content: int
    end: int  # of the content; padding follows
    next: int
    name: str


def _shard(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(folder.glob("train-*.tar")))


def _members(path: Path) -> list[_Member]:
    with tarfile.open(path) as tar:
        return [
            _Member(
                m.offset,
                m.offset_data,
                m.offset_data + m.size,
                m.offset_data + -(-m.size // 512) * 512,
                m.name,
            )
            for m in tar
        ]


def _flip(path: Path, first: int, end: int, draw: random.Random, most: int = 5) -> None:
    content = bytearray(path.read_bytes())
    for place in draw.sample(range(first, end), min(draw.randint(1, most), end - first)):
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@way("bits in a picture")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    member = draw.choice(_members(path)[1::2])
    _flip(path, member.content, member.end, draw)


@way("bits in a record")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    member = draw.choice(_members(path)[::2])
    _flip(path, member.content, member.end, draw)


@way("bits in a tar header")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    member = draw.choice(_members(path))
    _flip(path, member.header, member.content, draw)


@way("bits in padding")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    member = draw.choice([member for member in _members(path) if member.next > member.end])
    _flip(path, member.end, member.next, draw)


@way("bits behind the last sample")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    _flip(path, _members(path)[-1].next, path.stat().st_size, draw)


@way("bits anywhere in three shards")
def _(folder: Path, draw: random.Random) -> None:
    for path in draw.sample(sorted(folder.glob("*.tar")), 3):
        _flip(path, 0, path.stat().st_size, draw, most=20)


@way("a block of zeros")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    content = bytearray(path.read_bytes())
    start = draw.randrange(_members(path)[-1].end)
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


@way("cut short")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    os.truncate(path, draw.randrange(1, path.stat().st_size))


@way("bytes lost in the middle")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    content, lost = path.read_bytes(), draw.choice([1, 512, 4096])
    start = draw.randrange(len(content) - lost)
    path.write_bytes(content[:start] + content[start + lost :])


@way("two samples exchanged")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    content, members = path.read_bytes(), _members(path)
    first, second = sorted(draw.sample(range(len(members) // 2), 2))
    parts = [content[members[2 * n].header : members[2 * n + 1].next] for n in range(len(members) // 2)]
    parts[first], parts[second] = parts[second], parts[first]
    path.write_bytes(b"".join(parts) + content[members[-1].next :])


@way("two pictures exchanged")
def _(folder: Path, draw: random.Random) -> None:
    # Of the same size in blocks where there are such: then all offsets still fit.
    path = _shard(folder, draw)
    content, members = bytearray(path.read_bytes()), _members(path)
    first, second = draw.sample(members[1::2], 2)
    one, two = (content[m.content : m.next] for m in (first, second))
    length = min(len(one), len(two))
    content[first.content : first.content + length] = two[:length]
    content[second.content : second.content + length] = one[:length]
    path.write_bytes(content)


@way("record behind its picture")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    content, members = path.read_bytes(), _members(path)
    number = draw.randrange(len(members) // 2)
    record, picture = members[2 * number : 2 * number + 2]
    middle = content[picture.header : picture.next] + content[record.header : record.next]
    path.write_bytes(content[: record.header] + middle + content[picture.next :])


@way("two shards exchanged")
def _(folder: Path, draw: random.Random) -> None:
    one, two = draw.sample(sorted(folder.glob("*.tar")), 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


@way("an empty file")
def _(folder: Path, draw: random.Random) -> None:
    _shard(folder, draw).write_bytes(b"")


@way("not a tar")
def _(folder: Path, draw: random.Random) -> None:
    path = _shard(folder, draw)
    size = path.stat().st_size
    page = b"<html><body>502 Bad Gateway</body></html>\n"
    content = [
        draw.randbytes(size),
        bytes(size),
        page * (size // len(page)),
        gzip.compress(path.read_bytes()),
    ]
    path.write_bytes(draw.choice(content))


@way("a shard is missing")
def _(folder: Path, draw: random.Random) -> None:
    _shard(folder, draw).unlink()


@way("a shard too many")
def _(folder: Path, draw: random.Random) -> None:
    shutil.copy(_shard(folder, draw), folder / "train-000099.tar")


@way("bits in the manifest")
def _(folder: Path, draw: random.Random) -> None:
    path = folder / "manifest.json"
    _flip(path, 0, path.stat().st_size, draw, most=3)


@way("the manifest cut short")
def _(folder: Path, draw: random.Random) -> None:
    os.truncate(folder / "manifest.json", draw.randrange((folder / "manifest.json").stat().st_size - 3))


@way("a wrong number in the manifest")
def _(folder: Path, draw: random.Random) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    entry = draw.choice(content["splits"]["train"]["shards"])
    field_name = draw.choice(["samples", "pairs", "bytes", "counts", "sha256", "file"])
    if field_name == "counts":
        entry["counts"]["captions"] += 1
    elif field_name in ("sha256", "file"):
        entry[field_name] = draw.choice(content["splits"]["train"]["shards"])[field_name]
        entry[field_name] = entry[field_name].replace("0", "1")
    else:
        entry[field_name] += draw.choice([-1, 1, 512])
    (folder / "manifest.json").write_text(json.dumps(content))


@way("two manifest entries exchanged")
def _(folder: Path, draw: random.Random) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    shards = content["splits"]["train"]["shards"]
    first, second = draw.sample(range(len(shards)), 2)
    shards[first], shards[second] = shards[second], shards[first]
    (folder / "manifest.json").write_text(json.dumps(content))


@way("a shard is not in the manifest")
def _(folder: Path, draw: random.Random) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    split = content["splits"]["train"]
    gone = split["shards"].pop(draw.randrange(len(split["shards"])))
    split["samples"] -= gone["samples"]
    split["pairs"] -= gone["pairs"]
    (folder / "manifest.json").write_text(json.dumps(content))


@way("bits in the index's header")
def _(folder: Path, draw: random.Random) -> None:
    path = folder / "index.safetensors"
    _flip(path, 0, _header_end(path), draw, most=2)


@way("bits in the index's numbers")
def _(folder: Path, draw: random.Random) -> None:
    path = folder / "index.safetensors"
    _flip(path, _header_end(path), path.stat().st_size, draw, most=2)


def _header_end(index: Path) -> int:
    return 8 + int.from_bytes(index.read_bytes()[:8], "little")


@way("the index cut short or gone")
def _(folder: Path, draw: random.Random) -> None:
    path = folder / "index.safetensors"
    if draw.random() < 0.2:
        path.unlink()
    else:
        os.truncate(path, draw.randrange(path.stat().st_size))


@way("numbers of the index exchanged")
def _(folder: Path, draw: random.Random) -> None:
    path = folder / "index.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name.startswith("train/")}
    _exchange(path, tensors[draw.choice(sorted(tensors))], draw)


@way("annotation counts within a shard exchanged")
def _(folder: Path, draw: random.Random) -> None:
    # Their sum stays right, so nothing shows but in the records themselves.
    path = folder / "index.safetensors"
    counts = load_file(path)["train/counts/captions"]
    first = draw.randrange(len(counts) // 8) * 8
    _exchange(path, counts, draw, range(first, first + 8))


def _exchange(path: Path, tensor: np.ndarray, draw: random.Random, among: range | None = None) -> None:
    content = bytearray(path.read_bytes())
    start, changed = content.index(tensor.tobytes(), _header_end(path)), tensor.copy()
    while (changed == tensor).all():
        first, second = draw.sample(among or range(len(changed)), 2)
        changed[[first, second]] = changed[[second, first]]
    content[start : start + changed.nbytes] = changed.tobytes()
    path.write_bytes(content)
