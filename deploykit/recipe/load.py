"""From a recipe file and overrides to a Recipe, or to one error that lists every problem with its place."""

from __future__ import annotations

__all__ = ["DATA_FILES", "load_recipe"]

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deploykit.errors import RecipeError
from deploykit.recipe.places import Place, Sheet
from deploykit.recipe.schema import SECTIONS, Recipe
from deploykit.recipe.wording import reason
from deploykit.recipe.yaml_values import Values, compose, line_and_reason

LARGEST_BYTES = 2**20  # a larger file was passed by mistake
DOTTED = re.compile(r"[\w-]+(\.[\w-]+)*")
AFTER_THE_FILE = 2**31  # sorts the problems of overrides behind those of any line

DATA_FILES = ("train", "test", "validation", "unlabelled", "entries")  # keys of `data` that may name a file


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `KEY=VALUE` overrides applied.

    Keys of an override are dotted (`finetune.epochs=3`) and its value is YAML. A relative file named in the recipe
    (`model`, `data.train`, `data.test` and so on) is looked for in the recipe's own folder, then in the
    current folder; one named in an override only in the current folder. Scalars follow YAML 1.2 (`1e-4` is a number,
    `no` is text); anchors, aliases and tags are refused. The environment is not read.

    Raises:
        RecipeError: the file can't be read, or anything in it or in an override is wrong. The message has one line
            for each problem: the file and line (or the override), the key, and what is wrong with it.
    """
    sheet = Sheet()
    data = _from_file(path, sheet)
    readable = data is not None
    data = data or {}
    for override in overrides:
        _apply(override, data, sheet)
    recipe = _validated(data, sheet) if readable else None
    if recipe is None or sheet.problems:
        raise RecipeError(sheet.listing())
    return recipe


def _validated(data: dict[str, Any], sheet: Sheet) -> Recipe | None:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            sheet.refuse(details["loc"], reason(details))
        return None


def _from_file(path: Path, sheet: Sheet) -> dict[str, Any] | None:
    """The recipe's plain values; None after a problem that hides all others."""
    text = _read(path)
    sheet.places[()] = Place(1, f"{path}:1")
    try:
        node = compose(text)
    except yaml.YAMLError as error:
        line, said = line_and_reason(error, text)
        sheet.refuse((), said, Place(line, f"{path}:{line}"))
        return None
    if not isinstance(node, yaml.MappingNode):
        sheet.refuse((), "the recipe is empty" if node is None else "a recipe is a mapping of keys to values")
        return None
    data: dict[str, Any] = Values(sheet, str(path)).value(node, ())
    for section in SECTIONS:
        if section in data and data[section] is None:
            data[section] = {}  # `finetune:` with every line below it commented out
    data.setdefault("name", _name_of(path))
    _find_beside(path.parent, data)
    return data


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise RecipeError(f"{path}: is a folder, not a recipe file", "name the .yaml file in it")
        if path.stat().st_size > LARGEST_BYTES:
            raise RecipeError(f"{path}: is larger than {LARGEST_BYTES} bytes, so it is no recipe")
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file", "`deploykit init DIR` writes a recipe that runs") from error
    except OSError as error:
        raise RecipeError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise RecipeError(f"{str(path)!r}: is not a file name: {error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        said = f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8"
        raise RecipeError(f"{path}:{line}: {said}", "save the recipe as UTF-8 text") from error


def _name_of(path: Path) -> str:
    """A model name made of the recipe file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem).lstrip("._-")[:100].rstrip(".") or "model"


def _find_beside(folder: Path, data: dict[str, Any]) -> None:
    """Points the files that lie beside the recipe there."""
    inner = data.get("data")
    places = [(data, "model")] + [(inner, key) for key in DATA_FILES if isinstance(inner, dict)]
    for section, key in places:
        value = section.get(key)
        if isinstance(value, str) and value and os.path.exists(folder / value):
            section[key] = str(folder / value)


def _apply(override: str, data: dict[str, Any], sheet: Sheet) -> None:
    """Sets one key to an override's value."""
    place = Place(AFTER_THE_FILE, f"-s {override if override.isprintable() else repr(override)}")
    dotted, separator, text = override.partition("=")
    path = tuple(dotted.split("."))
    if not separator or not DOTTED.fullmatch(dotted):
        sheet.refuse((), "an override is KEY=VALUE, such as finetune.epochs=3", place)
        return
    section = data
    for end, key in enumerate(path[:-1], start=1):
        if key not in section:
            section[key] = {}
            sheet.places[path[:end]] = place
        if not isinstance(section[key], dict):
            sheet.refuse(path, f"'{key}' is not a section, so it has no keys", place)
            return
        section = section[key]
    try:
        node = compose(text)
    except yaml.YAMLError as error:
        sheet.refuse(path, f"{line_and_reason(error, text)[1]} (text needs quotes)", place)
        return
    sheet.overwrite(path, place)
    section[path[-1]] = None if node is None else Values(sheet, None).value(node, path)
