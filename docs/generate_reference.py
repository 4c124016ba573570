"""Writes docs/reference/ from the code: every command from Click, every recipe key from the schema.

python docs/generate_reference.py writes the pages; with --check it only says which ones are stale, and exits with 1.
"""

from __future__ import annotations

__all__ = ["PAGES", "commands_page", "recipe_page"]

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deploykit.cli.main import COMMANDS, cli
from deploykit.errors import ExitCode
from deploykit.recipe import json_schema

REFERENCE = Path(__file__).parent / "reference"
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
BOUNDS = {
    "exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"
}  # fmt: skip
REPRESENTABLE = 2**31 - 1  # a bound that only says what a whole number can be is left out
MADE = "<!-- Made by docs/generate_reference.py: change the code, then run make docs. -->"
EXIT_CODES = {
    ExitCode.PASS: "pass",
    ExitCode.ERROR: "error",
    ExitCode.USAGE: "usage, or a recipe that is not valid",
    ExitCode.PARITY_FAILED: "parity failed",
    ExitCode.LATENCY_REGRESSED: "latency regressed",
    ExitCode.INCONCLUSIVE: "inconclusive: too few messages to tell",
    ExitCode.GOAL_MISSED: "goal missed; the best so far is kept",
    ExitCode.BUG: "a bug of deploykit",
    130: "interrupted",
}


def commands_page() -> str:
    """Every command with its help, arguments and options."""
    group = click.Context(cli, info_name="deploykit")
    listed = ((f"[`{name}`](#deploykit-{name})", text) for name, text in COMMANDS.items())
    parts = [
        "# Commands",
        MADE,
        "Results go to stdout, progress and diagnostics to stderr. With `--json` a command prints one JSON object, "
        'also where it fails: `{"error": ..., "hint": ..., "exit_code": ...}`. `deploykit --debug COMMAND ...` shows '
        "the traceback of an error.",
        _table(("command", "what it does"), listed),
        _table(("exit status", "meaning"), ((str(int(code)), meaning) for code, meaning in EXIT_CODES.items())),
        *(part for name in COMMANDS for part in _command(name, group)),
    ]
    return "\n\n".join(parts) + "\n"


def recipe_page() -> str:
    """Every key of a recipe with its type, default and description."""
    schema = json_schema()
    sections: Mapping[str, Any] = schema["$defs"]
    top = {key: value for key, value in schema["properties"].items() if _section(value) is None}
    parts = [
        "# Recipe",
        MADE,
        "A recipe is one YAML file. Unknown keys are refused, and all errors are listed at once, each with its line. "
        "Any key can be set on the command line: `-s finetune.epochs=3`. `deploykit schema` prints the same as a JSON "
        "schema for editors.",
        "## Top level",
        _keys(top, schema.get("required", ())),
    ]
    for key, value in schema["properties"].items():
        name = _section(value)
        if name is None:
            continue
        section = sections[name]
        parts += [f"## `{key}`", " ".join(section["description"].split())]
        if section.get("properties"):
            parts.append(_keys(_flat(section["properties"], sections), section.get("required", ())))
    return "\n\n".join(parts) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {"commands.md": commands_page, "recipe.md": recipe_page}


def _command(name: str, group: click.Context) -> list[str]:
    command = cli.get_command(group, name)
    if command is None:
        raise LookupError(name)
    context = click.Context(command, info_name=name, parent=group)
    usage = " ".join(("deploykit", name, *command.collect_usage_pieces(context)))
    paragraphs = (" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n"))
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    parts = [f"## `deploykit {name}`", f"```text\n{usage}\n```", *paragraphs]
    if options:
        rows = ((_spelling(option, context), _default(option, context), option.help or "") for option in options)
        parts.append(_table(("option", "default", "meaning"), rows))
    return parts


def _spelling(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    if isinstance(option.type, click.Choice):
        value = ", ".join(f"`{choice}`" for choice in option.type.choices)
    else:
        value = option.metavar or option.type.name.upper().removesuffix(" RANGE")
    limits = option.get_help_extra(context).get("range")
    return f"{names} {value}" + (f" `{limits}`" if limits else "") + (" (repeatable)" if option.multiple else "")


def _default(option: click.Option, context: click.Context) -> str:
    if option.required:
        return "required"
    default = option.get_help_extra(context).get("default")
    return "" if default is None else f"`{default}`"


def _flat(properties: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a section; those of a section within it are dotted."""
    found: dict[str, Any] = {}
    for key, value in properties.items():
        inner = _section(value)
        if inner is None:
            found[key] = value
        else:
            found |= {f"{key}.{name}": held for name, held in _flat(sections[inner]["properties"], sections).items()}
    return found


def _section(value: Mapping[str, Any]) -> str | None:
    """The name of the section that a key holds."""
    reference = value.get("$ref")
    return None if reference is None else str(reference).rsplit("/", 1)[1]


def _keys(properties: Mapping[str, Any], required: Sequence[str]) -> str:
    rows = (
        (f"`{key}`", _kind(value), "required" if key in required else _value(value["default"]), value["description"])
        for key, value in properties.items()
    )
    return _table(("key", "type", "default", "meaning"), rows)


def _kind(value: Mapping[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_kind(member) for member in value["anyOf"] if member.get("type") != "null")
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if value["type"] == "array":
        return f"list of: {_kind(value['items'])}"
    bounds = [f"{words} {value[key]:g}" for key, words in BOUNDS.items() if key in value and value[key] < REPRESENTABLE]
    return f"{TYPES[value['type']]} {', '.join(bounds)}".strip()


def _value(default: Any) -> str:
    return "" if default is None else f"`{json.dumps(default)}`"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells hold Markdown, one line each."""
    lines = [heading, ("---",) * len(heading), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _main(arguments: Sequence[str]) -> int:
    stale = []
    for name, page in PAGES.items():
        path, text = REFERENCE / name, page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if "--check" not in arguments:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in stale:
        click.echo(f"{'stale' if '--check' in arguments else 'wrote'}: {path.relative_to(REFERENCE.parents[1])}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
