"""The manifest of an artefact: what it is, what it was made from and how."""

from __future__ import annotations

__all__ = ["MANIFEST", "Manifest", "read_manifest", "write_manifest"]

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.errors import ArtifactError

MANIFEST = "manifest.json"
"""Its file name; written last, so a folder without it is not complete."""

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What is known of an artefact.

    Attributes:
        schema_version: of this file's form.
        stage: the stage that made it.
        key: the digest of everything that decides what comes out.
        created: when, in UTC.
        seconds: how long it took.
        files: the sha256 of every file by its relative POSIX path, without the manifest itself.
        parents: the keys of the artefacts it was made from, by the name that the stage knows them by.
        settings: the resolved settings of the stage.
        seed: of the random generators, where the stage uses any.
        versions: of the packages that matter.
        device: what it was made on.
        info: facts that the stage found and wants to keep.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    stage: str
    key: _Digest
    created: AwareDatetime
    seconds: float
    files: dict[str, _Digest]
    parents: dict[str, str]
    settings: dict[str, JsonValue]
    seed: int | None
    versions: dict[str, str]
    device: str
    info: dict[str, JsonValue]


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an artefact's folder.

    Raises:
        ArtifactError: there is none, or it is damaged or of another deploykit's form.
    """
    path = folder / MANIFEST
    with disk_errors(path):
        text = path.read_bytes()
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ArtifactError(f"{path} is not a manifest: {where}: {problem['msg']}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into an artefact's folder.

    Raises:
        ArtifactError: the folder can't be written.
    """
    write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
