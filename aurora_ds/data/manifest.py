"""manifest.json and the index beside it (schema 1): what is in which tar shard of a folder, and at which byte.

A shard holds samples; a sample is one medium (image or clip) with its annotations. An annotation of a medium makes
one pair with it, for example (image, caption). Media and pairs of a split are numbered from 0 in shard order.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from aurora_ds.data.shard_index import INDEX_NAME, ShardIndex, write_index
from aurora_ds.data.store import LocalStore, ShardStore
from aurora_ds.durable import sync_folder, write_synced
from aurora_ds.errors import AuroraError

MANIFEST_NAME = "manifest.json"
SCHEMA = 1


class SampleAddress(NamedTuple):
    """Where a sample's tar members are: bytes [start, end) of `shard`."""

    shard: str
    start: int
    end: int


class ShardEntry(BaseModel):
    """One tar. `counts`: how many annotations of each kind (captions, questions, …) its samples have together."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(pattern=r"^[A-Za-z0-9_.+-]+\.tar$")
    samples: int = Field(ge=0)
    pairs: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    counts: dict[str, NonNegativeInt] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> ShardEntry:
        if self.pairs != sum(self.counts.values()):
            raise ValueError(f"{self.file}: {self.pairs} pairs, but its counts sum to something else")
        return self


class SplitEntry(BaseModel):
    """The shards of a split, in order, with the totals."""

    model_config = ConfigDict(extra="forbid")

    samples: int = Field(ge=0)
    pairs: int = Field(ge=0)
    shards: list[ShardEntry]

    @model_validator(mode="after")
    def _agree(self) -> SplitEntry:
        samples, pairs = sum(s.samples for s in self.shards), sum(s.pairs for s in self.shards)
        if (samples, pairs) != (self.samples, self.pairs):
            raise ValueError(
                f"shards sum to {samples} samples and {pairs} pairs, not {self.samples} and {self.pairs}"
            )
        return self

    @classmethod
    def of(cls, shards: list[ShardEntry]) -> SplitEntry:
        """A split of these shards, with their totals."""
        samples, pairs = sum(shard.samples for shard in shards), sum(shard.pairs for shard in shards)
        return cls(samples=samples, pairs=pairs, shards=shards)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of annotations that its samples have, sorted."""
        return tuple(sorted({kind for shard in self.shards for kind, count in shard.counts.items() if count}))

    @cached_property
    def first_media(self) -> np.ndarray:
        """int64 (shards + 1,): number of the first medium of each shard, then the total."""
        return np.cumsum([0, *(shard.samples for shard in self.shards)])


class IndexFile(BaseModel):
    """The file with the arrays of single samples, see shard_index.py. crc32: by tensor."""

    model_config = ConfigDict(extra="forbid")

    file: Literal["index.safetensors"] = INDEX_NAME
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    crc32: dict[str, int]


class Manifest(BaseModel):
    """A whole folder of shards. `origin` says from what and how it was converted; `files`: name -> sha256 of what lies
    beside the shards (ground truth, answer list)."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = Field(alias="schema")
    dataset: str
    licence: str = ""
    origin: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    index: IndexFile | None = None
    sha256: str = Field("", description="of the rest of manifest.json, for `shards verify`; see own_sha256")
    splits: dict[str, SplitEntry]
    _folder: Path = PrivateAttr(default=Path("."))
    _arrays: ShardIndex = PrivateAttr(default_factory=lambda: ShardIndex({}))
    _store: ShardStore | None = PrivateAttr(default=None)
    _checked_counts: dict[tuple[str, str], np.ndarray] = PrivateAttr(default_factory=dict)
    _pair_ends: dict[tuple[str, str], np.ndarray] = PrivateAttr(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where manifest.json is; the shards too, unless they are read from a URL."""
        return self._folder

    @property
    def store(self) -> ShardStore:
        """What opens the shards."""
        return self._store or LocalStore(self._folder)

    def read_from(self, store: ShardStore) -> None:
        """Takes the shards from `store` instead of `folder`."""
        self._store = store

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Reads and checks `folder`/manifest.json. Raises AuroraError if it is missing, broken or of another schema."""
        folder = Path(folder)
        path = folder / MANIFEST_NAME
        if not folder.is_dir():
            raise AuroraError(
                f"There is no folder {folder}. Shards are made by `aurora-ds shards convert RECIPE --source "
                f"DIR --output {folder}`; a run finds them by data.shards."
            )
        if not path.is_file():
            raise AuroraError(
                f"{folder} has no {MANIFEST_NAME}, so it holds no finished shards. If a conversion was "
                "stopped, run the same `aurora-ds shards convert` again: it continues."
            )
        manifest = cls.from_json(path.read_bytes(), str(path))
        manifest._folder = folder
        manifest._open_index(path)
        return manifest

    @classmethod
    def from_json(cls, text: bytes, name: str) -> Manifest:
        """manifest.json alone, without the index; messages call it `name`. Raises AuroraError as `load` does."""
        try:
            content = json.loads(text)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise AuroraError(
                f"{name} is not JSON ({error}). Convert the dataset again into an empty folder."
            ) from error
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise AuroraError(
                f"{name} has schema {found!r}; this version reads schema {SCHEMA}. Convert the dataset again."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise AuroraError(
                f"{name}: {where}: {first['msg']} ({error.error_count()} problem(s) in all). It was changed or "
                "cut after it was written; convert the dataset again."
            ) from error

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Manifest:
        """Itself, with the tensors of shard_index.py in memory. Raises AuroraError when they do not fit."""
        self._arrays = ShardIndex(arrays)
        self._check_arrays(self.folder / INDEX_NAME)
        return self

    def save(self, folder: str | Path) -> Path:
        """Writes the index, then manifest.json: each under a temporary name, synced and renamed."""
        self.index = IndexFile(**write_index(Path(folder) / INDEX_NAME, self._arrays.parts())._asdict())
        return self.save_json(folder)

    def save_json(self, folder: str | Path) -> Path:
        """Writes manifest.json alone, where the index is written already."""
        path = Path(folder) / MANIFEST_NAME
        self.sha256 = own_sha256(self.model_dump(by_alias=True))
        # One shard per line keeps a manifest of thousands of samples readable by people and by diff.
        content = self.model_dump(by_alias=True, exclude={"splits"})
        splits = []
        for name, split in self.splits.items():
            shards = ",\n   ".join(json.dumps(shard.model_dump()) for shard in split.shards)
            head = f'"samples": {split.samples}, "pairs": {split.pairs}'
            splits.append(f'  {json.dumps(name)}: {{{head}, "shards": [\n   {shards}]}}')
        text = json.dumps(content, indent=1)[:-2] + ',\n "splits": {\n' + ",\n".join(splits) + "}\n}\n"
        write_whole(path, text.encode("utf-8"))
        self._folder = Path(folder)
        return path

    def split(self, name: str) -> SplitEntry:
        """The split of that name. Raises AuroraError naming those that exist."""
        if name not in self.splits:
            raise AuroraError(
                f"The shards in {self.store.place} have no split {name!r}; they have "
                f"{', '.join(self.splits) or 'none'}. Set data.train_split or data.eval_split to one of these."
            )
        return self.splits[name]

    def media(self, split: str) -> int:
        """How many media (samples) the split has."""
        return self.split(split).samples

    def pairs(self, split: str, kind: str = "captions") -> int:
        """How many (medium, annotation) pairs of `kind` the split has."""
        ends = self._ends(split, kind)
        return int(ends[-1]) if len(ends) else 0

    def locate_pairs(
        self, split: str, pairs: np.ndarray, kind: str = "captions"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pair numbers (n,) -> (medium numbers (n,), which annotation of its medium each is (n,)), all int64."""
        ends = self._ends(split, kind)
        pairs = np.asarray(pairs, dtype=np.int64)
        media = np.searchsorted(ends, pairs, side="right")
        starts = np.where(media > 0, ends[media - 1], 0)
        return media.astype(np.int64), pairs - starts

    def kinds(self, split: str) -> tuple[str, ...]:
        """Kinds of annotations in the split: captions, questions, …"""
        return self.split(split).kinds

    def annotation_counts(self, split: str, kind: str = "captions", checked: bool = True) -> np.ndarray:
        """int32 (media,): how many annotations of `kind` each medium of the split has.

        Raises AuroraError when they are not those that were written, unless they are wanted whatever they are.
        """
        if not checked:
            return self._arrays[f"{split}/counts/{kind}"]
        if (split, kind) not in self._checked_counts:
            self._checked_counts[split, kind] = self._check_counts(split, kind)
        return self._checked_counts[split, kind]

    def _check_counts(self, split: str, kind: str) -> np.ndarray:
        entry = self.split(split)
        if kind not in entry.kinds:
            return np.zeros(entry.samples, dtype=np.int32)
        counts = self._arrays[f"{split}/counts/{kind}"]
        filled = np.flatnonzero(np.diff(entry.first_media))
        sums = np.zeros(len(entry.shards), dtype=np.int64)
        sums[filled] = np.add.reduceat(counts, entry.first_media[filled], dtype=np.int64)
        wrong = np.flatnonzero(sums != [shard.counts.get(kind, 0) for shard in entry.shards])
        if len(wrong) or (len(counts) and counts.min() < 0):
            shard = entry.shards[int(wrong[0])].file if len(wrong) else f"split {split}"
            raise AuroraError(
                f"{self.folder / INDEX_NAME}: its counts of {kind} do not sum to what {MANIFEST_NAME} says of {shard}. "
                "It was changed after it was written; copy it again, or convert the dataset again."
            )
        # Counts in another order would number the pairs, and so the whole plan, in another way.
        if self.index is not None and zlib.crc32(counts) != self.index.crc32.get(f"{split}/counts/{kind}"):
            raise AuroraError(
                f"{self.folder / INDEX_NAME}: its counts of {kind} in {split} are not those that were written: their "
                "checksum differs. Copy the index again, or convert the dataset again."
            )
        return counts

    def offsets(self, split: str, shard: int) -> np.ndarray:
        """int64 (samples + 1,): first byte of each sample of shard number `shard`, then the last one's end."""
        entry = self.split(split)
        first, end = (int(number) for number in entry.first_media[shard : shard + 2])
        return self._arrays[f"{split}/offsets"][first + shard : end + shard + 1]

    def checksums(self, split: str, of: Literal["sample", "record"] = "sample") -> np.ndarray:
        """uint32 (media,): CRC-32 of the bytes of each sample, or of its first tar member alone."""
        self.split(split)
        return self._arrays[f"{split}/crc32" if of == "sample" else f"{split}/crc32/record"]

    def shard_of(self, split: str, medium: int) -> int:
        """Number, in the split, of the shard that holds the medium."""
        return int(np.searchsorted(self.split(split).first_media, medium, side="right")) - 1

    def address(self, split: str, medium: int) -> SampleAddress:
        """Where medium number `medium` of the split is stored. Raises AuroraError for an index that cannot be true."""
        entry, shard = self.split(split), self.shard_of(split, medium)
        place = medium + shard
        start, end = (int(offset) for offset in self._arrays[f"{split}/offsets"][place : place + 2])
        if not 0 <= start < end <= entry.shards[shard].bytes:
            raise AuroraError(
                f"{self.folder / INDEX_NAME}: medium {medium} of {split} would be bytes {start} to {end} of "
                f"{entry.shards[shard].file}, which has {entry.shards[shard].bytes}. The index was changed after it "
                "was written; copy it again, or convert the dataset again."
            )
        return SampleAddress(entry.shards[shard].file, start, end)

    def fingerprint(self, split: str) -> str:
        """sha256 over the shard checksums of the split: equal only for the same samples in the same order."""
        return hashlib.sha256(
            "".join(shard.sha256 for shard in self.split(split).shards).encode()
        ).hexdigest()

    def _ends(self, split: str, kind: str) -> np.ndarray:
        """int64 (media,): one past the last pair of each medium, pairs of `kind` numbered over the split."""
        if (split, kind) not in self._pair_ends:
            counts = self.annotation_counts(split, kind)
            self._pair_ends[split, kind] = np.cumsum(counts, dtype=np.int64)
        return self._pair_ends[split, kind]

    def _open_index(self, path: Path) -> None:
        """Maps the index. Its size is checked here, its sums when they are used, its sha256 by `shards verify`."""
        if self.index is None:
            raise AuroraError(f"{path} names no index. Convert the dataset again.")
        index = path.with_name(self.index.file)
        self._arrays = ShardIndex.open(index)
        size = index.stat().st_size
        if size != self.index.bytes:
            raise AuroraError(
                f"{index} has {size} bytes, the manifest says {self.index.bytes}. It belongs to another manifest or "
                "was cut: copy both files again, or convert the dataset again."
            )
        self._check_arrays(index)

    def _check_arrays(self, path: Path) -> None:
        for name, split in self.splits.items():
            wanted = {f"{name}/offsets": split.samples + len(split.shards)}
            wanted |= {f"{name}/counts/{kind}": split.samples for kind in split.kinds}
            wanted |= {f"{name}/crc32": split.samples, f"{name}/crc32/record": split.samples}
            for tensor, length in wanted.items():
                found = len(self._arrays[tensor]) if tensor in self._arrays else 0
                if found != length:
                    raise AuroraError(
                        f"{path}: {tensor} has {found} numbers, the manifest asks for {length}. Copy manifest.json and "
                        "the index again, or convert the dataset again."
                    )


def own_sha256(content: dict[str, Any]) -> str:
    """sha256 of what a manifest.json says, its own "sha256" left out, however it is laid out."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there in full or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    write_synced(temporary, content)
    os.replace(temporary, path)
    sync_folder(path.parent)
