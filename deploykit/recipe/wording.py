"""What the schema refuses, in plain words and with the nearest thing that it would take."""

from __future__ import annotations

__all__ = ["reason"]

import re
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from deploykit.recipe.nearest import nearest
from deploykit.recipe.places import KeyPath
from deploykit.recipe.schema import SECTIONS, Recipe, Section

SHOWN = 60  # characters of a wrong value that a message quotes

WANTED = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "model_type": "must be a mapping of keys to values",
    "string_too_short": "must not be blank",
    "string_type": "must be text (quote it if it is)",
    "tuple_type": "must be a list",
}


def reason(details: ErrorDetails) -> str:
    """One line for one error of pydantic's, without the key that it is about."""
    path, kind, value = details["loc"], details["type"], details["input"]
    context: dict[str, Any] = details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return f"must be given: {_description(path)}"
    if kind == "value_error":
        return str(context["error"])
    wanted = WANTED.get(kind) or details["msg"].replace("Input should be", "must be", 1)
    meant = None
    if kind == "literal_error" and isinstance(value, str):
        meant = nearest(value, re.findall(r"'([^']+)'", context["expected"]))
    return f"{wanted}, not {_shown(value)}" + (f"; did you mean '{meant}'?" if meant else "")


def _unknown_key(path: KeyPath) -> str:
    key, beside = str(path[-1]), _fields_beside(path)
    if close := nearest(key, beside):
        return f"unknown key; did you mean '{close}'?"
    elsewhere = {inner: f"{name}.{inner}" for name, section in SECTIONS.items() for inner in section.model_fields}
    elsewhere.update({name: name for name in Recipe.model_fields})
    if close := nearest(key, elsewhere, closeness=0.85):
        return f"unknown key; did you mean '{elsewhere[close]}'?"
    return f"unknown key (known here: {', '.join(beside) or 'none'})"


def _fields_beside(path: KeyPath) -> Mapping[str, FieldInfo]:
    """The keys of the section that the last key of a path is in."""
    fields = Recipe.model_fields
    for key in path[:-1]:
        annotation = fields[str(key)].annotation
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, Section) else {}
    return fields


def _description(path: KeyPath) -> str:
    text = _fields_beside(path)[str(path[-1])].description or ""
    return text[:1].lower() + text[1:].rstrip(".")


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
