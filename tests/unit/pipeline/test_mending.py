"""A conversion that failed is made again from its reference: what is repaired, what is refused, what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from deploykit.cli.main import main
from deploykit.compress.quantize import Variant, quantize
from deploykit.errors import ExitCode


@pytest.fixture
def files(toy_data: Any, write_csv: Any, tmp_path: Path) -> tuple[Path, Path]:
    """The rows that certify, and those that choose."""
    return write_csv(tmp_path / "test.csv", toy_data.test), write_csv(tmp_path / "choose.csv", toy_data.train)


def spoil(folder: Path, by: float = 20.0) -> None:
    """Shift what an FFN adds, in one layer."""
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "BiasGelu")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + by, tensor.name))
    onnx.save(model, folder / "model.onnx")


def parity(*arguments: object) -> int:
    return main(["parity", *map(str, arguments), "--no-cache"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_spoiled_conversion_is_made_again_and_proved(
    precision: str,
    exported: Callable[[str], Any],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sound = exported("bert")
    candidate, out = tmp_path / "candidate", tmp_path / "deep" / "mended"
    shutil.copytree(sound.folder, candidate)
    spoil(candidate)
    if precision == "int8":
        messages = ["where is my parcel", "cancel it"]
        quantize(candidate, tmp_path / "int8", Variant("int8_static"), calibration=messages)
        candidate = tmp_path / "int8"
    before = (candidate / "model.onnx").read_bytes()
    arguments = (sound.checkpoint, candidate, "--data", files[0], "--mend", out, "--mend-data", files[1], "--json")
    code = parity(*arguments, "--max-drop", 0.2)
    found = json.loads(capsys.readouterr().out)
    mended = found["mended"]
    assert mended["before"]["verdict"] == "fail"
    assert (code, found["verdict"]) == (ExitCode.PASS, "pass"), found["checks"]
    assert found["basis"]["candidate"] == str(out)
    assert mended["out"] == str(out)
    assert set(mended["p50_ms"]) == {"candidate", "mended", "float32"}
    assert mended["quantize"]["variant"].startswith("fp32" if precision == "fp32" else "int8")
    assert (candidate / "model.onnx").read_bytes() == before
    assert {path.name for path in out.parent.iterdir()} == {"mended"}


def test_what_passes_is_left_alone(
    exported: Callable[[str], Any], files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, out = exported("bert"), tmp_path / "mended"
    arguments = (sound.checkpoint, sound.folder, "--data", files[0], "--mend", out, "--mend-data", files[1], "--json")
    assert parity(*arguments, "--max-drop", 0.2) == ExitCode.PASS
    assert "mended" not in json.loads(capsys.readouterr().out)
    assert not out.exists()


def test_what_can_not_be_mended_is_refused_before_anything_runs(
    exported: Callable[[str], Any],
    tiny_checkpoint: Callable[..., Path],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sound, (data, choose) = exported("bert"), files
    mend = ("--mend", tmp_path / "mended", "--mend-data")
    static = tmp_path / "int8"
    quantize(sound.folder, static, Variant("int8_static"), calibration=["where is my parcel"])
    refused = {
        (sound.checkpoint, sound.folder, "--data", data, *mend, data): "can't certify it",
        (sound.checkpoint, sound.folder, "--data", data, *mend[:2]): "belong together",
        (sound.checkpoint, "grpc://localhost:1/model", "--data", data, *mend, choose): "a server's model stays",
        (sound.checkpoint, sound.checkpoint, "--data", data, *mend, choose): "a server's model stays",
        (tiny_checkpoint("roberta"), sound.folder, "--data", data, *mend, choose): "is another model",
        (static, sound.folder, "--data", data, *mend, choose): "is not float32",
    }
    for arguments, words in refused.items():
        assert parity(*arguments) == ExitCode.USAGE, arguments
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    assert not (tmp_path / "mended").exists()


def test_the_other_address_is_of_a_server(
    exported: Callable[[str], Any], files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sound = exported("bert")
    code = parity(sound.checkpoint, sound.folder, "--data", files[0], "--also", "http://localhost:1/model")
    assert code == ExitCode.USAGE
    assert "second URL of a served CANDIDATE" in capsys.readouterr().err
