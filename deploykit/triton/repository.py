"""Publishing into a Triton model repository: a new version is there entirely or not at all, and never changes."""

from __future__ import annotations

__all__ = [
    "RECORD",
    "ModelFiles",
    "Package",
    "Published",
    "VersionRecord",
    "inspect_package",
    "publish",
]

import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from deploykit.artifacts.atomic import (
    check_same_filesystem,
    disk_errors,
    rename_into_place,
    staging,
    sweep,
    sync_folder,
    sync_tree,
    write_atomic,
)
from deploykit.artifacts.digest import digest_file, digest_tree
from deploykit.artifacts.lock import exclusive
from deploykit.artifacts.names import check_model_name
from deploykit.errors import RepositoryError
from deploykit.events import Listener, Note, Warn, ignore
from deploykit.triton.config import CONFIG, check_config_name, interface, parse_config
from deploykit.triton.layout import MAX_VERSION, check_repository, model_problems, version_folders

RECORD = "deploykit.json"
"""The file in a version's folder that says what was published as this version; no backend reads it."""


class VersionRecord(BaseModel):
    """What was published as one version of one model.

    Attributes:
        schema_version: of this file's form.
        model: the model's name.
        version: its number.
        published: when it was staged for publishing, in UTC.
        files: the sha256 of each file in the version's folder.
        shared: the sha256 of each file beside the version's folder (config.pbtxt, labels, warm-up data).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    version: int
    published: AwareDatetime
    files: dict[str, str]
    shared: dict[str, str]


@dataclass(frozen=True)
class ModelFiles:
    """One model of a package.

    Attributes:
        name: the model's name.
        files: the sha256 of each file of its version, relative to the version's folder.
        shared: the sha256 of each other file, relative to the model's folder.
    """

    name: str
    files: Mapping[str, str]
    shared: Mapping[str, str]


@dataclass(frozen=True)
class Package:
    """Models that are published together, with one version number.

    Attributes:
        path: the folder that they were staged in.
        models: in the order in which they go live: a model that another one calls comes before it.
    """

    path: Path
    models: tuple[ModelFiles, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, in publishing order."""
        return tuple(model.name for model in self.models)

    def digests(self, version: int = 1) -> dict[str, str]:
        """The sha256 of every file by its path from the package's folder, if its version had this number."""
        return {
            f"{model.name}/{name}": digest
            for model in self.models
            for name, digest in (
                *model.shared.items(),
                *((f"{version}/{name}", digest) for name, digest in model.files.items()),
            )
        }


@dataclass(frozen=True)
class Published:
    """Where a package is live.

    Attributes:
        repository: the repository's root.
        version: the number that all its models have.
        new: whether this call made it; not so where the same bytes were live already.
        paths: each model's version folder.
    """

    repository: Path
    version: int
    new: bool
    paths: Mapping[str, Path]


def inspect_package(staged: Path) -> Package:
    """What a staged package holds: for each model `MODEL/config.pbtxt`, `MODEL/1/...` and what it keeps beside those.

    Plain files beside the model folders don't belong to the package. A link to a file counts as the file.

    Raises:
        UsageError: a folder's name can't be a model's name.
        RepositoryError: a model has no valid configuration under its own name, or not exactly the version 1.
        ArtifactError: a file can't be read, or is a link that dangles or leaves the package.
    """
    with disk_errors(staged):
        names = [path.name for path in sorted(staged.iterdir()) if path.is_dir()]
        if not names:
            raise RepositoryError(f"{staged} has no model in it")
        for name in names:
            check_model_name(name)
        digests = digest_tree(staged)
        models = [_inspect_model(staged / name, digests) for name in names]
    return Package(staged, tuple(sorted(models, key=lambda model: (-_callers(model.name, names), model.name))))


def publish(
    staged: Path,
    repository: Path,
    *,
    expected: Mapping[str, str] | None = None,
    version: int | None = None,
    listener: Listener = ignore,
) -> Published:
    """Makes a staged package the next version of its models; the repository has it entirely or not at all.

    The files are copied to `.NAME.staging` beside the repository (in it, any folder would count as a model), compared
    with their digests, synced and renamed into place: inner models first, so that no text model is ever seen without
    the model it calls; then what lies beside the versions, where it differs. The number is one above the highest that
    any of the models has. A publishing that was cut short is completed by the next one of the same package.

    Args:
        staged: the package, see `inspect_package`.
        repository: the root of the repository, made where it is missing.
        expected: the sha256 of every file, by its path from `staged`, as it was when it passed its gates; files that
            lie in no model's folder are passed over.
        version: a number to insist on.
        listener: hears of waiting for another publisher, of what a dead one left, and of replaced files.

    Raises:
        UsageError: a model's name is impossible.
        RepositoryError: the package or the repository is malformed, a file changed since `expected`, the number is
            taken by other bytes, or the models there have another interface.
        ArtifactError: not permitted, disk full, or the repository is a mount point.
    """
    package = inspect_package(staged)
    if expected is not None:
        in_models = {name: digest for name, digest in expected.items() if "/" in name}
        _check_unchanged(package.digests(), in_models, "the package passed its checks")
    root = repository.resolve()
    home = _make_folders(root)
    with exclusive(home / "publish.lock", listener):
        sweep(home, listener)
        check_repository(root, package.names)
        _check_interfaces(package, root)
        live = {name: version_folders(root / name) for name in package.names}
        highest = max((number for folders in live.values() for number in folders), default=0)
        number = _choose_version(package, root, live=live, highest=highest, asked=version, listener=listener)
        missing = [name for name in package.names if number not in live[name]]
        stale = {model.name: _stale(model, root) for model in package.models if number >= highest}
        if missing or any(stale.values()):
            with staging(home) as scratch:
                _stage(package, number, scratch)
                _put_versions(missing, number, scratch, root)
                for name, files in stale.items():
                    _put_shared(scratch / name, root / name, files, listener)
    return Published(root, number, bool(missing), {name: root / name / str(number) for name in package.names})


def _make_folders(root: Path) -> Path:
    """Makes the repository and the folder to stage in, which is returned; refuses where no rename could join them."""
    home = root.with_name(f".{root.name}.staging")
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
    sync_folder(root.parent)
    check_same_filesystem(home, root)
    return home


def _inspect_model(folder: Path, digests: Mapping[str, str]) -> ModelFiles:
    if not (folder / CONFIG).is_file():
        raise RepositoryError(f"{folder} has no {CONFIG}; every subfolder of a repository counts as a model")
    check_config_name(parse_config(folder / CONFIG), folder / CONFIG)
    problems = model_problems(folder)
    if problems:
        raise RepositoryError("\n  - ".join([f"{folder} can't be published:", *problems]))
    if list(version_folders(folder)) != [1]:
        raise RepositoryError(
            f"{folder} must have one version folder, named 1; it gets its number when it is published"
        )
    own = _below(digests, folder.name)
    files = _below(own, "1")
    if RECORD in files:
        raise RepositoryError(f"{folder / '1' / RECORD} has a name that is kept for the record of a publishing")
    shared = {name: digest for name, digest in own.items() if not name.startswith("1/")}
    return ModelFiles(folder.name, files, shared)


def _below(digests: Mapping[str, str], folder: str) -> dict[str, str]:
    start = f"{folder}/"
    return {name.removeprefix(start): digest for name, digest in digests.items() if name.startswith(start)}


def _callers(name: str, names: Collection[str]) -> int:
    """How many models call this one: `NAME` calls `NAME_onnx`."""
    return sum(name.startswith(f"{other}_") for other in names)


def _check_unchanged(found: Mapping[str, str], wanted: Mapping[str, str], when: str) -> None:
    changed = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RepositoryError(
            f"changed, added or removed since {when}: {', '.join(changed[:3])}{more}",
            "make and check the package again; nothing was published",
        )


def _check_interfaces(package: Package, root: Path) -> None:
    for name in package.names:
        if not (root / name).is_dir():
            continue
        if not (root / name / CONFIG).is_file():
            raise RepositoryError(
                f"{root / name} exists without a {CONFIG}, so it was not published from a package",
                "move the folder away, or choose another name for the model",
            )
        live = interface(parse_config(root / name / CONFIG))
        if live and live != interface(parse_config(package.path / name / CONFIG)):
            raise RepositoryError(
                f"{root / name} has other inputs or outputs than the package: its clients would break",
                "choose another name for the model (in the recipe: name)",
            )


def _choose_version(
    package: Package,
    root: Path,
    *,
    live: Mapping[str, Mapping[int, Path]],
    highest: int,
    asked: int | None,
    listener: Listener,
) -> int:
    """The number to publish as: one with these very bytes, in all models or (cut short) in some, else a new one."""
    if asked is not None and not 1 <= asked <= MAX_VERSION:
        raise RepositoryError(f"{asked} can't be a version", "versions are counted from 1")
    candidate = highest if asked is None else asked
    holders = [model for model in package.models if candidate in live[model.name]]
    different = [model.name for model in holders if not _is_live(model, live[model.name][candidate], root, listener)]
    if asked is None:
        return _next_version(root, highest) if different or not holders or highest == 0 else highest
    if different:
        raise RepositoryError(
            f"version {asked} of {', '.join(different)} exists with other bytes, and a version never changes",
            "leave the number out: the next free one is taken",
        )
    if asked < highest and len(holders) < len(package.models):
        raise RepositoryError(
            f"version {asked} would be below the latest, {highest}, which is what Triton serves",
            "leave the number out: the next free one is taken",
        )
    return asked


def _next_version(root: Path, highest: int) -> int:
    if highest >= MAX_VERSION:
        raise RepositoryError(f"{root} has version {highest}, and there is no higher one", "choose another model name")
    return highest + 1


def _is_live(model: ModelFiles, folder: Path, root: Path, listener: Listener) -> bool:
    """Whether a version that exists is this package's model, to the byte."""
    found = {name: digest for name, digest in digest_tree(folder).items() if name != RECORD}
    record = _read_record(folder)
    if record is None:
        return found == model.files and not _stale(model, root)
    if found != record.files:
        listener(Warn(f"{folder} was changed after it was published: it is not what {RECORD} says"))
    return found == model.files and record.shared == model.shared


def _read_record(folder: Path) -> VersionRecord | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        with disk_errors(path):
            return VersionRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RepositoryError(f"{path} is damaged", "move this version out of the repository") from error


def _stage(package: Package, number: int, scratch: Path) -> None:
    """Copies the package with its number and records, checks the copy and syncs it."""
    source = package.path.resolve()
    for name in package.digests():
        model, _, rest = name.partition("/")
        target = scratch / model / (f"{number}/{rest.removeprefix('1/')}" if rest.startswith("1/") else rest)
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
    _check_unchanged(digest_tree(scratch), package.digests(number), "the publishing began")
    for model_files in package.models:
        record = VersionRecord(
            model=model_files.name,
            version=number,
            published=datetime.now(UTC),
            files=dict(model_files.files),
            shared=dict(model_files.shared),
        )
        path = scratch / model_files.name / str(number) / RECORD
        write_atomic(path, record.model_dump_json(indent=2).encode() + b"\n")
    sync_tree(scratch)


def _stale(model: ModelFiles, root: Path) -> list[str]:
    """The files beside the versions that are not live, or live with other bytes; the configuration last.

    A watching server reads the configuration, and what it names must be there by then.
    """
    folder = root / model.name
    stale = [
        name
        for name, digest in model.shared.items()
        if not (folder / name).is_file() or digest_file(folder / name) != digest
    ]
    return sorted(stale, key=lambda name: (name == CONFIG, name))


def _put_versions(names: Collection[str], number: int, scratch: Path, root: Path) -> None:
    """Renames the new versions into place, in this order; where one is refused, those before it are taken back."""
    with ExitStack() as undo:
        for name in names:
            folder = Path(name) / str(number) if (root / name).is_dir() else Path(name)
            undo.callback(_take_back, root / folder, scratch / folder)
            rename_into_place(scratch / folder, root / folder)
        undo.pop_all()


def _take_back(live: Path, staged: Path) -> None:
    if not staged.exists():  # so the rename was done
        rename_into_place(live, staged)


def _put_shared(staged: Path, live: Path, files: Collection[str], listener: Listener) -> None:
    for name in files:
        if not (staged / name).is_file():  # it came with the whole folder of a new model
            continue
        with disk_errors(live / name):
            (live / name).parent.mkdir(parents=True, exist_ok=True)
        rename_into_place(staged / name, live / name)
        listener(Note(f"replaced {live / name}"))
