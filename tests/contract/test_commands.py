"""Every command has help, takes --json, is documented, and loads nothing heavy before it has to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deploykit.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "scipy", "sklearn", "tritonclient", "pyarrow", "rich")
LOADED = (
    "import sys; from deploykit.cli import main; code = main(sys.argv[1:]); "
    f"print(*sorted(set(sys.modules) & {{*{HEAVY!r}}}), file=sys.stderr); sys.exit(code)"
)
"""Runs a command and says on stderr which of the heavy packages that loaded."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOADED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def test_help_loads_nothing_heavy() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.startswith(f"Usage: deploykit {name} ")


def test_check_loads_nothing_heavy(tmp_path: Path) -> None:
    done = run("check", "recipes/quickstart.yaml", "--workspace", str(tmp_path / "ws"))
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert "finetune  to do" in done.stdout


def test_a_command_that_needs_them_is_seen_to_load_them() -> None:
    """The tests above could not fail if the names of the packages were not found in sys.modules."""
    done = run("bench", "sample:none", "--data", "sample:support/test")
    assert done.returncode == 2
    assert {"numpy", "rich"} <= set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_each_of_its_options_say_what_they_do(name: str) -> None:
    found = command(name)
    assert found.name == name
    assert found.help
    for option in found.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            shown = option.make_metavar(click.Context(found))
            assert not shown.startswith("_"), f"{option.name} shows the name of a function: {shown}"
            assert shown != "ANNOTATED", option.name
    flags = {flag for option in found.params for flag in option.opts}
    assert "--json" in flags or name == "completion"  # a script is no result


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate_reference.py"), "--check"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), f"run: make docs\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented_with_all_of_its_options(name: str) -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    part = re.search(rf"^## `deploykit {name}`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert part is not None
    for option in command(name).params:
        for flag in option.opts if isinstance(option, click.Option) else ():
            assert f"`{flag}`" in part[1]


def test_every_recipe_key_is_documented() -> None:
    from deploykit.recipe.schema import SECTIONS, Recipe

    page = (REFERENCE / "recipe.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for section, model in SECTIONS.items():
        documented = re.findall(r"^\| `([\w.]+)` \|", parts[f"`{section}`"], re.MULTILINE)
        assert list(dict.fromkeys(name.split(".")[0] for name in documented)) == list(model.model_fields)
    top = re.findall(r"^\| `(\w+)` \|", parts["Top level"], re.MULTILINE)
    assert {*top, *SECTIONS} == set(Recipe.model_fields)


@pytest.mark.parametrize("name", ["commands.md", "recipe.md"])
def test_the_tables_of_the_reference_are_well_formed(name: str) -> None:
    """Every row has as many cells as its heading, and a rule below that; no row is a wall of text."""
    columns = 0
    for line in [*(REFERENCE / name).read_text(encoding="utf-8").splitlines(), ""]:
        if not line.startswith("|"):
            columns = 0
            continue
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        assert line.endswith("|")
        assert columns in (0, len(cells)), line
        if columns == 0:
            heading = True
        elif heading:
            assert {cell.strip() for cell in cells} == {"---"}
            heading = False
        columns = len(cells)
        assert len(line) < 400, line
