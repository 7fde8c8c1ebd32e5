"""What is requested: recipes, search spaces and their files; needs no torch."""

from mixtune.space.recipe import Recipe, parse_recipe
from mixtune.space.space import SearchSpace, load_space

__all__ = ["Recipe", "SearchSpace", "load_space", "parse_recipe"]
