"""The content-addressed store: what a stage made before is found by its key, verified, and not made again."""

from __future__ import annotations

__all__ = ["Artifact", "Draft", "Store", "read_artifact"]

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue, ValidationError

from deploykit.artifacts.atomic import (
    check_same_filesystem,
    disk_errors,
    rename_into_place,
    staging,
    sweep,
    sync_tree,
)
from deploykit.artifacts.digest import digest_tree
from deploykit.artifacts.lock import exclusive
from deploykit.artifacts.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from deploykit.errors import ArtifactError, UsageError
from deploykit.events import Listener, Warn, ignore

_KEY_DIGITS = 16
"""How much of the key names the folder; the manifest has all of it."""


@dataclass(frozen=True)
class Artifact:
    """The immutable output folder of a stage, complete and verified when it was read.

    Attributes:
        path: the folder.
        manifest: what is known of it.
    """

    path: Path
    manifest: Manifest


@dataclass
class Draft:
    """An artefact in the making.

    Attributes:
        path: the folder to write into.
        info: facts to keep in the manifest, JSON values.
        artifact: the finished artefact, once the `with` block has ended without an exception.
    """

    path: Path
    info: dict[str, JsonValue] = field(default_factory=dict)
    artifact: Artifact | None = None


def read_artifact(folder: Path) -> Artifact:
    """An artefact, every file of which was compared with its digest.

    Raises:
        ArtifactError: the folder is not a complete artefact, or a file changed, vanished or was added.
    """
    manifest = read_manifest(folder)
    found = {name: digest for name, digest in digest_tree(folder).items() if name != MANIFEST}
    for name in sorted(found.keys() | manifest.files.keys()):
        if name not in found:
            raise ArtifactError(f"{folder / name} is missing")
        if name not in manifest.files:
            raise ArtifactError(f"{folder / name} does not belong to the artefact")
        if found[name] != manifest.files[name]:
            raise ArtifactError(f"{folder / name} was changed after it was made")
    return Artifact(folder, manifest)


class Store:
    """Artefacts under one folder: `ROOT/STAGE/KEY/`, KEY being the first 16 digits of the key.

    `ROOT/.locks`, `ROOT/.staging` and `ROOT/.work` are the store's own.

    Args:
        root: the folder, made when it is first written to.
        listener: hears of damaged artefacts, of waiting for other processes, and of what those left behind.
    """

    def __init__(self, root: Path, listener: Listener = ignore) -> None:
        self.root = root
        self._listener = listener

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artefact with this key; None where there is none, or where it is damaged (with a Warn). Changes nothing.

        Raises:
            ArtifactError: not permitted to look.
        """
        folder = self._folder(stage, key)
        with disk_errors(folder):
            if not folder.is_dir():
                return None
        try:
            return _read_keyed(folder, key)
        except ArtifactError as error:
            self._listener(Warn(f"cached {stage} can't be used and is made again: {error.message}"))
            return None

    @contextmanager
    def claim(self, stage: str, key: str) -> Iterator[Artifact | None]:
        """What `find` says, with the right to make it: no other process can claim or create this key meanwhile.

        A process that waits here for another one that makes the same artefact then finds it.

        Raises:
            ArtifactError: the lock can't be taken.
        """
        with self._exclusive(stage, key):
            yield self.find(stage, key)

    @contextmanager
    def create(
        self,
        stage: str,
        key: str,
        *,
        settings: Mapping[str, JsonValue],
        parents: Mapping[str, str] | None = None,
        seed: int | None = None,
        versions: Mapping[str, str] | None = None,
        device: str = "cpu",
        expects: Sequence[str] = (),
    ) -> Iterator[Draft]:
        """A draft to write into; it becomes the artefact when the block ends, and nothing at all when the block raises.

        Where an intact artefact has this key already, that one stays (an artefact never changes) and the draft goes.
        The workspace of the key is dropped once the artefact is there.

        Args:
            stage: lower-case letters, digits, `_` and `-`.
            key: a sha256 in hexadecimal.
            settings: the resolved settings.
            parents: keys of the artefacts that it is made from.
            seed: of the random generators.
            versions: of the packages that matter.
            device: what it is made on.
            expects: relative paths of files or folders that must be there, and not empty, at the end.

        Raises:
            ArtifactError: an expected output is missing; the disk is full or not writable.
        """
        began = time.monotonic()
        final = self._folder(stage, key)
        with self._exclusive(stage, key):
            scratch_parent = self._prepare(final.parent)
            with staging(scratch_parent) as scratch:
                draft = Draft(scratch / "new")
                with disk_errors(draft.path):
                    draft.path.mkdir()
                yield draft
                _check_outputs(stage, draft.path, expects)
                manifest = _manifest(
                    stage,
                    key=key,
                    created=datetime.now(UTC),
                    seconds=round(time.monotonic() - began, 3),
                    files=digest_tree(draft.path),
                    parents=dict(parents or {}),
                    settings=dict(settings),
                    seed=seed,
                    versions=dict(versions or {}),
                    device=device,
                    info=draft.info,
                )
                write_manifest(draft.path, manifest)
                sync_tree(draft.path)
                draft.artifact = _put(draft.path, final, manifest)
            shutil.rmtree(self._work(stage, key), ignore_errors=True)

    def workspace(self, stage: str, key: str) -> Path:
        """A folder for this key that outlives an interruption, for checkpoints; it goes once the artefact is there.

        Raises:
            ArtifactError: it can't be made.
        """
        folder = self._work(stage, key)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def discard(self, stage: str, key: str) -> None:
        """Forgets the artefact and the workspace of this key, so that it is made anew.

        Raises:
            ArtifactError: not permitted.
        """
        final = self._folder(stage, key)
        with self._exclusive(stage, key):
            shutil.rmtree(self._work(stage, key), ignore_errors=True)
            if final.is_dir():
                with staging(self._prepare(final.parent)) as scratch:
                    rename_into_place(final, scratch / "old")

    def artifacts(self) -> list[Artifact]:
        """All artefacts, the oldest first, as their manifests have them: the files are not verified."""
        found: list[Artifact] = []
        for path in sorted(self.root.glob(f"[!.]*/*/{MANIFEST}")):
            try:
                found.append(Artifact(path.parent, read_manifest(path.parent)))
            except ArtifactError as error:
                self._listener(Warn(error.message))
        return sorted(found, key=lambda artifact: artifact.manifest.created)

    def _folder(self, stage: str, key: str) -> Path:
        return self.root / _checked_stage(stage) / _checked_key(key)[:_KEY_DIGITS]

    def _work(self, stage: str, key: str) -> Path:
        return self.root / ".work" / _checked_stage(stage) / _checked_key(key)[:_KEY_DIGITS]

    def _exclusive(self, stage: str, key: str) -> AbstractContextManager[None]:
        return exclusive(self.root / ".locks" / f"{self._folder(stage, key).name}-{stage}.lock", self._listener)

    def _prepare(self, stage_folder: Path) -> Path:
        """The folder to stage in, swept, and known to be on the file system of the stage's own folder."""
        scratch_parent = self.root / ".staging"
        with disk_errors(stage_folder):
            stage_folder.mkdir(parents=True, exist_ok=True)
            scratch_parent.mkdir(exist_ok=True)
        check_same_filesystem(scratch_parent, stage_folder)
        with exclusive(self.root / ".locks" / "sweep.lock", self._listener):
            sweep(scratch_parent, self._listener)
        return scratch_parent


def _put(draft: Path, final: Path, manifest: Manifest) -> Artifact:
    if final.is_dir():
        with suppress(ArtifactError):
            return _read_keyed(final, manifest.key)
        rename_into_place(final, draft.with_name("old"))  # damaged: it goes with the scratch folder
    rename_into_place(draft, final)
    return Artifact(final, manifest)


def _read_keyed(folder: Path, key: str) -> Artifact:
    artifact = read_artifact(folder)
    if artifact.manifest.key != key:
        raise ArtifactError(f"{folder} has another key")
    return artifact


def _checked_stage(stage: str) -> str:
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", stage) is None:
        raise UsageError(f"{stage!r} can't be a stage's name")
    return stage


def _checked_key(key: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", key) is None:
        raise UsageError(f"{key!r} is not a key (a sha256 in hexadecimal)")
    return key


def _check_outputs(stage: str, folder: Path, expects: Sequence[str]) -> None:
    missing = [name for name in expects if not _has_content(folder / name)]
    if missing:
        raise ArtifactError(f"{stage} ended without its outputs: {', '.join(missing)} missing or empty")


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0


def _manifest(stage: str, **fields: object) -> Manifest:
    try:
        return Manifest.model_validate({"stage": stage, **fields})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ArtifactError(f"{stage} has a fact that a manifest can't hold: {where}: {problem['msg']}") from error
