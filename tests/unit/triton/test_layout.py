"""What Triton makes of a repository's folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.errors import ArtifactError, RepositoryError
from deploykit.triton.layout import MAX_VERSION, check_repository, version_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound repository: one model with the versions 1 and 2, and what Triton passes over."""
    root = tmp_path / "models"
    for name in (
        "intents/1/model.onnx",
        "intents/2/model.onnx",
        "intents/warmup/short",
        "intents/labels.txt",
        "README.md",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (root / "intents" / "config.pbtxt").write_text('name: "intents"')
    return root


def add_version(root: Path, name: str) -> Path:
    folder = root / "intents" / name
    folder.mkdir()
    (folder / "model.onnx").write_text("x")
    return folder


def test_sound_repository_passes(root: Path) -> None:
    check_repository(root)
    assert list(version_folders(root / "intents")) == [1, 2]
    assert version_folders(root / "absent") == {}


@pytest.mark.parametrize(
    ("name", "read_as"), [("7.tmp", 7), ("7_old", 7), ("7 (copy)", 7), (" 7", 7), ("+7", 7), ("-1", -1), ("1e3", 1)]
)
def test_rows_7_and_8_name_that_triton_takes_for_a_version_is_refused(root: Path, name: str, read_as: int) -> None:
    add_version(root, name)
    with pytest.raises(RepositoryError, match=f"Triton reads it as version {read_as}"):
        check_repository(root)


@pytest.mark.parametrize("name", ["007", "00", "0.5"])
def test_row_8_leading_zero_is_refused(root: Path, name: str) -> None:
    add_version(root, name)
    with pytest.raises(RepositoryError, match=f"{name} has a leading zero"):
        check_repository(root)


@pytest.mark.parametrize("name", [str(MAX_VERSION + 1), "9" * 30, f"-{'9' * 30}", f"{'9' * 30}.tmp"])
def test_row_8_version_beyond_int64_is_refused(root: Path, name: str) -> None:
    add_version(root, name)
    with pytest.raises(RepositoryError, match="int64"):
        check_repository(root)


def test_largest_version_and_folders_with_letters_are_fine(root: Path) -> None:
    add_version(root, str(MAX_VERSION))
    add_version(root, "configs")
    check_repository(root)
    assert max(version_folders(root / "intents")) == MAX_VERSION


def test_row_9_empty_version_folder_is_refused(root: Path) -> None:
    (root / "intents" / "3" / "empty").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="3 is a version without a file"):
        check_repository(root)


@pytest.mark.parametrize("place", ["gone", "intents/2/gone", "intents/gone"])
def test_row_10_dangling_link_is_refused(root: Path, place: str) -> None:
    (root / place).symlink_to("nowhere")
    with pytest.raises(RepositoryError, match=r"gone is a link to nothing"):
        check_repository(root)
    (root / place).unlink()
    (root / place).symlink_to((root / place).name)
    with pytest.raises(RepositoryError, match=r"gone is a link to nothing"):
        check_repository(root)


@pytest.mark.parametrize("place", ["away", "intents/2/away", "intents/3"])
def test_row_10_escaping_link_is_refused(root: Path, place: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "model.onnx").write_text("x")
    (root / place).symlink_to(outside)
    with pytest.raises(RepositoryError, match="is a link that leaves the repository"):
        check_repository(root)


def test_link_inside_the_repository_is_fine(root: Path) -> None:
    (root / "intents" / "2" / "same.onnx").symlink_to("../1/model.onnx")
    check_repository(root)


def test_row_16_config_of_another_name_is_refused_and_one_without_is_fine(root: Path) -> None:
    config = root / "intents" / "config.pbtxt"
    config.write_text('name: "other"')
    with pytest.raises(RepositoryError, match="names the model 'other', its folder 'intents'"):
        check_repository(root)
    config.write_text("max_batch_size: 8")
    check_repository(root)


def test_dot_folder_in_the_root_is_refused(root: Path) -> None:
    (root / ".staging").mkdir()
    with pytest.raises(RepositoryError, match="counts as a model"):
        check_repository(root)


def test_all_problems_come_at_once_and_only_of_the_models_asked_for(root: Path) -> None:
    add_version(root, "7.tmp")
    add_version(root, "007")
    with pytest.raises(RepositoryError) as caught:
        check_repository(root)
    assert "7.tmp" in caught.value.message
    assert "007" in caught.value.message
    check_repository(root, ["another"])


def test_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent"):
        check_repository(tmp_path / "absent")
