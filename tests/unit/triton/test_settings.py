"""The settings of a written package: read, changed together, and put back where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import ArtifactError, RepositoryError, UsageError
from deploykit.triton import settings as module
from deploykit.triton.config import (
    CONFIG,
    DynamicBatching,
    Tensor,
    parse_config,
    tensor_model_config,
    text_model_config,
    write_config,
)
from deploykit.triton.package import PackageSettings
from deploykit.triton.settings import apply_settings, can_hold, copy_package, read_settings

OTHER = PackageSettings(
    max_batch_size=16, instances=2, threads=1, queue_delay_us=500, preferred_batch_size=(4, 8), layout="hold"
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    logits = Tensor("logits", "FP32", (2,))
    for name, versions in (("intents", (1, 12)), ("intents_onnx", (1, 12))):
        for version in versions:
            (tmp_path / name / str(version)).mkdir(parents=True)
            (tmp_path / name / str(version) / "model.onnx").write_text(f"{name} {version}")
    (tmp_path / "intents_onnx" / "warmup").mkdir()
    (tmp_path / "intents_onnx" / "warmup" / "1").write_text("data")
    tokens = [Tensor("input_ids", "INT64", (-1,))]
    config = tensor_model_config("intents_onnx", inputs=tokens, outputs=[logits], max_batch_size=64, versions=2)
    write_config(tmp_path / "intents_onnx", config)
    answer = [Tensor("label", "BYTES", (-1,))]
    text = text_model_config("intents", outputs=answer, max_batch_size=64, batching=DynamicBatching())
    write_config(tmp_path / "intents", text)
    return tmp_path


def test_what_is_written_is_read_again(repository: Path) -> None:
    assert read_settings(repository, "intents") == PackageSettings(layout="call")
    apply_settings(repository, "intents", OTHER)
    assert read_settings(repository, "intents") == OTHER
    inner = parse_config(repository / "intents_onnx" / CONFIG)
    assert (inner.max_batch_size, inner.instance_group[0].count) == (16, 2)
    assert inner.version_policy.latest.num_versions == 2  # what is no setting stays
    assert [tensor.name for tensor in inner.input] == ["input_ids"]
    apply_settings(repository, "intents", PackageSettings(layout="call"))
    assert read_settings(repository, "intents") == PackageSettings(layout="call")


def test_row_3_where_the_second_file_fails_both_are_as_before(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in repository.rglob(CONFIG)}
    write = module.write_atomic

    def failing(path: Path, data: bytes) -> None:
        if path.parent.name == "intents":
            raise ArtifactError("no space left")
        write(path, data)

    monkeypatch.setattr(module, "write_atomic", failing)
    with pytest.raises(ArtifactError):
        apply_settings(repository, "intents", OTHER)
    assert {path: path.read_bytes() for path in repository.rglob(CONFIG)} == before


@pytest.mark.parametrize("name", ["orders", "intents_onnx"])
def test_a_package_that_is_not_there_is_named(repository: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match=f"no package '{name}'"):
        read_settings(repository, name)


def test_row_15_a_name_that_leaves_the_repository_is_refused(repository: Path) -> None:
    with pytest.raises(UsageError):
        read_settings(repository, "../intents")


def test_a_copy_has_the_latest_version_and_what_lies_beside_it(repository: Path, tmp_path: Path) -> None:
    copy_package(repository, "intents", tmp_path / "copy")
    found = sorted(
        str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()
    )
    assert found == [
        "intents/12/model.onnx",
        "intents/config.pbtxt",
        "intents_onnx/12/model.onnx",
        "intents_onnx/config.pbtxt",
        "intents_onnx/warmup/1",
    ]


def test_only_a_package_that_knows_how_can_hold(repository: Path) -> None:
    assert not can_hold(repository, "intents")
    (repository / "intents" / "12" / "logits_model.py").write_text("")
    assert can_hold(repository, "intents")
    assert not can_hold(repository, "absent")


def test_a_version_is_needed(repository: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(repository / "intents_onnx" / "1")
    shutil.rmtree(repository / "intents_onnx" / "12")
    with pytest.raises(RepositoryError, match="has no version"):
        copy_package(repository, "intents", tmp_path / "copy")


def test_settings_are_plain_values() -> None:
    from dataclasses import asdict

    from deploykit.recipe import Package

    given: dict[str, Any] = asdict(OTHER)
    assert Package.model_validate(given).layout == "hold"
