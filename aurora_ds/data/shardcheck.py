"""`aurora-ds shards verify`: a folder of shards against its manifest: every file's checksum, every sample in full.

The bytes, record and checksum of every sample are checked, every image is decoded and every frame of every clip, and
keys must be unique. Damage is collected, not stopped at.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aurora_ds.data.convert.pool import run_in_order
from aurora_ds.data.convert.progress import counter
from aurora_ds.data.manifest import MANIFEST_NAME, Manifest, own_sha256, write_whole
from aurora_ds.data.reader import BadSample, ShardReader
from aurora_ds.data.remote import open_shards
from aurora_ds.data.shard_index import INDEX_NAME
from aurora_ds.data.shard_scan import READ_SIZE, Problem, ScanResult, ShardScan, scan_shard
from aurora_ds.errors import AuroraError

# Problems named in full in the error; the rest are counted.
PROBLEMS_SHOWN = 10


def verify_shards(folder: str | Path, workers: int = 1, report: str | Path | None = None) -> dict[str, Any]:
    """Counts of what was checked. Raises AuroraError that lists the problems when there are any.

    `folder`: a folder, or the URL of one, whose shards are then checked in the cache.
    `report`: a file for all problems, one JSON object a line: file, reason, message, and number and key of a sample.
    """
    try:
        manifest = open_shards(folder)
    except AuroraError as error:
        if report is not None:
            _write_report(Path(report), [Problem(MANIFEST_NAME, "manifest", str(error))])
        raise
    problems, counts = find_problems(manifest, workers)
    if report is not None:
        _write_report(Path(report), problems)
    if problems:
        raise AuroraError(_told(folder, problems, report))
    return {"folder": str(folder), "dataset": manifest.dataset, **counts, "problems": 0}


def find_problems(manifest: Manifest, workers: int = 1) -> tuple[list[Problem], dict[str, int]]:
    """(problems, counts of shards, samples, pairs and bytes checked)."""
    problems = _beside(manifest)
    counts = _annotation_counts(manifest, problems)
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    keys = []
    with counter("Checking", sum(entry.samples for entry in entries)) as progress:
        results: Iterator[ScanResult] = run_in_order(scan_shard, _scans(manifest, counts), workers)
        for entry, result in zip(entries, results, strict=True):
            problems += result.problems
            keys.append(result.keys)
            progress.advance(entry.samples)
    problems += _duplicate_keys(manifest, keys)
    return problems, {
        "shards": len(entries),
        "samples": sum(entry.samples for entry in entries),
        "pairs": sum(entry.pairs for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
    }


def _annotation_counts(manifest: Manifest, problems: list[Problem]) -> dict[tuple[str, str], np.ndarray]:
    """By split and kind, the index's counts; those that cannot be right are a problem, but say of which samples."""
    counts = {}
    for name, split in manifest.splits.items():
        for kind in split.kinds:
            try:
                counts[name, kind] = manifest.annotation_counts(name, kind)
            except AuroraError as error:
                problems.append(Problem(INDEX_NAME, "index", str(error)))
                counts[name, kind] = manifest.annotation_counts(name, kind, checked=False)
    return counts


def _scans(manifest: Manifest, counts: dict[tuple[str, str], np.ndarray]) -> Iterator[ShardScan]:
    for name, split in manifest.splits.items():
        checksums = manifest.checksums(name)
        for number, entry in enumerate(split.shards):
            first, end = split.first_media[number : number + 2]
            # Copies: a task for another process is to carry its own part of the mapped index only.
            own = {kind: np.array(counts[name, kind][first:end]) for kind in split.kinds}
            offsets = np.array(manifest.offsets(name, number))
            yield ShardScan(manifest.store, entry, offsets, np.array(checksums[first:end]), own)


def _beside(manifest: Manifest) -> list[Problem]:
    """The files beside the shards, and shards that the manifest does not know."""
    problems = []
    content = json.loads((manifest.folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    if own_sha256(content) != manifest.sha256:
        problems.append(Problem(MANIFEST_NAME, "checksum", "it was changed after it was written"))
    wanted = dict(manifest.files)
    if manifest.index is not None:
        wanted[manifest.index.file] = manifest.index.sha256
    for name, sha256 in wanted.items():
        path = manifest.folder / name
        if Path(name).name != name or not path.is_file():
            problems.append(Problem(name, "missing", "it is in the manifest but not in the folder"))
        elif _sha256(path) != sha256:
            problems.append(Problem(name, "checksum", "its sha256 is not the manifest's"))
    known = {entry.file for split in manifest.splits.values() for entry in split.shards}
    for path in sorted(manifest.folder.glob("*.tar")):
        if path.name not in known:
            problems.append(Problem(path.name, "extra", "it is in the folder but not in the manifest"))
    return problems


def _duplicate_keys(manifest: Manifest, keys: list[np.ndarray]) -> list[Problem]:
    """Samples with the key of an earlier one. `keys`: one ScanResult.keys per shard."""
    hashes = np.concatenate([found[:, 1] for found in keys]) if keys else np.zeros(0, np.uint64)
    values, times = np.unique(hashes, return_counts=True)
    repeated = values[times > 1]
    if not len(repeated):
        return []
    problems, seen, reader = [], {}, ShardReader(manifest)
    shards = [
        (name, split, number)
        for name, split in manifest.splits.items()
        for number in range(len(split.shards))
    ]
    for (name, split, shard), found in zip(shards, keys, strict=True):
        file = split.shards[shard].file
        for number in found[np.isin(found[:, 1], repeated), 0].tolist():
            try:
                key, _ = reader.record(name, int(split.first_media[shard]) + number)
            except BadSample:  # reported already
                continue
            if key in seen:
                problems.append(
                    Problem(file, "duplicate_key", f"its key is also in {seen[key]}", number, key)
                )
            else:
                seen[key] = file
    reader.close()
    return problems


def _told(folder: str | Path, problems: list[Problem], report: str | Path | None) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN])
    more = f"\n  and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(p.reason for p in problems).most_common())
    place = f" All are in {report}." if report is not None else ""
    if more and report is None:
        place = " --report FILE.jsonl writes all of them."
    return (
        f"{folder} has {len(problems)} problem(s) ({reasons}):\n{shown}{more}\nCopy the named files again, or remove "
        f"them and run the same conversion again: it writes only what is missing.{place}"
    )


def _write_report(path: Path, problems: list[Problem]) -> None:
    lines = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in problems]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(lines).encode())
    except OSError as error:
        raise AuroraError(f"The report {path} cannot be written: {error.strerror or error}.") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_SIZE):
            digest.update(block)
    return digest.hexdigest()
