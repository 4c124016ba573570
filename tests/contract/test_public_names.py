"""What every module, recipe and file of the project keeps to."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "deploykit"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = (".ci", "benchmarks", "deploykit", "docs", "recipes", "tests")
MACHINE_PATH = re.compile(r"(?<![\w.~}*)>])/(work|root|home|Users)/\w+")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def names_bound(module: ast.Module) -> Iterator[str]:
    """The names that a module's top level binds."""
    for statement in module.body:
        for node in ast.walk(statement) if not isinstance(statement, _DEFINITIONS) else [statement]:
            if isinstance(node, _DEFINITIONS):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Import | ast.ImportFrom):
                yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)


def listed(module: ast.Module) -> list[str] | None:
    """What `__all__` lists; None without one."""
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(statement.value))  # type: ignore[attr-defined]
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_for_and_what_it_offers(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), "no docstring"
    if len(module.body) == 1:
        return  # a package that only says what it is for
    public = listed(module)
    assert public is not None, "no __all__"
    assert len(set(public)) == len(public)
    assert set(public) <= set(names_bound(module))


def text_files() -> Iterator[Path]:
    folders = (path for name in FOLDERS for path in (ROOT / name).rglob("*"))
    for path in (*ROOT.iterdir(), *folders):
        if path.is_file() and not {"__pycache__", ".git"} & {*path.parts} and path.stat().st_size < 2**20:
            yield path


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize("folder", ["home", "root", "Users", "work"])
@pytest.mark.parametrize("before", ["", "cd ", 'data = "', "--repository="])
def test_the_pattern_for_such_paths_finds_them(folder: str, before: str) -> None:
    assert MACHINE_PATH.search(f"{before}/{folder}/ann/x.csv")


@pytest.mark.parametrize("line", ["~/.cache/deploykit", "https://example.org/home/ann", "$HOME/work/x"])
def test_the_pattern_for_such_paths_lets_others_be(line: str) -> None:
    assert not MACHINE_PATH.search(line)


def test_the_wheel_has_everything_that_the_package_needs(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "deploykit/py.typed" in files
    assert files <= packed
    assert Path(wheel).name.startswith(f"deploykit-{__version__}-")
    assert {name.split("/")[0].partition("-")[0] for name in packed} == {"deploykit"}
