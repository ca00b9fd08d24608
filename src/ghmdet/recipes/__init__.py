"""Recipes: settings of a training run that go together, each a commented YAML file in this folder."""

from pathlib import Path
from typing import Any

from ghmdet.errors import unknown_name

RECIPES = ("small_data", "long_tail", "noisy_labels", "coco_r50_ghm", "coco_r50_focal")


def recipe_text(name: str) -> str:
    """The file of a recipe; raises GhmdetError for an unknown name."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")


def recipe_settings(name: str) -> dict[str, Any]:
    """The settings of a recipe by the names of `ghmdet train`'s options; raises GhmdetError for an unknown name."""
    import yaml  # takes longer than all else that `--help` needs

    settings: dict[str, Any] = yaml.safe_load(recipe_text(name))
    return settings
