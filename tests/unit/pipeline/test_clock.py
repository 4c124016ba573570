"""What pruning's clock builds: cut graphs of one export, or exports of their own where that does not hold."""

from __future__ import annotations

from collections.abc import Callable
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
