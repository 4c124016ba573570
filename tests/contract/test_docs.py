"""What the documentation says exists: links lead somewhere, command lines parse, recipes validate."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from deploykit.cli.main import cli
from deploykit.pipeline.scaffold import scaffold
from deploykit.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "model_repository/README.md", "benchmarks/*.md", "recipes/*.md")
    for path in ROOT.glob(pattern)
)
TYPED = [page for page in PAGES if "reference" not in page.parts]  # that is made from the commands themselves
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language as written, its text without the fence."""

    language: str
    body: str


def blocks(page: Path) -> list[Block]:
    return [Block(match["language"], match["body"]) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by, made as GitHub makes them."""
    plain = (re.sub(r"[`*]", "", heading).lower() for heading in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@dataclass(frozen=True)
class CommandLine:
    """The arguments of a `deploykit ...`; a mention in the text need not give all that are required."""

    arguments: tuple[str, ...]
    is_mention: bool


def command_lines(page: Path) -> Iterator[CommandLine]:
    """Every `deploykit ...` in the page's code, up to a shell operator or comment."""
    fenced = [(block.body.replace("\\\n", " "), False) for block in blocks(page)]
    for source, is_mention in [*fenced, *((span, True) for span in _SPAN.findall(prose(page)))]:
        for line in source.splitlines():
            found = re.search(r"(?:^|[\s'\"(;&|])deploykit +(?=\S)", line)
            if found is None or "import" in line.split():
                continue
            lexer = shlex.shlex(line[found.end() :].rstrip("\"'`"), posix=True, punctuation_chars=True)
            lexer.wordchars += "[]{}%@,:$!"
            yield CommandLine(tuple(_until_operator(lexer)), is_mention)


def _until_operator(lexer: shlex.shlex) -> Iterator[str]:
    for token in lexer:
        if token[0] in "|&;<>()":
            return
        yield token


def id_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (fragment and path.suffix == ".md" and fragment not in anchors(path)):
            broken.append(target)
    return broken


@pytest.fixture
def _parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: None)


@pytest.mark.usefixtures("_parse_only")
@pytest.mark.parametrize("page", TYPED, ids=id_of)
def test_command_lines_parse(page: Path) -> None:
    assert [said for line in command_lines(page) if (said := what_is_wrong(line))] == []


def what_is_wrong(line: CommandLine) -> str | None:
    try:
        cli.main(args=list(line.arguments), prog_name="deploykit", standalone_mode=False)
    except click.MissingParameter as error:
        return None if line.is_mention else f"{shlex.join(line.arguments)}: {error.format_message()}"
    except click.BadParameter as error:
        files = "does not exist" in error.message  # a reader has the files that the docs name
        return None if files else f"{shlex.join(line.arguments)}: {error.format_message()}"
    except click.UsageError as error:
        return f"{shlex.join(line.arguments)}: {error.format_message()}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_overrides_name_keys_that_recipes_have(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    overrides = re.findall(r"(?:-s|--set)[ =]'?([a-z_]+(?:\.[a-z0-9_]+)*=[^\s`',;)]+)", text)
    for override in overrides:
        load_recipe(QUICKSTART, [override.rstrip(".:")])


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_recipes_validate(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(block for block in blocks(page) if block.language == "yaml"):
        if re.search(r"^version: 1$", block.body, re.MULTILINE):
            recipe = tmp_path / f"recipe_{number}.yaml"
            recipe.write_text(block.body, encoding="utf-8")
            load_recipe(recipe)


def test_the_tutorial_shows_the_recipe_that_init_writes(tmp_path: Path) -> None:
    scaffold(tmp_path / "support")
    written = tmp_path / "support" / "recipe.yaml"
    shown = tmp_path / "support" / "shown.yaml"
    shown.write_text(next(block.body for block in blocks(ROOT / "docs" / "tutorial.md") if block.language == "yaml"))
    assert load_recipe(shown) == load_recipe(written)


def test_the_docs_have_command_lines_and_recipes_to_check() -> None:
    found = [line for page in TYPED for line in command_lines(page) if not line.is_mention]
    assert len(found) > 25
    assert {line.arguments[0] for line in found} >= {
        "init", "check", "run", "finetune", "export", "quantize", "package", "parity", "serve", "ask"
    }  # fmt: skip


@pytest.mark.usefixtures("_parse_only")
@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`deploykit serve --prot 1`", True),
        ("`deploykit srve`", True),
        ("`deploykit ask`", False),
        ("```sh\ndeploykit ask > out\n```\n", True),
        ("```sh\nx=1 && deploykit ask support hello --top-k 2 | head  # the best two\n```\n", False),
        ("```sh\ndeploykit ask support hello --top-k none\n```\n", True),
    ],
)
def test_a_wrong_command_line_is_found(text: str, wrong: bool, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    (line,) = command_lines(page)
    assert (what_is_wrong(line) is not None) == wrong


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `heading`: one\n[a](#a-heading-one) [b](#two) [c](page.md#a-heading-one) [d](gone.md)\n")
    assert broken_links(page) == ["#two", "gone.md"]
