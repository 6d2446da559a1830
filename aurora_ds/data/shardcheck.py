"""`aurora-ds shards verify`: every shard's size and checksum, every sample's place, record and medium.

Each tar is read twice on purpose: by the standard library from the start, and by offset as training reads it.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.config import DataConfig
from aurora_ds.data.convert.pool import run_in_order
from aurora_ds.data.convert.progress import counter
from aurora_ds.data.decode import open_image
from aurora_ds.data.manifest import Manifest, SampleAddress, ShardEntry
from aurora_ds.data.reader import IMAGE_TYPES, BadSample, parse_sample
from aurora_ds.errors import AuroraError

# Problems named in full in the error; the rest are counted.
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class _Check:
    folder: Path
    entry: ShardEntry
    offsets: list[int]
    counts: dict[str, list[int]]


def verify_shards(folder: str | Path, workers: int = 1) -> dict[str, Any]:
    """Counts of what was checked. Raises AuroraError that lists the problems when there are any."""
    manifest = Manifest.load(folder)
    problems, counts = find_problems(manifest, workers)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN])
        more = f"\n  and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise AuroraError(
            f"{folder} has {len(problems)} problem(s):\n{shown}{more}\nCopy the named shards again, or remove "
            "them and run the same conversion again: it writes only what is missing."
        )
    return {"folder": str(folder), "dataset": manifest.dataset, **counts, "problems": 0}


def find_problems(manifest: Manifest, workers: int = 1) -> tuple[list[str], dict[str, int]]:
    """(problems, counts of shards, samples, pairs and bytes checked)."""
    checks = list(_checks(manifest))
    problems: list[str] = []
    index = manifest.folder / manifest.index.file
    if hashlib.sha256(index.read_bytes()).hexdigest() != manifest.index.sha256:
        problems.append(f"{index.name}: its sha256 is not the manifest's")
    seen: dict[str, str] = {}
    with counter("Checking", sum(check.entry.samples for check in checks)) as progress:
        for check, (found, keys) in zip(checks, run_in_order(_check_shard, checks, workers), strict=True):
            problems += found
            for key in keys:
                if key in seen:
                    problems.append(f"{check.entry.file}: key {key} is also in {seen[key]}")
                seen[key] = check.entry.file
            progress.advance(check.entry.samples)
    listed = {check.entry.file for check in checks}
    for path in sorted(manifest.folder.glob("*.tar")):
        if path.name not in listed:
            problems.append(f"{path.name}: it is in the folder but not in the manifest")
    entries = [check.entry for check in checks]
    return problems, {
        "shards": len(entries),
        "samples": sum(entry.samples for entry in entries),
        "pairs": sum(entry.pairs for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
    }


def _checks(manifest: Manifest) -> Iterator[_Check]:
    for name, split in manifest.splits.items():
        counts = {kind: manifest.annotation_counts(name, kind) for kind in split.kinds}
        for number, entry in enumerate(split.shards):
            first, end = split.first_media[number : number + 2]
            own = {kind: numbers[first:end].tolist() for kind, numbers in counts.items()}
            yield _Check(manifest.folder, entry, manifest.offsets(name, number).tolist(), own)


def _check_shard(check: _Check) -> tuple[list[str], list[str]]:
    """(problems of one shard, its keys)"""
    path, entry = check.folder / check.entry.file, check.entry
    try:
        content = path.read_bytes()
    except OSError as error:
        return [f"{entry.file}: it cannot be read: {error.strerror}"], []
    if len(content) != entry.bytes:
        return [f"{entry.file}: it has {len(content)} bytes, the manifest says {entry.bytes}"], []
    problems = []
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        problems.append(f"{entry.file}: its sha256 is not the manifest's")
    names = _member_names(path, problems)
    keys: list[str] = []
    for number, (start, end) in enumerate(zip(check.offsets, check.offsets[1:], strict=False)):
        try:
            sample = parse_sample(content[start:end], SampleAddress(entry.file, start, end))
            for part in sample.parts:
                if part.extension in IMAGE_TYPES:
                    open_image(part.content, DataConfig().max_pixels, sample.key)
        except BadSample as error:
            problems.append(str(error))
            continue
        keys.append(sample.key)
        expected = {kind: counts[number] for kind, counts in check.counts.items()}
        found = {kind: len(sample.record.get(kind, [])) for kind in check.counts}
        if found != expected:
            problems.append(f"{entry.file}: {sample.key} has {found}, the manifest says {expected}")
        if names[2 * number : 2 * number + 2] != [f"{sample.key}.json", f"{sample.key}.{sample.extension}"]:
            problems.append(f"{entry.file}: members of {sample.key} are not where the manifest says")
    if len(names) != 2 * entry.samples:
        problems.append(f"{entry.file}: {len(names)} members for {entry.samples} samples")
    return problems, keys


def _member_names(path: Path, problems: list[str]) -> list[str]:
    """Names of a tar's members as the standard library reads it from the start."""
    names = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                names.append(member.name)
    except tarfile.TarError as error:
        problems.append(f"{path.name}: it is not a whole tar file ({error})")
    return names
