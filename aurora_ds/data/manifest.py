"""manifest.json, the index of a folder of tar shards (schema 1): what is in which shard and at which byte.

A shard holds samples; a sample is one medium (image or clip) with its annotations. An annotation of a medium makes
one pair with it, for example (image, caption). Media and pairs of a split are numbered from 0 in shard order.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from aurora_ds.data.store import LocalStore, ShardStore
from aurora_ds.errors import AuroraError

MANIFEST_NAME = "manifest.json"
SCHEMA = 1


class SampleAddress(NamedTuple):
    """Where a sample's tar members are: bytes [start, end) of `shard`."""

    shard: str
    start: int
    end: int


class ShardEntry(BaseModel):
    """One tar. `counts[kind][i]`: how many annotations of that kind (captions, questions, …) sample i has."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(pattern=r"^[A-Za-z0-9_.+-]+\.tar$")
    samples: int = Field(ge=0)
    pairs: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offsets: list[int] = Field(description="first byte of each sample, then the end of the last one")
    counts: dict[str, list[int]]

    @model_validator(mode="after")
    def _agree(self) -> ShardEntry:
        if len(self.offsets) != self.samples + 1:
            raise ValueError(
                f"{self.file}: {len(self.offsets)} offsets for {self.samples} samples (one more is right)"
            )
        if any(later <= earlier for earlier, later in zip(self.offsets, self.offsets[1:], strict=False)):
            raise ValueError(f"{self.file}: offsets do not increase")
        if self.offsets[-1] > self.bytes:
            raise ValueError(
                f"{self.file}: the last offset {self.offsets[-1]} lies beyond its {self.bytes} bytes"
            )
        for kind, numbers in self.counts.items():
            if len(numbers) != self.samples or min(numbers, default=0) < 0:
                raise ValueError(f"{self.file}: counts of {kind} do not fit {self.samples} samples")
        if self.pairs != sum(map(sum, self.counts.values())):
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

    @cached_property
    def first_media(self) -> np.ndarray:
        """int64 (shards + 1,): number of the first medium of each shard, then the total."""
        return np.cumsum([0, *(shard.samples for shard in self.shards)])

    def pair_ends(self, kind: str) -> np.ndarray:
        """int64 (media,): one past the last pair of each medium, pairs of `kind` numbered over the split."""
        empty: list[int] = []
        numbers = [np.asarray(s.counts.get(kind, [0] * s.samples), dtype=np.int64) for s in self.shards]
        return np.cumsum(np.concatenate([np.asarray(empty, dtype=np.int64), *numbers]))


class Manifest(BaseModel):
    """A whole folder of shards. `origin` says from what and how it was converted."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = Field(alias="schema")
    dataset: str
    licence: str = ""
    origin: dict[str, Any] = Field(default_factory=dict)
    splits: dict[str, SplitEntry]
    _folder: Path = PrivateAttr(default=Path("."))
    _store: ShardStore | None = PrivateAttr(default=None)
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
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise AuroraError(
                f"{path} is not JSON ({error}). Convert the dataset again into an empty folder."
            ) from error
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise AuroraError(
                f"{path} has schema {found!r}; this version reads schema {SCHEMA}. Convert the dataset again."
            )
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise AuroraError(
                f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s) in all). It was changed or "
                "cut after it was written; convert the dataset again."
            ) from error
        manifest._folder = folder
        return manifest

    def save(self, folder: str | Path) -> Path:
        """Writes manifest.json under a temporary name, syncs and renames it."""
        path = Path(folder) / MANIFEST_NAME
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
                f"The shards in {self.folder} have no split {name!r}; they have "
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

    def address(self, split: str, medium: int) -> SampleAddress:
        """Where medium number `medium` of the split is stored."""
        entry = self.split(split)
        shard = int(np.searchsorted(entry.first_media, medium, side="right")) - 1
        place = medium - int(entry.first_media[shard])
        offsets = entry.shards[shard].offsets
        return SampleAddress(entry.shards[shard].file, offsets[place], offsets[place + 1])

    def fingerprint(self, split: str) -> str:
        """sha256 over the shard checksums of the split: equal only for the same samples in the same order."""
        return hashlib.sha256(
            "".join(shard.sha256 for shard in self.split(split).shards).encode()
        ).hexdigest()

    def _ends(self, split: str, kind: str) -> np.ndarray:
        if (split, kind) not in self._pair_ends:
            self._pair_ends[split, kind] = self.split(split).pair_ends(kind)
        return self._pair_ends[split, kind]


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there in full or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
