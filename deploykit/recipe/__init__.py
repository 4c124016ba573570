"""Recipes: what to build, typed and checked."""

from __future__ import annotations

__all__ = [
    "Data",
    "Export",
    "Finetune",
    "Goal",
    "Latency",
    "Machine",
    "Package",
    "Pretrain",
    "Prune",
    "Quantize",
    "Recipe",
    "Serve",
    "check_machine",
    "json_schema",
    "load_recipe",
    "this_machine",
]

from deploykit.recipe.load import load_recipe
from deploykit.recipe.machine import Machine, check_machine, this_machine
from deploykit.recipe.schema import (
    Data,
    Export,
    Finetune,
    Goal,
    Latency,
    Package,
    Pretrain,
    Prune,
    Quantize,
    Recipe,
    Serve,
    json_schema,
)
