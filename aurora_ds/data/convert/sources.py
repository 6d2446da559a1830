"""A recipe and a source folder -> what to convert: the media of each split and the file of each.

How a family's annotations name image files is in coco.py, flickr30k.py and folder.py; here is what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from aurora_ds.data.convert import coco, flickr30k, folder
from aurora_ds.data.convert.annotations import Medium, Reject, blip_list, karpathy, read_json, usable
from aurora_ds.data.convert.recipe import AnnotationFiles, DatasetRecipe
from aurora_ds.errors import AuroraError

# Paths at which an image may be, relative to an image folder, from the name in the annotation; the first that
# exists counts.
_CANDIDATES: dict[str, Callable[[str], list[str]]] = {
    "coco": coco.image_paths,
    "flickr30k": flickr30k.image_paths,
    "folder": folder.image_paths,
}


@dataclass(frozen=True)
class SourceMedium:
    """A medium with its file. `number`: place in its split's annotations, rejected ones counted.

    Without a file (`path` None) it stays listed, with the reason: shards keep their media when it turns up later.
    """

    number: int
    path: Path | None
    medium: Medium
    problem: str = ""


@dataclass
class SourceSplits:
    """All that is to be converted, and what was rejected before any image was opened."""

    media: dict[str, list[SourceMedium]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)  # of captions, before any image was looked for
    annotations: dict[str, dict[str, str]] = field(default_factory=dict)
    listed: int = 0  # media in the annotations, rejected ones counted

    def missing(self) -> list[Reject]:
        """A reject for each medium without a file."""
        return [
            Reject(split, each.medium.image, each.problem)
            for split, media in self.media.items()
            for each in media
            if each.path is None
        ]

    def counts(self) -> dict[str, tuple[int, int]]:
        """(media, pairs) of each split that have a file."""
        there = {split: [each.medium for each in media if each.path] for split, media in self.media.items()}
        return {
            split: (len(media), sum(len(each.captions) for each in media)) for split, media in there.items()
        }


def read_sources(recipe: DatasetRecipe, source: Path, limit: int | None) -> SourceSplits:
    """Annotations of the recipe under `source`, at most `limit` media a split, with image files found.

    Raises AuroraError when the source or its annotations are missing or of another shape.
    """
    if not source.is_dir():
        raise AuroraError(
            f"There is no source folder {source}. It must look like this:\n{recipe.layout}\n{recipe.obtain}"
        )
    chosen, found = _find_annotations(recipe, source)
    result = SourceSplits()
    for split, media in _parse(recipe, chosen, found, result).items():
        media = media[:limit]
        result.listed += len(media)
        kept, rejects = usable(split, media)
        result.rejects += rejects
        result.media[split] = []
        for number, medium in kept:
            path, problem = _find_image(recipe, source, medium.image)
            result.media[split].append(SourceMedium(number, path, medium, problem))
    return result


def _find_annotations(recipe: DatasetRecipe, source: Path) -> tuple[AnnotationFiles, dict[str, Path]]:
    """The first way in the recipe whose files are there; for `folder` any of its files is enough."""
    missing = []
    for way in recipe.annotations:
        for place in recipe.annotation_folders:
            paths = {split: source / place / name for split, name in way.files.items()}
            there = {split: path for split, path in paths.items() if path.is_file()}
            if there and (len(there) == len(paths) or way.format == "folder"):
                return way, there
            missing += [
                str(PurePosixPath(place) / path.name) for split, path in paths.items() if split not in there
            ]
    raise AuroraError(
        f"{source} has no complete set of annotations for {recipe.name}: missing "
        f"{', '.join(dict.fromkeys(missing))}. The source folder must look like "
        f"this:\n{recipe.layout}\n{recipe.obtain}"
    )


def _parse(
    recipe: DatasetRecipe, way: AnnotationFiles, found: dict[str, Path], result: SourceSplits
) -> dict[str, list[Medium]]:
    splits: dict[str, list[Medium]] = {}
    for file_split, path in found.items():
        content, sha256 = read_json(path)
        result.annotations[path.name] = {"format": way.format, "sha256": sha256}
        if way.format == "karpathy":
            parts = karpathy(content, path, way.splits)
        else:
            parts = blip_list(content, path)
        for own_split, media in parts.items():
            split = file_split if file_split != "all" else own_split or "train"
            if not split.isidentifier():
                raise AuroraError(
                    f"{path} names a split {split!r}; a split's name is letters, digits and _, such as train."
                )
            splits.setdefault(split, []).extend(media)
    return splits


def _find_image(recipe: DatasetRecipe, source: Path, image: str) -> tuple[Path | None, str]:
    """(the file of an image, "") or (None, why there is none)"""
    name = PurePosixPath(image)
    if name.is_absolute() or ".." in name.parts:
        return None, "the path leads out of the source folder"
    for candidate in _CANDIDATES[recipe.family](image):
        for place in recipe.image_folders:
            path = source / place / candidate
            if path.is_file():
                return path, ""
    return None, "there is no such image file"
