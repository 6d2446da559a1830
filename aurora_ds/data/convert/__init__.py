"""Raw datasets to tar shards: recipes, one file per dataset family, and the conversion itself."""

from aurora_ds.data.convert.conversion import convert
from aurora_ds.data.convert.recipe import DatasetRecipe, load_recipe, recipe_names

__all__ = ["DatasetRecipe", "convert", "load_recipe", "recipe_names"]
