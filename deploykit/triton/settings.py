"""The settings of a package that is written already: read from its configurations, and changed in them."""

from __future__ import annotations

__all__ = ["apply_settings", "can_hold", "copy_package", "read_settings"]

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.artifacts.names import check_model_name
from deploykit.errors import DeploykitError, RepositoryError
from deploykit.triton.config import CONFIG, parse_config
from deploykit.triton.layout import version_folders
from deploykit.triton.package import PackageSettings

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

_THREADS = "intra_op_thread_count"
_LAYOUT = "layout"


def read_settings(repository: Path, name: str) -> PackageSettings:
    """How Triton is told to run the package `name`.

    Raises:
        RepositoryError: the repository has no such package.
    """
    text, tensors = _configs(repository, name)
    group = tensors.instance_group[0] if tensors.instance_group else None
    device: Literal["cpu", "gpu"] = "gpu" if group is not None and group.kind == group.KIND_GPU else "cpu"
    batching = text.dynamic_batching
    layout: Literal["call", "hold"] = "hold" if text.parameters[_LAYOUT].string_value == "hold" else "call"
    return PackageSettings(
        max_batch_size=text.max_batch_size,
        instances=max(1, group.count) if group is not None else 1,
        device=device,
        threads=int(tensors.parameters[_THREADS].string_value or 0),
        queue_delay_us=batching.max_queue_delay_microseconds,
        preferred_batch_size=tuple(batching.preferred_batch_size),
        layout=layout,
    )


def apply_settings(repository: Path, name: str, settings: PackageSettings) -> None:
    """Change both configurations of a package; where the second can't be written the first is put back.

    The device, the versions and the files stay as they are.

    Raises:
        RepositoryError: the repository has no such package.
        ArtifactError: a configuration can't be written; both are as before.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped, unused-ignore]

    text, tensors = _configs(repository, name)
    for config in (text, tensors):
        config.max_batch_size = settings.max_batch_size
        config.parameters[_THREADS].string_value = str(settings.threads)
        for group in config.instance_group:
            group.count = settings.instances
    text.parameters[_LAYOUT].string_value = settings.layout
    del text.dynamic_batching.preferred_batch_size[:]
    text.dynamic_batching.preferred_batch_size.extend(settings.preferred_batch_size)
    text.dynamic_batching.max_queue_delay_microseconds = settings.queue_delay_us
    text.dynamic_batching.SetInParent()
    inner, outer = _paths(repository, name)
    with disk_errors(inner):
        before = inner.read_bytes()
    write_atomic(inner, text_format.MessageToString(tensors, as_utf8=True).encode())
    try:
        write_atomic(outer, text_format.MessageToString(text, as_utf8=True).encode())
    except DeploykitError:
        write_atomic(inner, before)
        raise


def copy_package(repository: Path, name: str, out: Path) -> None:
    """The latest version of both models of a package, in a repository of its own.

    Raises:
        RepositoryError: the repository has no such package, or it has no version.
        ArtifactError: a file can't be copied.
    """
    _configs(repository, name)
    for model in (f"{name}_onnx", name):
        versions = version_folders(repository / model)
        if not versions:
            raise RepositoryError(f"{repository / model} has no version", "publish one: deploykit package MODEL")
        for path in (repository / model).iterdir():
            if path in versions.values() and path != versions[max(versions)]:
                continue
            with disk_errors(path):
                (out / model).mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, out / model / path.name)
                else:
                    shutil.copyfile(path, out / model / path.name)


def can_hold(repository: Path, name: str) -> bool:
    """Whether the text entry knows to hold its model: one packaged by an older deploykit only calls it."""
    versions = version_folders(repository / name)
    return bool(versions) and (versions[max(versions)] / "logits_model.py").is_file()


def _configs(repository: Path, name: str) -> tuple[ModelConfig, ModelConfig]:
    inner, outer = _paths(repository, name)
    for path in (outer, inner):
        if not path.is_file():
            raise RepositoryError(
                f"{repository} has no package {name!r}: {path.parent.name}/{CONFIG} is not there",
                "write one: deploykit package MODEL",
            )
    return parse_config(outer), parse_config(inner)


def _paths(repository: Path, name: str) -> tuple[Path, Path]:
    check_model_name(name)
    return repository / f"{name}_onnx" / CONFIG, repository / name / CONFIG
