"""index.safetensors beside manifest.json: where each sample starts in its shard, its checksums and its annotations.

    SPLIT/offsets       int64 (samples + shards,): per shard the first byte of each sample, then the end of the last
    SPLIT/counts/KIND   int32 (samples,): annotations of the kind (captions, questions, …) of each sample
    SPLIT/crc32         uint32 (samples,): checksum of each sample's bytes, by which every read notices damage
    SPLIT/crc32/record  uint32 (samples,): the same of its first member alone, with header and padding

The file is mapped, not read: what a plan does not touch costs nothing, and processes share the pages.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aurora_ds.errors import AuroraError

INDEX_NAME = "index.safetensors"
_TYPES = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "U32": np.dtype("<u4")}
_MOST_HEADER = 1 << 20  # bytes


@dataclass(frozen=True)
class IndexPart:
    """One tensor to write: its values come in blocks, so that they need not be in memory together."""

    name: str
    dtype: str
    length: int
    blocks: Iterable[np.ndarray]


class WrittenIndex(NamedTuple):
    """What a manifest keeps of its index; crc32: by tensor."""

    bytes: int
    sha256: str
    crc32: dict[str, int]


class ShardIndex(Mapping[str, np.ndarray]):
    """Tensors by name, one-dimensional."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = dict(tensors)

    @classmethod
    def open(cls, path: Path) -> ShardIndex:
        """Maps the file. Raises AuroraError when it is missing or not such an index."""
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(_MOST_HEADER, size - 8):
                    raise _broken(path, "its header has no length")
                header = json.loads(file.read(length))
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise AuroraError(
                f"{path} cannot be read: {error.strerror}. It belongs to manifest.json: copy both, or convert the "
                "dataset again."
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _broken(path, f"its header is not JSON ({error})") from error
        tensors = {}
        for name, described in header.items():
            if name == "__metadata__":
                continue
            try:
                dtype, (count,) = _TYPES[described["dtype"]], described["shape"]
                first, end = described["data_offsets"]
                if not (0 <= first and end - first == count * dtype.itemsize and 8 + length + end <= size):
                    raise ValueError("its bytes are not all there")
                tensors[name] = np.frombuffer(content, dtype, count, 8 + length + first)
            except (KeyError, TypeError, ValueError) as error:
                raise _broken(path, f"tensor {name}: {error}") from error
        return cls(tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def parts(self) -> list[IndexPart]:
        """The tensors as write_index takes them."""
        types = {dtype: name for name, dtype in _TYPES.items()}
        return [IndexPart(name, types[tensor.dtype], len(tensor), [tensor]) for name, tensor in self.items()]


def write_index(path: Path, parts: list[IndexPart]) -> WrittenIndex:
    """Writes the file in full or not at all, block by block."""
    header, end, crc32 = {}, 0, dict.fromkeys((part.name for part in parts), 0)
    for part in parts:
        first, end = end, end + part.length * _TYPES[part.dtype].itemsize
        header[part.name] = {"dtype": part.dtype, "shape": [part.length], "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as the format asks
    digest, size = hashlib.sha256(), 0
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:

        def put(block: bytes | memoryview) -> None:
            nonlocal size
            file.write(block)
            digest.update(block)
            size += len(block)

        put(len(text).to_bytes(8, "little") + text)
        for part in parts:
            for block in part.blocks:
                content = np.ascontiguousarray(block, dtype=_TYPES[part.dtype]).tobytes()
                crc32[part.name] = zlib.crc32(content, crc32[part.name])
                put(content)
        if size != 8 + len(text) + end:
            raise ValueError(f"{path.name}: blocks of {size} bytes for a header of {8 + len(text) + end}")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return WrittenIndex(size, digest.hexdigest(), crc32)


def _broken(path: Path, reason: str) -> AuroraError:
    return AuroraError(
        f"{path} is not the index that its manifest describes: {reason}. It was changed or cut after it was written; "
        "copy it again, or convert the dataset again."
    )
