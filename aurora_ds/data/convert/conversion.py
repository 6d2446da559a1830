"""`aurora-ds shards convert`: recipe and source folder -> shards, manifest.json, rejects.jsonl and results.json.

The shards' bytes depend on the source, the recipe and `limit` only. A killed conversion leaves whole shards, and
running it again continues; manifest.json is written last.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from aurora_ds.config import DataConfig
from aurora_ds.data.convert.annotations import Reject
from aurora_ds.data.convert.lock import folder_lock
from aurora_ds.data.convert.pool import run_in_order
from aurora_ds.data.convert.progress import counter
from aurora_ds.data.convert.recipe import DatasetRecipe, load_recipe
from aurora_ds.data.convert.sources import SourceSplits, read_sources
from aurora_ds.data.convert.writer import PROGRESS_FOLDER, ShardTask, write_shard
from aurora_ds.data.manifest import MANIFEST_NAME, SCHEMA, Manifest, ShardEntry, SplitEntry, write_whole
from aurora_ds.errors import AuroraError

EXECUTORS = ("local",)


def convert(
    recipe: str | Path,
    source: str | Path,
    output: str | Path,
    workers: int = 1,
    limit: int | None = None,
    max_rejects: int | str = "1%",
    strict: bool = False,
    executor: str = "local",
) -> dict[str, Any]:
    """Converts `source` to shards in `output`; returns what results.json holds.

    recipe: name in shards/ or YAML path. limit: first media of each split. max_rejects: a number, or a share of all
    media such as "1%"; more stop the conversion. strict: counts other than the recipe expects are an error, not a
    note. Raises AuroraError for wrong input; shards written until then are whole, and the same call continues.
    """
    started = time.monotonic()
    source, output = Path(source), Path(output)
    if executor not in EXECUTORS:
        raise AuroraError(f"There is no executor {executor!r}; there is {', '.join(EXECUTORS)}.")
    if limit is not None and limit < 1:
        raise AuroraError(f"--limit must be at least 1, not {limit}.")
    described = load_recipe(recipe)
    sources = read_sources(described, source, limit)
    most = _most_rejects(max_rejects, sources.listed)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AuroraError(f"The output folder {output} cannot be made: {error.strerror}.") from error
    with folder_lock(output):
        # Before anything is written: a wrong source folder shows here, and the corrected one may then be used.
        _check_rejects(sources.rejects + sources.missing(), most, output)
        if strict and not limit:
            _check_counts(described, sources.counts(), output)
        origin = _origin(described, sources, limit)
        _claim(output, origin)
        entries, rejects = _write_all(described, sources, output, workers, most)
        splits = {name: _split(shards) for name, shards in entries.items()}
        counts = {name: (split.samples, split.pairs) for name, split in splits.items()}
        if strict and not limit:
            _check_counts(described, counts, output)
        manifest = Manifest(
            schema=SCHEMA, dataset=described.name, licence=described.licence, origin=origin, splits=splits
        )
        manifest.save(output)
        results = {
            "schema": 1,
            "command": "shards convert",
            "dataset": described.name,
            "annotations": sorted(sources.annotations),
            "splits": {
                name: {"samples": split.samples, "pairs": split.pairs, "shards": len(split.shards)}
                for name, split in splits.items()
            },
            "bytes": sum(shard.bytes for split in splits.values() for shard in split.shards),
            "rejects": len(rejects),
            "mismatches": [] if limit else _mismatches(described, counts),
            "workers": workers,
            "seconds": round(time.monotonic() - started, 2),
        }
        write_whole(output / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def _split(shards: list[ShardEntry]) -> SplitEntry:
    samples, pairs = sum(shard.samples for shard in shards), sum(shard.pairs for shard in shards)
    return SplitEntry(samples=samples, pairs=pairs, shards=shards)


def _write_all(
    recipe: DatasetRecipe, sources: SourceSplits, output: Path, workers: int, most: int
) -> tuple[dict[str, list[ShardEntry]], list[Reject]]:
    """All shards, in order; stops as soon as there are too many rejects."""
    rejects = list(sources.rejects)
    tasks = [
        ShardTask(
            split,
            number,
            tuple(media[first : first + recipe.samples_per_shard]),
            output,
            DataConfig().max_pixels,
        )
        for split, media in sources.media.items()
        for number, first in enumerate(range(0, len(media), recipe.samples_per_shard))
    ]
    entries: dict[str, list[ShardEntry]] = {split: [] for split in sources.media}
    with counter(f"Converting {recipe.name}", sum(len(task.media) for task in tasks)) as progress:
        for task, result in zip(tasks, run_in_order(write_shard, tasks, workers), strict=True):
            if result.entry.samples:
                entries[task.split].append(result.entry)
            else:
                (output / task.file).unlink()
            rejects += result.rejects
            _check_rejects(rejects, most, output)
            progress.advance(len(task.media))
    _write_rejects(rejects, output)
    empty = [split for split, shards in entries.items() if not shards]
    if empty:
        raise AuroraError(
            f"Nothing is left of split {', '.join(empty)}: {output / 'rejects.jsonl'} says why, image by "
            "image. Correct the source and run the same command again."
        )
    return entries, rejects


def _origin(recipe: DatasetRecipe, sources: SourceSplits, limit: int | None) -> dict[str, Any]:
    """What the shards' bytes depend on, but for the media: a folder goes on only with the same."""
    chosen = json.dumps(
        [recipe.family, recipe.samples_per_shard, limit, _listing(sources)], ensure_ascii=False
    )
    return {
        "recipe": recipe.name,
        "annotations": dict(sorted(sources.annotations.items())),
        "samples_per_shard": recipe.samples_per_shard,
        "limit": limit,
        "plan_sha256": hashlib.sha256(chosen.encode()).hexdigest(),
    }


def _listing(sources: SourceSplits) -> list[Any]:
    return [
        [split, [[each.number, each.medium.image, each.medium.captions] for each in media]]
        for split, media in sources.media.items()
    ]


def _claim(output: Path, origin: dict[str, Any]) -> None:
    """Marks the folder as this conversion's, or refuses one that is another's."""
    mark = output / PROGRESS_FOLDER / "conversion.json"
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) != origin:
            raise AuroraError(
                f"{output} belongs to another conversion (other annotations, recipe or --limit). Choose an "
                "empty --output, or remove this folder."
            )
        return
    if (output / MANIFEST_NAME).exists() or any(output.glob("*.tar")):
        raise AuroraError(
            f"{output} holds shards that this conversion did not write. Choose an empty --output, or remove them."
        )
    mark.parent.mkdir(exist_ok=True)
    write_whole(mark, json.dumps(origin).encode())


def _most_rejects(given: int | str, total: int) -> int:
    """`N` or `P%` of `total` -> a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", str(given).strip())
    if match is None or (not match[2] and "." in match[1]):
        raise AuroraError(f"--max-rejects must be a number such as 10 or a share such as 1%, not {given!r}.")
    return int(total * float(match[1]) / 100) if match[2] else int(match[1])


def _check_rejects(rejects: list[Reject], most: int, output: Path) -> None:
    if len(rejects) <= most:
        return
    _write_rejects(rejects, output)
    first = rejects[0]
    raise AuroraError(
        f"{len(rejects)} rejects so far, more than --max-rejects allows ({most}). The first: {first.media_id} "
        f"of {first.split}: {first.reason}. All are in {output / 'rejects.jsonl'}. Correct the source, or "
        "allow more; the same command continues."
    )


def _write_rejects(rejects: list[Reject], output: Path) -> None:
    lines = [json.dumps(vars(reject), ensure_ascii=False) + "\n" for reject in rejects]
    write_whole(output / "rejects.jsonl", "".join(lines).encode())


def _check_counts(recipe: DatasetRecipe, counts: dict[str, tuple[int, int]], output: Path) -> None:
    mismatches = _mismatches(recipe, counts)
    if mismatches:
        raise AuroraError(
            f"{recipe.name} is not what its recipe expects: {'; '.join(mismatches)}. Complete the source, or "
            f"leave --strict away; {output / 'rejects.jsonl'} lists single samples that were left out."
        )


def _mismatches(recipe: DatasetRecipe, counts: dict[str, tuple[int, int]]) -> list[str]:
    """Where (images, captions) of a split are not what the recipe expects, in words."""
    found = []
    for name, expected in recipe.expected.items():
        if name not in counts:
            found.append(f"split {name} is missing")
        elif counts[name] != (expected.samples, expected.pairs):
            images, captions = counts[name]
            found.append(
                f"{name} has {images} images and {captions} captions, expected {expected.samples} and {expected.pairs}"
            )
    return found
