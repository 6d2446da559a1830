"""Dataset recipes (shards/*.yaml): where a dataset's annotations and images are, its licence, and what to expect of it.

Recipes are read from the checkout's shards/ folder, or, in an installed package, from aurora_ds/shard_recipes/.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from aurora_ds.errors import AuroraError

_PACKAGE = Path(__file__).resolve().parents[2]
RECIPE_FOLDERS = (_PACKAGE.parent / "shards", _PACKAGE / "shard_recipes")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ExpectedCounts(_Model):
    """Media and pairs that a complete dataset has; None where nobody has published the number."""

    samples: PositiveInt | None = None
    pairs: NonNegativeInt | None = None


class AnnotationFiles(_Model):
    """One way in which the annotations may be there."""

    format: str = Field(description="one of the family's FORMATS")
    files: dict[str, str] = Field(
        description="split -> file, or `all` -> one file whose entries name their split; a family may ask for others"
    )
    optional: list[str] = Field(
        default_factory=list, description="keys of `files` that may be missing, as long as one file is there"
    )
    splits: dict[str, list[str]] = Field(
        default_factory=dict, description="our split -> names of it in a file with several"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="what else the family's reader takes")
    expected: dict[str, ExpectedCounts] = Field(
        default_factory=dict, description="instead of the recipe's, where these files hold another number"
    )


class AnswerList(_Model):
    """The answers that a model ranks: `file` of the source, else the most frequent top answers of `split`."""

    file: str = "answer_list.json"
    other_names: list[str] = Field(default_factory=list, description="other names of it in the source")
    split: str = "train"
    at_least: PositiveInt = Field(default=9, description="questions that an answer must belong to")
    at_most: PositiveInt | None = Field(default=None, description="answers in the list")


class DatasetRecipe(_Model):
    """One dataset. Paths are relative to the source folder; the first of `annotations` that is all there counts."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    family: str = Field(description="the reader: a key of sources.FAMILIES")
    title: str
    licence: str
    obtain: str = Field(description="where a person gets the raw data")
    layout: str = Field(description="what the source folder must look like")
    media: Literal["image", "images", "video"] = "image"
    annotation_folders: list[str] = Field(default_factory=lambda: [".", "annotations"])
    media_folders: list[str] = Field(default_factory=lambda: [".", "images"])
    annotations: list[AnnotationFiles]
    ground_truth: bool = Field(
        default=False, description="write SPLIT_gt.json for caption metrics, not for train"
    )
    answer_list: AnswerList | None = None
    expected: dict[str, ExpectedCounts] = Field(default_factory=dict)
    samples_per_shard: PositiveInt = 1000


def recipe_names() -> list[str]:
    """Names of all recipes that come with the code."""
    return sorted({path.stem for folder in RECIPE_FOLDERS for path in folder.glob("*.yaml")})


def load_recipe(name: str | Path) -> DatasetRecipe:
    """A recipe by name, or from a YAML path. Raises AuroraError with the names there are."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml"):
        candidates = [given]
    else:
        candidates = [folder / f"{name}.yaml" for folder in RECIPE_FOLDERS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        near = difflib.get_close_matches(str(name), recipe_names(), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise AuroraError(
            f"There is no dataset recipe {str(name)!r}. {hint}Recipes: {', '.join(recipe_names())}; or give "
            "the path of a YAML file like those in shards/."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AuroraError(f"{path} is not YAML: {error}") from error
    try:
        return DatasetRecipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        known = ", ".join(DatasetRecipe.model_fields)
        raise AuroraError(f"{path}: {where}: {first['msg']}. Keys of a dataset recipe: {known}.") from error
