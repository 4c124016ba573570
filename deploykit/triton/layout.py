"""What Triton makes of the folders in a model repository: models, versions, links."""

from __future__ import annotations

__all__ = ["MAX_VERSION", "check_repository", "model_problems", "version_folders", "with_called_models"]

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from deploykit.artifacts.atomic import disk_errors
from deploykit.errors import RepositoryError
from deploykit.triton.config import CONFIG, parse_config

MAX_VERSION = 2**63 - 1

_VERSION = re.compile(r"0|[1-9][0-9]*", re.ASCII)


def check_repository(root: Path, models: Collection[str] | None = None) -> None:
    """Refuses a repository in which Triton would see other versions than people do, or would fail.

    Args:
        root: the repository.
        models: look only at these models (and at links in the root, one of which spoils all); all where None.

    Raises:
        RepositoryError: with every problem found, one a line.
        ArtifactError: the repository is missing or can't be read.
    """
    with disk_errors(root):
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and (models is None or path.name in models)]
        problems = list(_link_problems(root, folders))
        for folder in folders:
            problems += model_problems(folder)
    if problems:
        raise RepositoryError(
            "\n  - ".join([f"{root} is not a sound Triton repository:", *problems]), "move what is named out of it"
        )


def with_called_models(repository: Path, models: Collection[str]) -> tuple[str, ...]:
    """The models and those they call: the text entry NAME can't answer where NAME_onnx is not loaded too."""
    called = [f"{name}_onnx" for name in models if (repository / f"{name}_onnx").is_dir()]
    return tuple(dict.fromkeys([*models, *called]))


def version_folders(model: Path) -> dict[int, Path]:
    """A model's version folders by their number, ascending; none where the model is not there."""
    folders = [path for path in model.iterdir() if path.is_dir()] if model.is_dir() else []
    return dict(sorted((int(path.name), path) for path in folders if _VERSION.fullmatch(path.name)))


def model_problems(model: Path) -> list[str]:
    """What is wrong with a model's folder: its own name, its versions' names and content, its configuration's name.

    Raises:
        RepositoryError: its configuration can't be parsed.
    """
    if model.name.startswith("."):
        return [f"{model} counts as a model for Triton, though its name begins with a dot"]
    folders = sorted(path for path in model.iterdir() if path.is_dir())
    problems = [f"{folder} {problem}" for folder in folders if (problem := _version_problem(folder.name))]
    problems += [
        f"{folder} is a version without a file" for folder in version_folders(model).values() if _empty(folder)
    ]
    if (model / CONFIG).is_file():
        named = parse_config(model / CONFIG).name
        if named and named != model.name:  # Triton takes the folder's name where there is none
            problems.append(f"{model / CONFIG} names the model {named!r}, its folder {model.name!r}")
    return problems


def _version_problem(name: str) -> str | None:
    """Why a subfolder of a model is trouble; None where it is a version, or nothing that Triton takes for one.

    Triton skips names with a leading zero and reads the others with std::stoll, which stops at the first character that
    is no digit; what stoll can't hold throws an exception that nobody catches there (VersionsToLoad in
    triton-inference-server/core, src/model_repository_manager).
    """
    if name.startswith("0") and name != "0":
        return "has a leading zero, so Triton ignores it"
    number = re.match(r"\s*([+-]?[0-9]+)", name, re.ASCII)
    if number is None:
        return None
    if abs(int(number[1])) > MAX_VERSION:
        return "is beyond what Triton can hold as a version (int64)"
    return None if _VERSION.fullmatch(name) else f"is no version, but Triton reads it as version {int(number[1])}"


def _empty(version: Path) -> bool:
    return not any(path.is_file() for path in version.rglob("*"))


def _link_problems(root: Path, models: Collection[Path]) -> Iterator[str]:
    inside = root.resolve()
    nested = (
        Path(base) / name for model in models for base, folders, files in os.walk(model) for name in (*folders, *files)
    )
    for path in sorted({*root.iterdir(), *nested}):
        if not path.is_symlink():
            continue
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            yield f"{path} is a link to nothing, which fails Triton's listing of the folder"
            continue
        if not target.is_relative_to(inside):
            yield f"{path} is a link that leaves the repository: what it serves could change without a new version"
