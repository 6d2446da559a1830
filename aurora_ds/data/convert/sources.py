"""A recipe and a source folder -> the dataset family's entries.

FAMILIES is the registry. A family is a module with
    FORMATS: tuple of the formats that a recipe may name for its annotations
    read(way, files) -> iterator of Entry and Reject, in the order of the files, without holding a large file in memory
    candidates(name) -> paths at which a file may be under a media folder, best first; `stem.*` as the last part of a
                        path stands for any file of that stem with an extension of the recipe's media
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

from aurora_ds.data.convert import (
    coco,
    didemo,
    flickr30k,
    folder,
    json_stream,
    msrvtt,
    msvd,
    nlvr2,
    nocaps,
    refcoco,
    snli_ve,
    vatex,
    videoqa,
    visual_genome,
    vqa,
)
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles, DatasetRecipe
from aurora_ds.errors import AuroraError

FAMILIES: dict[str, ModuleType] = {
    "coco": coco,
    "didemo": didemo,
    "flickr30k": flickr30k,
    "folder": folder,
    "msrvtt": msrvtt,
    "msvd": msvd,
    "nlvr2": nlvr2,
    "nocaps": nocaps,
    "refcoco": refcoco,
    "snli_ve": snli_ve,
    "vatex": vatex,
    "videoqa": videoqa,
    "visual_genome": visual_genome,
    "vqa": vqa,
}


@dataclass(frozen=True)
class Annotations:
    """The annotation files that a conversion reads. `checksums`: name as in the recipe -> sha256."""

    recipe: DatasetRecipe
    way: AnnotationFiles
    files: dict[str, Path]
    checksums: dict[str, str]

    def read(self) -> Iterator[Entry | Reject]:
        """The family's stream over these files. Raises AuroraError when they have another shape."""
        yield from family_of(self.recipe).read(self.way, self.files)


def family_of(recipe: DatasetRecipe) -> ModuleType:
    """The module that reads the recipe's annotations. Raises AuroraError naming the families there are."""
    module = FAMILIES.get(recipe.family)
    if module is None:
        raise AuroraError(
            f"Dataset recipe {recipe.name}: there is no family {recipe.family!r}; there is {', '.join(FAMILIES)}."
        )
    for way in recipe.annotations:
        if way.format not in module.FORMATS:
            raise AuroraError(
                f"Dataset recipe {recipe.name}: family {recipe.family} has no format {way.format!r}; it reads "
                f"{', '.join(module.FORMATS)}."
            )
    return module


def find_annotations(recipe: DatasetRecipe, source: Path) -> Annotations:
    """The first way in the recipe whose files are all there, but for those it calls optional.

    Raises AuroraError when there is no source folder, or no complete way: what is missing, and the layout.
    """
    family_of(recipe)
    if not source.is_dir():
        raise AuroraError(
            f"There is no source folder {source}. It must look like this:\n{recipe.layout}\n{recipe.obtain}"
        )
    missing = []
    for way in recipe.annotations:
        for place in recipe.annotation_folders:
            paths = {key: source / place / name for key, name in way.files.items()}
            there = {key: path for key, path in paths.items() if path.is_file()}
            if there and all(key in there or key in way.optional for key in paths):
                checksums = {way.files[key]: json_stream.file_sha256(path) for key, path in there.items()}
                return Annotations(recipe, way, there, checksums)
            wanted = [key for key in paths if key not in there and key not in way.optional]
            missing += [str(PurePosixPath(place) / way.files[key]) for key in wanted]
    raise AuroraError(
        f"{source} has no complete set of annotations for {recipe.name}: missing "
        f"{', '.join(dict.fromkeys(missing))}. The source folder must look like "
        f"this:\n{recipe.layout}\n{recipe.obtain}"
    )
