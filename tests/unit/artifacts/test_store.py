"""The content-addressed store."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.artifacts import atomic
from deploykit.artifacts.digest import digest_json
from deploykit.artifacts.manifest import MANIFEST, read_manifest
from deploykit.artifacts.store import Artifact, Store, read_artifact
from deploykit.errors import ArtifactError, UsageError
from deploykit.events import Event, Note, Warn

KEY = digest_json({"stage": "export"})
OTHER = digest_json({"stage": "export", "again": True})

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def make(store: Store, key: str = KEY, text: str = "weights") -> Artifact:
    with store.create("export", key, settings={"opset": 18}, expects=["model.onnx"]) as draft:
        (draft.path / "model.onnx").write_text(text)
        draft.info["nodes"] = 12
    assert draft.artifact is not None
    return draft.artifact


def forked(action: Callable[[], None]) -> int:
    """The number of a process that does this and ends with status 0, or with 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


def warnings(heard: list[Event]) -> list[str]:
    return [event.message for event in heard if isinstance(event, Warn)]


def test_what_was_made_is_found_with_its_manifest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("export", KEY) is None
    made = make(store)
    found = store.find("export", KEY)
    assert found == made
    assert found.path == tmp_path / "export" / KEY[:16]
    manifest = found.manifest
    assert (manifest.stage, manifest.key, manifest.settings, manifest.info) == (
        "export",
        KEY,
        {"opset": 18},
        {"nodes": 12},
    )
    assert list(manifest.files) == ["model.onnx"]
    assert manifest.created.utcoffset() is not None
    assert os.listdir(tmp_path / ".staging") == []


def test_failure_is_never_cached(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail_half_way() -> None:
        with store.create("export", KEY, settings={}) as draft:
            (draft.path / "model.onnx").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert store.find("export", KEY) is None
    assert os.listdir(tmp_path / ".staging") == []
    assert store.artifacts() == []


def test_workspace_outlives_a_failure_and_goes_with_success(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.workspace("export", KEY) / "checkpoint-1").write_text("x")
    with pytest.raises(KeyboardInterrupt), store.create("export", KEY, settings={}):
        raise KeyboardInterrupt
    assert (store.workspace("export", KEY) / "checkpoint-1").exists()
    assert not (store.workspace("export", OTHER) / "checkpoint-1").exists()
    make(store)
    assert not (tmp_path / ".work" / "export" / KEY[:16]).exists()


def test_row_28_stage_without_its_outputs_fails_and_is_not_cached(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def forget_two() -> None:
        with store.create("export", KEY, settings={}, expects=["model.onnx", "tokenizer.json", "extra"]) as draft:
            (draft.path / "model.onnx").write_text("x")
            (draft.path / "tokenizer.json").touch()
            (draft.path / "extra").mkdir()

    with pytest.raises(ArtifactError, match=r"export ended without its outputs: tokenizer\.json, extra"):
        forget_two()
    assert store.find("export", KEY) is None


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "manifest cut", "manifest gone"])
def test_row_30_damaged_artefact_is_a_miss_said_so_and_made_again(tmp_path: Path, damage: str) -> None:
    heard: list[Event] = []
    store = Store(tmp_path, heard.append)
    folder = make(store).path
    match damage:
        case "changed":
            (folder / "model.onnx").write_text("Weights")
        case "missing":
            (folder / "model.onnx").unlink()
        case "added":
            (folder / "adapter_config.json").write_text("{}")
        case "manifest cut":
            (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:40])
        case "manifest gone":
            (folder / MANIFEST).unlink()
    assert store.find("export", KEY) is None
    assert len(warnings(heard)) == 1
    assert "is made again" in warnings(heard)[0]
    assert folder.exists(), "looking must not change anything"
    again = make(store)
    assert store.find("export", KEY) == again
    assert read_artifact(folder).manifest == again.manifest


def test_intact_artefact_never_changes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = make(store)
    second = make(store, text="other weights")
    assert second == first
    assert (first.path / "model.onnx").read_text() == "weights"


def test_bytecode_left_by_a_server_does_no_harm(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store)
    (made.path / "__pycache__").mkdir()
    (made.path / "__pycache__" / "model.pyc").write_text("x")
    assert store.find("export", KEY) == made


def test_discarded_artefact_is_made_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store)
    (store.workspace("export", KEY) / "checkpoint-1").write_text("x")
    store.discard("export", KEY)
    store.discard("export", OTHER)
    assert store.find("export", KEY) is None
    assert os.listdir(store.workspace("export", KEY)) == []
    assert (make(store, text="other weights").path / "model.onnx").read_text() == "other weights"


def test_fact_that_json_lacks_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        pytest.raises(ArtifactError, match=r"info\.loss"),
        store.create("finetune", KEY, settings={}) as draft,
    ):
        draft.info["loss"] = float("nan")
    assert store.find("finetune", KEY) is None


def test_listing_has_the_oldest_first_and_warns_of_damage(tmp_path: Path) -> None:
    heard: list[Event] = []
    store = Store(tmp_path, heard.append)
    first, second = make(store, OTHER), make(store, KEY)
    assert store.artifacts() == [first, second]
    (first.path / MANIFEST).write_text('{"schema_version": 2}')
    assert store.artifacts() == [second]
    assert "is not a manifest" in warnings(heard)[0]


@pytest.mark.parametrize(
    ("stage", "key"), [("..", KEY), ("a/b", KEY), ("", KEY), ("export", "abc"), ("export", "../x")]
)
def test_stage_and_key_stay_in_the_store(tmp_path: Path, stage: str, key: str) -> None:
    with pytest.raises(UsageError):
        Store(tmp_path / "store").find(stage, key)
    assert not (tmp_path / "store").exists()


def test_row_2_everything_is_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int | str] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append(os.fstat(descriptor).st_ino)
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            steps.append("renamed")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    folder = make(Store(tmp_path)).path
    before, after = steps[: steps.index("renamed")], steps[steps.index("renamed") + 1 :]
    last = {
        path: max(index for index, step in enumerate(before) if step == path.stat().st_ino)
        for path in (folder / "model.onnx", folder / MANIFEST, folder)
    }
    assert last[folder] > max(last[folder / "model.onnx"], last[folder / MANIFEST])
    assert after[0] == folder.parent.stat().st_ino


def test_row_4_store_across_filesystems_is_refused_before_the_stage_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_device", lambda path: hash(path.name))
    with (
        pytest.raises(ArtifactError, match="another file system"),
        Store(tmp_path).create("export", KEY, settings={}),
    ):
        pytest.fail("the stage ran")


@needs_fork
def test_row_6_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    def die_half_way() -> None:
        with Store(tmp_path).create("export", KEY, settings={}) as draft:
            (draft.path / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    pid = forked(die_half_way)
    os.waitpid(pid, 0)
    assert len(os.listdir(tmp_path / ".staging")) == 1
    heard: list[Event] = []
    store = Store(tmp_path, heard.append)
    assert store.find("export", KEY) is None
    make(store)
    assert os.listdir(tmp_path / ".staging") == []
    assert any(isinstance(event, Note) and f"left over by process {pid}" in event.message for event in heard)


@needs_fork
def test_row_11_second_process_waits_and_finds_what_the_first_made(tmp_path: Path) -> None:
    claimed, say_claimed = os.pipe()
    go_on, say_go_on = os.pipe()

    def make_when_told() -> None:
        store = Store(tmp_path)
        with store.claim("export", KEY) as found:
            assert found is None
            os.write(say_claimed, b"x")
            os.read(go_on, 1)
            make(store, text="by the first")

    pid = forked(make_when_told)
    os.close(say_claimed)
    assert os.read(claimed, 1) == b"x"
    heard: list[Event] = []

    def listener(event: Event) -> None:
        heard.append(event)
        os.write(say_go_on, b"x")

    with Store(tmp_path, listener).claim("export", KEY) as found:
        assert found is not None
        assert (found.path / "model.onnx").read_text() == "by the first"
    assert os.waitpid(pid, 0)[1] == 0
    assert isinstance(heard[0], Note)
    assert f"held by process {pid}" in heard[0].message


def test_manifest_says_which_field_is_wrong(tmp_path: Path) -> None:
    folder = make(Store(tmp_path)).path
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"seconds"', '"second"'))
    with pytest.raises(ArtifactError, match="second"):
        read_manifest(folder)
