"""Tiny random model of every served family, as data, in files by what their attention does: which
classes of transformers, and what their configs set.

What makes a family's attention differ (norms, windows, multipliers, layers that do not rotate) is
switched on, even where the config's default leaves it off.
"""

from __future__ import annotations

from collections.abc import Mapping

from ropebridge_conformance.zoo.recipes import (
    encoders,
    gated,
    latent,
    local,
    normed,
    plain,
    special,
)
from ropebridge_conformance.zoo.recipes.recipe import Recipe

GROUPS = (plain, normed, local, gated, latent, encoders, special)
RECIPES: tuple[Recipe, ...] = tuple(recipe for group in GROUPS for recipe in group.RECIPES)
INSTALLED = tuple(recipe for recipe in RECIPES if recipe.installed)
RECIPE_BY_NAME: Mapping[str, Recipe] = {recipe.name: recipe for recipe in RECIPES}
