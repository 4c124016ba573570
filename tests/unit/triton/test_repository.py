"""Publishing: the repository has a version entirely or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from deploykit.artifacts import atomic
from deploykit.artifacts.digest import digest_tree
from deploykit.artifacts.owner import this_process
from deploykit.errors import ArtifactError, RepositoryError, UsageError
from deploykit.events import Event, Note, Warn
from deploykit.triton.config import Tensor, tensor_model_config, text_model_config, write_config
from deploykit.triton.layout import MAX_VERSION, check_repository
from deploykit.triton.repository import RECORD, Package, Published, VersionRecord, inspect_package, publish

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

IDS = Tensor("input_ids", "INT64", (-1,))
LOGITS = Tensor("logits", "FP32", (2,))
WRITES = ("mkdir", "fsync", "replace")
STEPS = (*WRITES, "unlink", "rmdir")
"""The calls of `os` by which publishing changes the disk; to them comes `shutil.copyfile`."""


def package(
    folder: Path, weights: str = "one", name: str = "intents", batch: int = 8, outputs: tuple[Tensor, ...] = (LOGITS,)
) -> Path:
    """A staged package of the two usual models; `weights` and `batch` make one differ from another."""
    inner, text = folder / f"{name}_onnx", folder / name
    for model in (inner, text):
        (model / "1").mkdir(parents=True)
    (inner / "1" / "model.onnx").write_text(weights)
    (text / "1" / "model.py").write_text(f"# {weights}")
    (text / "1" / "tokenizer").mkdir()
    (text / "1" / "tokenizer" / "tokenizer.json").write_text("{}")
    (text / "labels.txt").write_text(f"refund\n{weights}\n")
    (text / "warmup").mkdir()
    (text / "warmup" / "short").write_text(weights)
    (folder / "manifest.json").write_text("{}")
    write_config(inner, tensor_model_config(inner.name, inputs=[IDS], outputs=outputs, max_batch_size=batch))
    write_config(text, text_model_config(name, outputs=outputs, max_batch_size=batch))
    return folder


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return package(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return package(tmp_path / "second", "two", batch=16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "model_repository"


def staging_of(root: Path) -> Path:
    return root.parent / f".{root.name}.staging"


def scratch_folders(root: Path) -> list[str]:
    return [path.name for path in staging_of(root).glob("scratch-*")]


def version(path: Path) -> dict[str, str]:
    """The digests of a version's files, checked against its record."""
    record = VersionRecord.model_validate_json((path / RECORD).read_bytes())
    found = {name: digest for name, digest in digest_tree(path).items() if name != RECORD}
    assert found == record.files, f"{path} is partial"
    assert (record.model, str(record.version)) == (path.parent.name, path.name)
    return found


def check_sound(root: Path, packages: list[Package]) -> None:
    """Each version there is complete and one of the packages'; no text model is without its inner model."""
    if not root.exists():
        return
    check_repository(root)
    assert {path.name for path in root.iterdir()} <= {"intents", "intents_onnx"}
    for model in root.iterdir():
        wanted = [own for one in packages for own in one.models if own.name == model.name]
        numbers = [path for path in model.iterdir() if path.name.isdigit()]
        assert numbers, f"{model} has no version"
        for path in numbers:
            assert version(path) in [own.files for own in wanted]
        for name in wanted[0].shared:
            assert digest_tree(model)[name] in [own.shared[name] for own in wanted]
    texts = {path.name for path in root.glob("intents/[0-9]*")}
    assert texts <= {path.name for path in root.glob("intents_onnx/[0-9]*")}


@contextmanager
def at_step(number: int, act: Callable[[], None], calls: tuple[str, ...] = STEPS) -> Iterator[list[str]]:
    """Calls `act` before the disk is changed for the number-th time (from 0); gives the names of the steps made."""
    made: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) - 1 == number:
                if name == "copyfile":  # the worst moment: half of the bytes are there
                    Path(args[1]).write_bytes(Path(args[0]).read_bytes()[:1])
                act()
            return real(*args, **kwargs)

        return step

    with (
        mock.patch.multiple(os, **{name: watched(name, getattr(os, name)) for name in calls}),
        mock.patch.object(shutil, "copyfile", watched("copyfile", shutil.copyfile)),
    ):
        yield made


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the real syncing where a test publishes a hundred times: a killed process loses nothing it wrote."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def killed_at(number: int, staged: Path, root: Path) -> bool:
    """Publishes in a process that is killed at this step; False where it ended before the step came."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            with at_step(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                publish(staged, root)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


def test_first_package_becomes_version_1_and_the_next_one_2(first: Path, second: Path, root: Path) -> None:
    one = publish(first, root, expected=inspect_package(first).digests())
    assert one == Published(
        root.resolve(), 1, True, {name: root.resolve() / name / "1" for name in ("intents_onnx", "intents")}
    )
    two = publish(second, root)
    assert (two.version, two.new) == (2, True)
    check_sound(root, [inspect_package(first), inspect_package(second)])
    for name in ("intents/config.pbtxt", "intents_onnx/config.pbtxt", "intents/labels.txt", "intents/warmup/short"):
        assert (root / name).read_bytes() == (second / name).read_bytes()
    assert (root / "intents_onnx" / "1" / "model.onnx").read_text() == "one"
    assert (root / "intents_onnx" / "2" / "model.onnx").read_text() == "two"
    assert scratch_folders(root) == []


def test_number_is_one_above_the_highest_of_all_models(first: Path, second: Path, root: Path) -> None:
    publish(first, root)
    (root / "intents_onnx" / "8").mkdir()
    (root / "intents_onnx" / "8" / "model.onnx").write_text("put there by hand")
    published = publish(second, root)
    assert published.version == 9
    assert sorted(path.name for path in (root / "intents").glob("[0-9]*")) == ["1", "9"]


def test_other_models_of_the_repository_are_left_alone(first: Path, tmp_path: Path, root: Path) -> None:
    publish(package(tmp_path / "other", name="entities"), root)
    before = digest_tree(root)
    publish(first, root)
    assert {name: digest for name, digest in digest_tree(root).items() if name.startswith("entities")} == before


def test_published_files_can_be_read_by_the_server_of_another_user(first: Path, root: Path) -> None:
    (first / "intents" / "1" / "model.py").chmod(0o600)
    old = os.umask(0o022)
    try:
        publish(first, root)
    finally:
        os.umask(old)
    for path in root.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


@needs_fork
@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("live", [False, True], ids=["new models", "next version"])
def test_row_1_killed_at_any_step_leaves_the_old_or_the_complete_new_version(
    first: Path, second: Path, tmp_path: Path, live: bool
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    if live:
        publish(first, kept / "model_repository")
    packages = [inspect_package(second)] + ([inspect_package(first)] if live else [])
    number, killed = 0, True
    while killed:
        place = tmp_path / "runs" / str(number)
        shutil.copytree(kept, place)
        root = place / "model_repository"
        killed = killed_at(number, second, root)
        check_sound(root, packages)
        if live:
            assert (root / "intents" / "1" / "model.py").read_text() == "# one"
        published = publish(second, root)
        assert published.version == (2 if live else 1)
        assert packages[0].digests(published.version).items() <= digest_tree(root).items()
        assert scratch_folders(root) == []
        shutil.rmtree(place)
        number += 1
    assert number > 40


def test_row_2_synced_before_and_after_each_rename(
    first: Path, second: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(first, root)
    steps: list[tuple[str, int]] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append(("sync", os.fstat(descriptor).st_ino))
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append(("rename", os.stat(source).st_ino))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    publish(second, root)

    def when(kind: str, path: Path) -> list[int]:
        return [index for index, step in enumerate(steps) if step == (kind, path.stat().st_ino)]

    for model in (root / "intents", root / "intents_onnx"):
        folder = model / "2"
        (renamed,) = when("rename", folder)
        files = [max(when("sync", path)) for path in folder.rglob("*") if path.is_file()]
        synced = [index for index in when("sync", folder) if index < renamed]
        assert max(files) < max(synced) < renamed
        assert steps[renamed + 1] == ("sync", model.stat().st_ino)
        (replaced,) = when("rename", model / "config.pbtxt")
        assert min(when("sync", model / "config.pbtxt")) < replaced
        assert steps[replaced + 1] == ("sync", model.stat().st_ino)
    assert when("rename", root / "intents_onnx" / "2") < when("rename", root / "intents" / "2")


def test_row_3_full_disk_while_copying_cleans_up_and_touches_nothing(
    first: Path, second: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(first, root)
    before = digest_tree(root)
    real = shutil.copyfile

    def copyfile(source: Path, target: Path) -> Any:
        if target.name == "model.onnx":
            target.write_text("t")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(ArtifactError, match=r"no space left for .*model.onnx") as caught:
        publish(second, root)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 1
    assert digest_tree(root) == before
    assert scratch_folders(root) == []


@pytest.mark.usefixtures("unsynced")
def test_row_3_full_disk_at_any_step_leaves_the_old_or_the_complete_new_version(
    first: Path, second: Path, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    publish(first, tmp_path / "kept" / "model_repository")
    packages = [inspect_package(first), inspect_package(second)]
    number, reached = 0, True
    while reached:
        place = tmp_path / "runs" / str(number)
        shutil.copytree(tmp_path / "kept", place)
        root = place / "model_repository"
        before = digest_tree(root)
        with at_step(number, refuse, WRITES) as steps, suppress(ArtifactError):
            publish(second, root)
        reached = len(steps) > number
        check_sound(root, packages)
        if not (root / "intents" / "2").exists():
            assert digest_tree(root) == before, f"step {number} left something"
        assert publish(second, root).version == 2
        check_sound(root, packages)
        assert scratch_folders(root) == []
        shutil.rmtree(place)
        number += 1
    assert number > 40


def test_row_4_repository_on_another_filesystem_is_refused_before_anything_is_copied(
    first: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_device", lambda path: 1 if path.name == root.name else 2)
    monkeypatch.setattr(shutil, "copyfile", lambda *_: pytest.fail("something was copied"))
    with pytest.raises(ArtifactError, match="another file system") as caught:
        publish(first, root)
    assert str(root) in caught.value.message
    assert list(root.iterdir()) == []


def test_row_5_repository_that_cannot_be_made_names_its_path(
    first: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: Path, mode: int = 0o777) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(ArtifactError, match="not permitted") as caught:
        publish(first, root)
    assert caught.value.message == f"not permitted: {root}"
    assert caught.value.hint is not None


def test_row_5_read_only_model_folder_takes_back_the_inner_model(
    first: Path, second: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(first, root)
    before = digest_tree(root)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target) == root.resolve() / "intents" / "2":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ArtifactError, match="read-only file system") as caught:
        publish(second, root)
    assert caught.value.message == f"read-only file system: {root.resolve() / 'intents' / '2'}"
    assert digest_tree(root) == before
    assert scratch_folders(root) == []


@needs_fork
def test_row_6_staging_of_a_dead_publisher_is_swept_and_of_a_living_one_kept(
    first: Path, second: Path, root: Path
) -> None:
    publish(first, root)
    assert killed_at(30, second, root)
    (left,) = scratch_folders(root)
    me = this_process()
    mine = staging_of(root) / f"scratch-{me.pid}-{round(me.started * 1000)}-{me.host}-00000000"
    mine.mkdir()
    heard: list[Event] = []
    publish(second, root, listener=heard.append)
    assert scratch_folders(root) == [mine.name]
    assert any(isinstance(event, Note) and left in event.message for event in heard)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("7.tmp", "Triton reads it as version 7"),
        ("007", "leading zero"),
        ("-1", "Triton reads it as version -1"),
        (str(MAX_VERSION + 1), "int64"),
    ],
)
def test_rows_7_and_8_foreign_version_folder_stops_publishing(
    first: Path, second: Path, root: Path, name: str, reason: str
) -> None:
    publish(first, root)
    (root / "intents" / name).mkdir()
    (root / "intents" / name / "model.py").write_text("x")
    before = digest_tree(root)
    with pytest.raises(RepositoryError, match=reason):
        publish(second, root)
    assert digest_tree(root) == before


def test_row_8_no_number_is_left_after_the_largest(first: Path, second: Path, root: Path) -> None:
    publish(first, root, version=MAX_VERSION)
    with pytest.raises(RepositoryError, match="no higher one"):
        publish(second, root)


@pytest.mark.parametrize("number", [0, -1, MAX_VERSION + 1])
def test_row_8_impossible_number_is_refused(first: Path, root: Path, number: int) -> None:
    with pytest.raises(RepositoryError, match="can't be a version"):
        publish(first, root, version=number)
    assert list(root.iterdir()) == []


def test_row_9_empty_version_is_refused_in_the_package_and_in_the_repository(
    first: Path, second: Path, root: Path
) -> None:
    publish(first, root)
    (root / "intents" / "2").mkdir()
    with pytest.raises(RepositoryError, match="2 is a version without a file"):
        publish(second, root)
    (second / "intents_onnx" / "1" / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match="1 is a version without a file"):
        inspect_package(second)


def test_row_10_links_that_dangle_or_escape_are_refused(first: Path, second: Path, root: Path, tmp_path: Path) -> None:
    publish(first, root)
    (root / "gone").symlink_to("nowhere")
    with pytest.raises(RepositoryError, match="gone is a link to nothing"):
        publish(second, root)
    (root / "gone").unlink()
    model = second / "intents_onnx" / "1" / "model.onnx"
    model.unlink()
    model.symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="link to nothing"):
        publish(second, root)
    (tmp_path / "outside").write_text("x")
    with pytest.raises(ArtifactError, match="leaves"):
        publish(second, root)
    model.unlink()
    model.symlink_to("../../intents/1/model.py")
    published = publish(second, root)
    assert not (published.paths["intents_onnx"] / "model.onnx").is_symlink()


@needs_fork
def test_row_11_publishers_at_once_get_distinct_numbers(tmp_path: Path, root: Path) -> None:
    packages = [package(tmp_path / str(index), f"weights {index}") for index in range(4)]
    children = []
    for staged in packages:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(60)
                (staged / "published").write_text(str(publish(staged, root).version))
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert sorted(int((staged / "published").read_text()) for staged in packages) == [1, 2, 3, 4]
    check_sound(root, [inspect_package(staged) for staged in packages])


@needs_fork
def test_row_12_lock_of_a_dead_publisher_is_taken_over_and_said_so(first: Path, root: Path) -> None:
    assert killed_at(30, first, root)
    heard: list[Event] = []
    publish(first, root, listener=heard.append)
    assert any(isinstance(event, Warn) and "is dead; the lock is taken over" in event.message for event in heard)


def test_row_13_same_bytes_make_no_new_version(first: Path, second: Path, root: Path) -> None:
    publish(first, root)
    two = publish(second, root)
    bytecode = two.paths["intents"] / "__pycache__"
    bytecode.mkdir()
    (bytecode / "model.pyc").write_text("left by the server")
    before = digest_tree(root)
    again = publish(second, root)
    assert (again.version, again.new, again.paths) == (2, False, two.paths)
    assert digest_tree(root) == before
    assert publish(first, root).version == 3, "older bytes again are a new version"


def test_row_13_another_configuration_is_a_new_version(first: Path, tmp_path: Path, root: Path) -> None:
    publish(first, root)
    assert publish(package(tmp_path / "wider", batch=32), root).version == 2
    assert "max_batch_size: 32" in (root / "intents" / "config.pbtxt").read_text()


def test_row_13_edited_configuration_is_put_back_without_a_new_version(first: Path, root: Path) -> None:
    publish(first, root)
    config = root / "intents" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 4"))
    heard: list[Event] = []
    again = publish(first, root, listener=heard.append)
    assert (again.version, again.new) == (1, False)
    assert config.read_bytes() == (first / "intents" / "config.pbtxt").read_bytes()
    assert [event.message for event in heard if isinstance(event, Note)] == [f"replaced {config}"]


def test_version_that_was_changed_by_hand_is_noticed(first: Path, root: Path) -> None:
    live = publish(first, root).paths["intents_onnx"] / "model.onnx"
    live.write_text("changed")
    heard: list[Event] = []
    assert publish(first, root, listener=heard.append).version == 2
    assert any(isinstance(event, Warn) and "changed after it was published" in event.message for event in heard)


def test_row_14_number_taken_by_other_bytes_is_refused(first: Path, second: Path, root: Path) -> None:
    publish(first, root, version=5)
    before = digest_tree(root)
    with pytest.raises(RepositoryError, match=r"version 5 of .* exists with other bytes"):
        publish(second, root, version=5)
    assert digest_tree(root) == before
    assert not publish(first, root, version=5).new
    assert publish(second, root, version=6).version == 6
    assert not publish(first, root, version=5).new, "asking for an old version changes nothing"
    assert (root / "intents" / "labels.txt").read_bytes() == (second / "intents" / "labels.txt").read_bytes()


def test_number_below_the_latest_is_refused(first: Path, second: Path, root: Path) -> None:
    publish(first, root, version=5)
    with pytest.raises(RepositoryError, match="below the latest, 5"):
        publish(second, root, version=4)


@pytest.mark.parametrize("name", ["a b", "a\n", ".hidden", "größe"])
def test_row_15_impossible_model_name_is_refused_before_the_repository_is_touched(
    first: Path, root: Path, name: str
) -> None:
    (first / "intents").rename(first / name)
    with pytest.raises(UsageError, match="can't be a model's name"):
        publish(first, root)
    assert not root.exists()
    assert not staging_of(root).exists()


def test_row_16_config_of_another_name_is_refused(first: Path, root: Path) -> None:
    (first / "intents").rename(first / "orders")
    with pytest.raises(RepositoryError, match="names the model 'intents', its folder 'orders'"):
        publish(first, root)
    assert not root.exists()


def test_row_17_file_changed_since_the_gate_stops_publishing(first: Path, root: Path) -> None:
    proved = inspect_package(first).digests()
    (first / "intents_onnx" / "1" / "model.onnx").write_text("One")
    with pytest.raises(RepositoryError, match=r"intents_onnx/1/model.onnx"):
        publish(first, root, expected=proved)
    (first / "intents_onnx" / "1" / "model.onnx").write_text("one")
    (first / "intents" / "1" / "extra.py").write_text("")
    with pytest.raises(RepositoryError, match=r"intents/1/extra.py"):
        publish(first, root, expected=proved)
    assert not root.exists()


def test_row_17_file_changed_while_it_is_copied_stops_publishing(
    first: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfile

    def copyfile(source: Path, target: Path) -> Any:
        if source.name == "model.onnx":
            source.write_text("One")
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(RepositoryError, match=r"intents_onnx/1/model.onnx"):
        publish(first, root, expected=inspect_package(first).digests())
    assert list(root.iterdir()) == []
    assert scratch_folders(root) == []


def test_row_17_expected_files_beside_the_models_are_passed_over(first: Path, root: Path) -> None:
    assert publish(first, root, expected=digest_tree(first)).new


def test_other_interface_under_the_same_name_is_refused(first: Path, tmp_path: Path, root: Path) -> None:
    publish(first, root)
    other = package(tmp_path / "other", outputs=(Tensor("logits", "FP16", (2,)),))
    with pytest.raises(RepositoryError, match="other inputs or outputs") as caught:
        publish(other, root)
    assert caught.value.hint is not None
    assert "another name" in caught.value.hint
    more_labels = package(tmp_path / "more", outputs=(Tensor("logits", "FP32", (3,)),))
    assert publish(more_labels, root).version == 2


def test_folder_of_that_name_without_a_config_is_refused(first: Path, root: Path) -> None:
    (root / "intents" / "1").mkdir(parents=True)
    (root / "intents" / "1" / "model.onnx").write_text("x")
    with pytest.raises(RepositoryError, match="was not published from a package"):
        publish(first, root)


@pytest.mark.parametrize("damage", ["empty", "no config", "version 2", "two versions", "record"])
def test_malformed_package_is_refused(first: Path, damage: str) -> None:
    model = first / "intents"
    match damage:
        case "empty":
            shutil.rmtree(first)
            first.mkdir()
        case "no config":
            (model / "config.pbtxt").unlink()
        case "version 2":
            (model / "1").rename(model / "2")
        case "two versions":
            shutil.copytree(model / "1", model / "2")
        case "record":
            (model / "1" / RECORD).write_text("{}")
    with pytest.raises(RepositoryError):
        inspect_package(first)


def test_package_knows_its_models_in_publishing_order(first: Path) -> None:
    (first / "intents" / "1" / "__pycache__").mkdir()
    (first / "intents" / "1" / "__pycache__" / "model.pyc").write_text("x")
    found = inspect_package(first)
    assert found.names == ("intents_onnx", "intents")
    assert found.digests().keys() == {
        "intents_onnx/config.pbtxt",
        "intents_onnx/1/model.onnx",
        "intents/config.pbtxt",
        "intents/labels.txt",
        "intents/warmup/short",
        "intents/1/model.py",
        "intents/1/tokenizer/tokenizer.json",
    }
