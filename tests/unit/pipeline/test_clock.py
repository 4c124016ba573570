"""What pruning's clock builds: cut graphs of one export, or exports of their own where that does not hold."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import ExportError
from deploykit.events import Event, Note
from deploykit.pipeline.clock import Bench
from deploykit.recipe import Quantize
from deploykit.tasks import find_task


@pytest.mark.parametrize("derivable", [True, False])
def test_the_whole_model_is_exported_once(
    derivable: bool, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, bool]] = []
    said: list[Event] = []

    def export_graph(checkpoint: Path, path: Path, task: Any) -> None:
        done.append((checkpoint.name, False))
        path.touch()

    def export_onnx(checkpoint: Path, out: Path, task: Any, *, whole: Any = None, **_: Any) -> None:
        if whole is not None and not derivable:
            raise ExportError("not derivable")
        done.append((checkpoint.name, whole is not None))
        out.mkdir()
        (out / "model.onnx").touch()

    monkeypatch.setattr("deploykit.export.to_onnx.export_graph", export_graph)
    monkeypatch.setattr("deploykit.export.to_onnx.export_onnx", export_onnx)
    checkpoint = tiny_checkpoint("bert")
    bench = Bench(
        find_task("text-classification"), checkpoint, Quantize(scheme="none"), "triton-25.08", 1, ["hello"], ["hello"],
        tmp_path, 0, said.append,
    )  # fmt: skip
    for name in ("a", "b", "a"):
        assert (Path(bench.build(tmp_path / name, name).location) / "model.onnx").is_file()
    assert done == [(checkpoint.name, False), ("a", derivable), ("b", derivable)]
    assert [event.message for event in said if isinstance(event, Note)] == (
        [] if derivable else ["not derivable: exported anew"] * 2
    )


def test_a_build_that_was_cut_off_is_not_taken_for_one(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 28: killed while the float graph was put in its place, half of it was there, and never made again."""

    def export_onnx(checkpoint: Path, out: Path, task: Any, **_: Any) -> None:
        out.mkdir(exist_ok=True)
        (out / "model.onnx").write_text("the whole graph")

    def cut_off(source: str, target: str, **_: Any) -> None:
        Path(target).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("deploykit.export.to_onnx.export_graph", lambda checkpoint, path, task: path.touch())
    monkeypatch.setattr("deploykit.export.to_onnx.export_onnx", export_onnx)
    bench = Bench(
        find_task("text-classification"), tiny_checkpoint("bert"), Quantize(scheme="none"), "triton-25.08", 1,
        ["hello"], ["hello"], tmp_path, 0, lambda _: None,
    )  # fmt: skip
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("shutil.copy2", cut_off)
        patch.setattr("shutil.copytree", partial(shutil.copytree, copy_function=cut_off))
        bench.build(tmp_path / "a", "a")
    assert (Path(bench.build(tmp_path / "a", "a").location) / "model.onnx").read_text() == "the whole graph"
