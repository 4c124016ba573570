"""From YAML text to plain values, noting where each key was written."""

from __future__ import annotations

__all__ = ["Values", "compose", "line_and_reason"]

import re
from dataclasses import dataclass
from typing import Any

import yaml

from deploykit.recipe.places import KeyPath, Place, Sheet

DEEPEST = 20  # levels of nesting; a recipe has 3
CORE_TAG = "tag:yaml.org,2002:"


class _CoreLoader(yaml.SafeLoader):
    """YAML with the scalars of the 1.2 core schema, without aliases, to a limited depth.

    PyYAML's own rules are those of YAML 1.1, which read `1e-4` as text, `no` as false and `1:30` as 90.
    """

    # A value of PyYAML's own, shared by loaders unless a loader has its own.
    yaml_implicit_resolvers = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not read here", problem_mark=event.start_mark)
        if self.depth >= DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _CoreLoader.add_implicit_resolver(CORE_TAG + _kind, re.compile(_pattern), _first)


def compose(text: str) -> yaml.Node | None:
    """The root node of one YAML document; None when there is nothing in it.

    Raises:
        yaml.YAMLError: the text is not one YAML document, has anchors, or is nested too deeply.
    """
    loader = _CoreLoader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def line_and_reason(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """The line (from 1) of a YAML error, and what it says."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        return (mark.line + 1 if mark else 1), f"not valid YAML: {said}"
    return 1, f"not valid YAML: {error}"


@dataclass(frozen=True)
class Values:
    """Makes plain values of YAML nodes; `file` is None within an override, whose place stands for all below it."""

    sheet: Sheet
    file: str | None

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """The dict, list or scalar that a node holds; what can't be read goes to the sheet."""
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._inner(item, item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str) or not _is_text(key):
                self.sheet.refuse(path, "a key must be a plain name", self._place(key_node, path))
            elif key in found:
                reason = f"the key is given twice (first on line {first_lines[key]})"
                self.sheet.refuse((*path, key), reason, self._place(key_node, path))
            else:
                first_lines[key] = key_node.start_mark.line + 1
                found[key] = self._inner(key_node, value_node, (*path, key))
        return found

    def _inner(self, place_node: yaml.Node, node: yaml.Node, path: KeyPath) -> Any:
        if self.file is not None:
            self.sheet.places[path] = self._place(place_node, path)
        return self.value(node, path)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        text: str = node.value
        refusal = f"the tag {node.tag} is not read here"
        try:
            match node.tag.removeprefix(CORE_TAG):
                case "null":
                    return None
                case "bool" if text.casefold() in ("true", "false"):
                    return text.casefold() == "true"
                case "int":
                    return int(text)
                case "float":
                    return float(text)
                case "str" if _is_text(text):
                    return text
                case "str":
                    refusal = "holds half of a character (a lone surrogate)"
        except ValueError:  # `!!int x`, or more digits than Python reads
            refusal = "not a number that can be read"
        self.sheet.refuse(path, refusal, self._place(node, path))
        return text

    def _place(self, node: yaml.Node, path: KeyPath) -> Place:
        if self.file is None:
            return self.sheet.place(path)
        line = node.start_mark.line + 1
        return Place(line, f"{self.file}:{line}")


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
