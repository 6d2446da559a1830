"""Every recipe in shards/ says what a person needs, and fits the family that reads it."""

from __future__ import annotations

import pytest

from aurora_ds.data.convert import load_recipe
from aurora_ds.data.convert.recipe import recipe_names
from aurora_ds.data.convert.sources import family_of

OWN_DATA = (
    "folder",
    "clips",
    "questions",
    "clip_questions",
    "pairs",
    "phrases",
    "statements",
)  # nobody else's


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_fits_its_family(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert family_of(recipe).candidates("a/b.jpg")[0]
    for way in recipe.annotations:
        assert set(way.optional) <= set(way.files)
        splits = set(way.splits) or set(way.files)
        assert set(way.expected) <= splits | {"train", "val", "test"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_where_the_data_is_its_terms_and_its_layout(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.licence and recipe.title
    assert "DIR/" in recipe.layout
    # A name with a year, or of one of two files, may stand there in part.
    assert any(file in recipe.layout for way in recipe.annotations for file in way.files.values())
    if name not in OWN_DATA:
        assert "https://" in recipe.obtain and len(recipe.licence) > 40
        assert recipe.expected or any(way.expected for way in recipe.annotations)
