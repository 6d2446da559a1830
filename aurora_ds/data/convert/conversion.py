"""`aurora-ds shards convert`: recipe and source folder -> shards, manifest.json, rejects.jsonl and results.json.

The shards' bytes depend on the source, the recipe and the options that say how media are stored, never on workers or
executor. Annotations are grouped in a spool on disk and workers get one shard's media at a time, so memory does not
grow with the dataset. A killed conversion leaves whole shards, and running it again continues; manifest.json is
written last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aurora_ds import __version__
from aurora_ds.config import DataConfig
from aurora_ds.data.convert.entries import Reject
from aurora_ds.data.convert.executor import Executor, open_executor
from aurora_ds.data.convert.lock import folder_lock
from aurora_ds.data.convert.progress import counter
from aurora_ds.data.convert.recipe import DatasetRecipe, load_recipe
from aurora_ds.data.convert.rejects import Rejects, most_rejects
from aurora_ds.data.convert.samples import Check, MediaSettings, find
from aurora_ds.data.convert.side_files import SideFiles
from aurora_ds.data.convert.sources import Annotations, find_annotations
from aurora_ds.data.convert.spool import Spool, open_spool
from aurora_ds.data.convert.writer import (
    PROGRESS_FOLDER,
    ShardTask,
    read_sidecar,
    remove_partial_files,
    write_shard,
)
from aurora_ds.data.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    SCHEMA,
    IndexFile,
    Manifest,
    ShardEntry,
    SplitEntry,
    write_whole,
)
from aurora_ds.data.reader import BadSample
from aurora_ds.data.shard_index import IndexPart, write_index
from aurora_ds.errors import AuroraError

# Media whose files are looked for before anything is written: a wrong source folder shows at once.
PROBED = 100


def convert(
    recipe: str | Path,
    source: str | Path,
    output: str | Path,
    workers: int = 1,
    limit: int | None = None,
    max_rejects: int | str = "1%",
    strict: bool = False,
    executor: str = "local",
    ray_address: str | None = None,
    check: Check = "header",
    video_frames: int | None = None,
    size: int | None = None,
    video_reencode: bool = False,
) -> dict[str, Any]:
    """Converts `source` to shards in `output`; returns what results.json holds.

    recipe: name in shards/ or YAML path. limit: first media of each split. max_rejects: a number, or a share of all
    media such as "1%"; more stop the conversion. strict: counts other than the recipe expects are an error, not a
    note. executor: local or ray, see executor.py. check: `decode` decodes every medium before it is stored.
    video_frames, size, video_reencode: store clips as so many JPEG frames, or encoded again, with a shorter side of
    `size` pixels. Raises AuroraError for wrong input; shards written until then are whole, and the same call continues.
    """
    started = time.monotonic()
    source, output = Path(source), Path(output)
    if limit is not None and limit < 1:
        raise AuroraError(f"--limit must be at least 1, not {limit}.")
    most_rejects(max_rejects, 0)
    described = load_recipe(recipe)
    settings = MediaSettings(
        family=described.family,
        media=described.media,
        folders=tuple((source / place).absolute() for place in described.media_folders),
        max_pixels=DataConfig().max_pixels,
        check=check,
        video_frames=video_frames,
        video_reencode=video_reencode,
        size=size,
    )
    _check_settings(described, settings)
    annotations = find_annotations(described, source)
    # Ray's workers may run elsewhere, in another folder.
    output = output.absolute()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AuroraError(f"The output folder {output} cannot be made: {error.strerror}.") from error
    with open_executor(executor, workers, ray_address) as runner, folder_lock(output):
        remove_partial_files(output)
        run = _Conversion(described, annotations, settings, source, output, limit, strict)
        try:
            results = run.run(max_rejects, runner)
            results |= {
                "workers": workers,
                "executor": executor,
                "seconds": round(time.monotonic() - started, 2),
            }
            write_whole(output / "results.json", (json.dumps(results, indent=1) + "\n").encode())
        except OSError as error:
            raise AuroraError(
                f"{error.filename or output}: {error.strerror or error}. What is written to {output} so far is whole: "
                "make room or correct this, and the same command continues."
            ) from error
    return results


class _Conversion:
    """One conversion, with the folder's lock held."""

    def __init__(
        self,
        recipe: DatasetRecipe,
        annotations: Annotations,
        settings: MediaSettings,
        source: Path,
        output: Path,
        limit: int | None,
        strict: bool,
    ):
        self.recipe, self.annotations, self.settings = recipe, annotations, settings
        self.source, self.output, self.limit = source, output, limit
        self.strict = strict and limit is None

    def run(self, max_rejects: int | str, executor: Executor) -> dict[str, Any]:
        """Writes everything but results.json, whose content it returns."""
        path = self.output / PROGRESS_FOLDER / "spool.sqlite"
        path.parent.mkdir(exist_ok=True)
        with counter(f"Reading annotations of {self.recipe.name}") as progress:
            spool = open_spool(path, self._spool_identity(), self.annotations.read(), self.limit, progress)
        try:
            rejects = Rejects(spool, most_rejects(max_rejects, spool.listed), self.output)
            # Before anything is written: a wrong source folder shows here, and the corrected one may then be used.
            self._probe(spool, rejects)
            if self.strict:
                self._check_counts(spool.counts())
            origin = self._origin(spool)
            self._claim(origin)
            entries, files = self._write_all(spool, rejects, executor)
        finally:
            spool.close()
        manifest = self._save(entries, origin, files)
        path.unlink()
        counts = {name: (split.samples, split.pairs) for name, split in manifest.splits.items()}
        if self.strict:
            self._check_counts(counts)
        return {
            "schema": 1,
            "command": "shards convert",
            "dataset": self.recipe.name,
            "annotations": sorted(self.annotations.checksums),
            "splits": {
                name: {
                    "samples": split.samples,
                    "pairs": split.pairs,
                    "counts": {
                        kind: sum(shard.counts.get(kind, 0) for shard in split.shards) for kind in split.kinds
                    },
                    "shards": len(split.shards),
                    "bytes": sum(shard.bytes for shard in split.shards),
                }
                for name, split in manifest.splits.items()
            },
            "bytes": sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
            "files": sorted(files),
            "rejects": len(rejects),
            "mismatches": [] if self.limit else self._mismatches(counts),
        }

    def _write_all(
        self, spool: Spool, rejects: Rejects, executor: Executor
    ) -> tuple[dict[str, list[ShardEntry]], dict[str, str]]:
        """(all shards in order, name -> sha256 of the files beside); stops as soon as there are too many rejects."""
        entries: dict[str, list[ShardEntry]] = {split: [] for split in spool.splits}
        beside = SideFiles(self.recipe, self.source, self.output)
        waiting: list[ShardTask] = []

        def tasks() -> Iterator[ShardTask]:
            for task in self._tasks(spool):
                waiting.append(task)
                yield task

        with counter(f"Converting {self.recipe.name}", sum(spool.splits.values())) as progress:
            for result in executor.run_in_order(write_shard, tasks()):
                task = waiting.pop(0)
                if result.entry.samples:
                    entries[task.split].append(result.entry)
                else:
                    (self.output / task.file).unlink()
                rejects.add(result.rejects)
                beside.add(task.split, (each for each in task.media if each.number not in result.rejected))
                progress.advance(len(task.media))
        rejects.write()
        empty = [split for split, shards in entries.items() if not shards]
        if empty:
            raise AuroraError(
                f"Nothing is left of split {', '.join(empty)}: {self.output / 'rejects.jsonl'} says why, medium by "
                "medium. Correct the source and run the same command again."
            )
        return entries, beside.finish()

    def _tasks(self, spool: Spool) -> Iterator[ShardTask]:
        step = self.recipe.samples_per_shard
        for split, total in spool.splits.items():
            for number, first in enumerate(range(0, total, step)):
                media = tuple(spool.media(split, first, first + step))
                yield ShardTask(split, number, media, self.output, self.settings)

    def _probe(self, spool: Spool, rejects: Rejects) -> None:
        """Looks for the first files of each split. Raises AuroraError when too many, or all, are missing."""
        missing, probed = [], 0
        each = max(1, PROBED // max(1, len(spool.splits)))
        for split in spool.splits:
            for medium in spool.media(split, 0, each):
                probed += 1
                names = [medium.names] if isinstance(medium.names, str) else medium.names
                try:
                    for name in names:
                        find(name, self.settings)
                except BadSample as error:
                    missing.append(Reject(split, medium.media_id, str(error)))
        rejects.check(missing)
        if probed and len(missing) == probed and probed < sum(spool.splits.values()):
            folders = ", ".join(str(folder) for folder in self.settings.folders)
            raise AuroraError(
                f"None of the first {probed} media has a file; the first: {missing[0].media_id} of {missing[0].split}: "
                f"{missing[0].reason} under {folders}. The source folder must look like this:\n{self.recipe.layout}"
            )

    def _spool_identity(self) -> str:
        way = self.annotations.way
        parts = [__version__, self.recipe.family, way.model_dump(), self.annotations.checksums, self.limit]
        return json.dumps(parts, sort_keys=True)

    def _origin(self, spool: Spool) -> dict[str, Any]:
        """What the shards' bytes depend on, but for the media: a folder goes on only with the same."""
        way = self.annotations.way
        return {
            "recipe": self.recipe.name,
            "annotations": {
                name: {"format": way.format, "sha256": sha256}
                for name, sha256 in sorted(self.annotations.checksums.items())
            },
            "samples_per_shard": self.recipe.samples_per_shard,
            "limit": self.limit,
            "media": self.settings.origin(),
            "entries_sha256": spool.entries_sha256,
        }

    def _claim(self, origin: dict[str, Any]) -> None:
        """Marks the folder as this conversion's, or refuses one that is another's."""
        mark = self.output / PROGRESS_FOLDER / "conversion.json"
        if mark.is_file():
            if json.loads(mark.read_text(encoding="utf-8")) != origin:
                raise AuroraError(
                    f"{self.output} belongs to another conversion (other annotations, recipe, --limit or options for "
                    "media). Choose an empty --output, or remove this folder."
                )
            return
        if (self.output / MANIFEST_NAME).exists() or any(self.output.glob("*.tar")):
            raise AuroraError(
                f"{self.output} holds shards that this conversion did not write. Choose an empty --output, or remove "
                "them."
            )
        write_whole(mark, json.dumps(origin).encode())

    def _save(
        self, entries: dict[str, list[ShardEntry]], origin: dict[str, Any], files: dict[str, str]
    ) -> Manifest:
        """Writes the index from the sidecars, then manifest.json."""
        splits = {name: SplitEntry.of(shards) for name, shards in entries.items()}
        parts = []
        for name, split in splits.items():
            offsets = _blocks(self.output, split.shards, "offsets")
            parts.append(IndexPart(f"{name}/offsets", "I64", split.samples + len(split.shards), offsets))
            for tensor, field in (("crc32", "crc32"), ("crc32/record", "record_crc32")):
                checksums = _blocks(self.output, split.shards, field)
                parts.append(IndexPart(f"{name}/{tensor}", "U32", split.samples, checksums))
            for kind in split.kinds:
                counts = _blocks(self.output, split.shards, "counts", kind)
                parts.append(IndexPart(f"{name}/counts/{kind}", "I32", split.samples, counts))
        written = write_index(self.output / INDEX_NAME, parts)
        manifest = Manifest(
            schema=SCHEMA,
            dataset=self.recipe.name,
            licence=self.recipe.licence,
            origin=origin,
            files=files,
            index=IndexFile(**written._asdict()),
            splits=splits,
        )
        manifest.save_json(self.output)
        return manifest

    def _check_counts(self, counts: dict[str, tuple[int, int]]) -> None:
        mismatches = self._mismatches(counts)
        if mismatches:
            raise AuroraError(
                f"{self.recipe.name} is not what its recipe expects: {'; '.join(mismatches)}. Complete the source, or "
                f"leave --strict away; {self.output / 'rejects.jsonl'} lists single samples that were left out."
            )

    def _mismatches(self, counts: dict[str, tuple[int, int]]) -> list[str]:
        """Where (media, pairs) of a split are not what the recipe expects, in words."""
        found = []
        for name, expected in (self.annotations.way.expected or self.recipe.expected).items():
            if name not in counts:
                found.append(f"split {name} is missing")
                continue
            media, pairs = counts[name]
            wanted = (expected.samples or media, pairs if expected.pairs is None else expected.pairs)
            if counts[name] != wanted:
                found.append(
                    f"{name} has {media} media and {pairs} pairs, expected {wanted[0]} and {wanted[1]}"
                )
        return found


def _blocks(output: Path, shards: list[ShardEntry], *path: str) -> Iterator[np.ndarray]:
    """An array of each shard's sidecar; zeros for a kind that its samples do not have."""
    for shard in shards:
        value: Any = read_sidecar(output, shard.file)
        for name in path:
            value = value.get(name, [0] * shard.samples)
        yield np.asarray(value, dtype=np.int64)


def _check_settings(recipe: DatasetRecipe, settings: MediaSettings) -> None:
    chosen = [
        name
        for name, value in (
            ("--video-frames", settings.video_frames is not None),
            ("--video-reencode", settings.video_reencode),
        )
        if value
    ]
    if chosen and recipe.media != "video":
        raise AuroraError(f"{chosen[0]} is for video, but {recipe.name} has images. Leave it away.")
    if len(chosen) == 2:
        raise AuroraError("--video-frames and --video-reencode exclude each other. Choose one.")
    if settings.size is not None and not chosen:
        raise AuroraError(
            "--size goes with --video-frames or --video-reencode; media are else stored unchanged."
        )
    for option, value in (("--video-frames", settings.video_frames), ("--size", settings.size)):
        if value is not None and value < 1:
            raise AuroraError(f"{option} must be at least 1, not {value}.")
