"""What each Triton release loads, and that a file which is too new for one is refused at export."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.errors import ExportError, ModelError, UsageError
from deploykit.export.compatibility import (
    SECURITY_FLOOR,
    known_targets,
    limits_from_target,
    preflight,
    security_warning,
)


def saved(
    folder: Path,
    *,
    opset: int = 18,
    ir_version: int = 9,
    ml_opset: int | None = None,
    operator: tuple[str, str] = ("Identity", ""),
    **more: Any,
) -> Path:
    value = {"elem_type": TensorProto.FLOAT, "shape": [1]}
    graph = helper.make_graph(
        [helper.make_node(operator[0], ["x"], ["y"], domain=operator[1])],
        "main",
        [helper.make_tensor_value_info("x", **value)],
        [helper.make_tensor_value_info("y", **value)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    if ml_opset is not None:
        imports.append(helper.make_opsetid("ai.onnx.ml", ml_opset))
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **more)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, target: str) -> ExportError:
    with pytest.raises(ExportError) as caught:
        preflight(path, target)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_file_that_the_target_loads_passes(tmp_path: Path) -> None:
    report = preflight(saved(tmp_path, operator=("SkipLayerNormalization", "com.microsoft")), "triton-25.08")
    assert (report.opset, report.ir_version, report.warning) == (18, 9, None)
    assert report.limits.onnxruntime.startswith("1.23.0")


@pytest.mark.parametrize("target", ["triton-24.04", "triton-25.06", "triton-26.09"])
def test_row_43_a_newer_opset_is_refused_and_the_limit_itself_passes(tmp_path: Path, target: str) -> None:
    limit = limits_from_target(target).opset
    preflight(saved(tmp_path, opset=limit), target)
    error = refusal(saved(tmp_path, opset=limit + 1), target)
    assert f"opset {limit + 1}, at most {limit}" in error.message
    assert f"export.opset={limit}" in (error.hint or "")


def test_row_43_the_hint_names_the_first_release_that_suffices(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, opset=23, ir_version=11), "triton-24.12")
    assert "opset 23, at most 21; IR version 11, at most 10" in error.message
    assert "export.target=triton-25.09" in (error.hint or "")
    preflight(tmp_path / "model.onnx", "triton-25.09")


@pytest.mark.parametrize("target", ["triton-24.04", "triton-25.06", "triton-26.09"])
def test_row_43_a_newer_ir_version_is_refused_and_the_limit_itself_passes(tmp_path: Path, target: str) -> None:
    limit = limits_from_target(target).ir_version
    preflight(saved(tmp_path, ir_version=limit), target)
    error = refusal(saved(tmp_path, ir_version=limit + 1), target)
    assert f"IR version {limit + 1}, at most {limit}" in error.message
    assert f"ir_version {limit}" in (error.hint or "")


def test_row_43_a_newer_opset_of_another_domain_or_in_a_function_is_refused(tmp_path: Path) -> None:
    """onnxruntime refuses an import that is too new even where nothing uses it."""
    assert "ai.onnx.ml opset 5, at most 3" in refusal(saved(tmp_path, ml_opset=5), "triton-24.01").message
    body = [helper.make_node("Identity", ["x"], ["y"])]
    function = helper.make_function("local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 23)])
    assert "opset 23, at most 22" in refusal(saved(tmp_path, functions=[function]), "triton-25.07").message


def test_row_43_a_newer_com_microsoft_operator_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, operator=("GatherBlockQuantized", "com.microsoft"))
    error = refusal(path, "triton-24.11")
    assert "com.microsoft GatherBlockQuantized needs onnxruntime 1.20" in error.message
    assert "triton-24.12" in (error.hint or "")
    preflight(path, "triton-24.12")


def test_row_43_a_file_beyond_every_known_release_still_gets_a_way_out(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, opset=99), "triton-25.08")
    assert "export.target" not in (error.hint or "")
    assert "export.opset=22" in (error.hint or "")


def test_row_43_a_release_built_from_a_commit_is_held_to_the_version_before() -> None:
    """25.08 has 1.23.0+1d1712fdaf: what of 1.23 was in it is not known."""
    assert limits_from_target("triton-25.08").opset == limits_from_target("triton-25.07").opset
    assert limits_from_target("triton-25.09").opset > limits_from_target("triton-25.08").opset


def test_every_known_release_has_limits_and_none_is_below_an_older_one() -> None:
    targets = known_targets()
    assert list(targets) == sorted(targets)
    limits = [limits_from_target(target) for target in targets]
    for older, newer in itertools.pairwise(limits):
        assert older.opset <= newer.opset
        assert older.ml_opset <= newer.ml_opset
        assert older.ir_version <= newer.ir_version
    assert min(entry.opset for entry in limits) >= 18, "the dynamo exporter writes opset 18 at least"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("triton-24.03", "triton-24.01, triton-24.04"),
        ("triton-99.01", known_targets()[-1]),
        ("triton-19.03", known_targets()[0]),
        ("25.08", "write it as triton-25.08"),
        ("triton-latest", "known: "),
        ("", "known: "),
    ],
)
def test_an_unknown_target_names_the_nearest(tmp_path: Path, target: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        preflight(saved(tmp_path), target)
    assert words in (caught.value.hint or "")


def test_the_release_without_onnxruntime_is_refused(tmp_path: Path) -> None:
    assert "no onnxruntime" in refusal(saved(tmp_path), "triton-24.02").message


def test_a_damaged_file_is_refused_first(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ModelError):
        preflight(path, "triton-25.08")


def test_releases_below_the_security_floor_are_warned_of(tmp_path: Path) -> None:
    assert security_warning(SECURITY_FLOOR) is None
    assert security_warning("26.01") is None
    for release in ("25.06", "24.12"):
        assert release in (security_warning(release) or "")
    report = preflight(saved(tmp_path), "triton-25.06")
    assert SECURITY_FLOOR in (report.warning or "")


def test_the_limits_agree_with_the_installed_onnxruntime(tmp_path: Path) -> None:
    """What the newest target loads loads here, where the installed onnxruntime is not older than the table."""
    onnxruntime = pytest.importorskip("onnxruntime")
    here = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    fitting = [
        limits
        for limits in map(limits_from_target, known_targets())
        if tuple(int(part) for part in limits.operators_of.split(".")) <= here
    ]
    newest = fitting[-1]
    path = saved(
        tmp_path, opset=newest.opset, ir_version=min(newest.ir_version, onnx.IR_VERSION), ml_opset=newest.ml_opset
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["y"]
