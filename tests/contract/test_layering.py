"""Imports point one way, and the command line's libraries stay in the command line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from deploykit.tasks import find_task, task_names

PACKAGE = Path(__file__).parents[2] / "deploykit"
LEVELS = (
    {"errors", "events", "machine"},
    {"data", "artifacts", "recipe"},
    {"tasks", "runners"},
    {"train", "compress", "export", "parity", "latency", "monitor", "triton", "report"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
)
"""The lowest first; `deploykit` itself has the version, which all may read, and `load`, for callers from outside."""
CARRIED = {name: tuple(path.relative_to(PACKAGE) for path in find_task(name).entry()) for name in task_names()} | {
    "the onnxruntime backend": (Path("triton/backends/onnxruntime/model.py"),)
}
"""Modules that run inside of Triton, where there is no deploykit, by the task that they lie beside each other for."""
IN_THE_SERVER = {"numpy", "onnxruntime", "tokenizers", "triton_python_backend_utils"}
"""What else they find there."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it the import stands."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> list[str]:
    inner = path.relative_to(PACKAGE.parent).with_suffix("")
    is_package = inner.name == "__init__"
    parts = inner.parent.parts if is_package else inner.parts
    return list(imports(path.read_text(encoding="utf-8"), ".".join(parts), is_package=is_package))


def unit(path: Path) -> str:
    """The package, or module of the first level, that a file belongs to; '' for deploykit itself."""
    name = path.relative_to(PACKAGE).with_suffix("").parts[0]
    return "" if name == "__init__" else name


def own_imports(path: Path) -> set[str]:
    """The units of deploykit that a file imports, its own left out."""
    names = (name.split(".") for name in imports_of(path))
    found = {name[1] for name in names if name[0] == "deploykit" and name[1:] not in ([], ["__version__"])}
    return found - {unit(path)}


def level(name: str) -> int:
    return next(number for number, units in enumerate(LEVELS) if name in units)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import click", ["click"]),
        ("def late():\n    from deploykit.cli import main", ["deploykit.cli.main"]),
        ("if TYPE_CHECKING:\n    import rich.console", ["rich.console"]),
        ("from .rows import Row", ["deploykit.data.rows.Row"]),
        ("from ..errors import DataError", ["deploykit.errors.DataError"]),
        ("from deploykit import machine", ["deploykit.machine"]),
    ],
)
def test_the_reader_of_imports_sees_every_kind(source: str, found: list[str]) -> None:
    assert list(imports(source, "deploykit.data.readers")) == found


def test_every_package_has_its_level() -> None:
    units = {unit(path) for path in MODULES} - {""}
    assert units == set().union(*LEVELS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_level_and_below(path: Path) -> None:
    if unit(path) == "":
        assert own_imports(path) == {"tasks"}
        return
    above = {name for name in own_imports(path) if level(name) > level(unit(path))}
    assert above == set(), f"{path.name} imports from above"


def test_no_packages_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if unit(path):
            graph.setdefault(unit(path), set()).update(own_imports(path))
    assert not any(name.split(".")[:2] == ["deploykit", "load"] for path in MODULES for name in imports_of(path))
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_command_line_imports_click_and_rich() -> None:
    for path in MODULES:
        foreign = {name.split(".")[0] for name in imports_of(path)} & {"click", "rich"}
        assert unit(path) == "cli" or not foreign, f"{path} imports {foreign}"


@pytest.mark.parametrize("name", CARRIED)
def test_what_runs_inside_of_triton_imports_what_lies_beside_it(name: str) -> None:
    beside = {path.stem for path in CARRIED[name]}
    for path in CARRIED[name]:
        foreign = {each.split(".")[0] for each in imports_of(PACKAGE / path)}
        assert foreign <= {*sys.stdlib_module_names, *IN_THE_SERVER, *beside}, f"what a package does not carry: {path}"


def test_every_entry_is_some_tasks() -> None:
    entries = {path.relative_to(PACKAGE) for path in (PACKAGE / "triton" / "entries").glob("*.py")}
    assert entries - {Path("triton/entries/__init__.py")} <= {path for paths in CARRIED.values() for path in paths}
