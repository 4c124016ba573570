"""Model files from outside: every kind of damage and attack is refused by its own message, before a loader sees it."""

from __future__ import annotations

import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from deploykit.errors import ModelError
from deploykit.runners.untrusted import check_checkpoint, check_onnx

# --- checkpoints ---


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that passes: config, tokenizer and two tensors."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file(
        {"encoder": np.ones((3, 4), np.float32), "head": np.zeros((2,), np.float16)}, tmp_path / "model.safetensors"
    )
    return tmp_path


def write_safetensors(path: Path, header: object, data: bytes = b"", *, declared: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if declared is None else declared) + text + data)


def tensor(dtype: object, shape: object, offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(check: Callable[[], None]) -> str:
    """The message of the refusal, which is one line and comes with a hint."""
    with pytest.raises(ModelError) as caught:
        check()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_a_sound_checkpoint_passes(checkpoint: Path) -> None:
    check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "last.ckpt"])
def test_row_34_pickle_weights_are_refused_unless_asked_for(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps({"head": [0.0]}))
    assert name in refusal(lambda: check_checkpoint(checkpoint))
    check_checkpoint(checkpoint, trust_pickle=True)


def test_row_34_pickle_beside_safetensors_is_not_what_is_loaded(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps({}))
    check_checkpoint(checkpoint)


def test_row_34_a_decoy_safetensors_does_not_cover_for_pickle(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "decoy.safetensors")
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    assert "pytorch_model.bin is a pickle" in refusal(lambda: check_checkpoint(checkpoint))


def test_row_34_a_pickled_adapter_is_refused(checkpoint: Path) -> None:
    (checkpoint / "adapter_model.bin").write_bytes(pickle.dumps({}))
    assert "adapter_model.bin is a pickle" in refusal(lambda: check_checkpoint(checkpoint))


def test_row_34_config_cannot_name_another_weights_file(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"transformers_weights": "adapter_model.bin"}')
    assert "names its own weights file" in refusal(lambda: check_checkpoint(checkpoint))


def test_row_34_an_index_cannot_name_a_pickle_shard(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "shard.bin").write_bytes(pickle.dumps({}))
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"head": "shard.bin"}}))
    assert "not safetensors" in refusal(lambda: check_checkpoint(checkpoint))


def test_without_weights_the_message_names_what_is_missing(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(lambda: check_checkpoint(checkpoint))
    assert "no model.safetensors" in refusal(lambda: check_checkpoint(checkpoint, trust_pickle=True))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
@pytest.mark.parametrize("declared", [2**63, 99_999_999, 100_000_001])
def test_row_35_oversized_header_is_refused_without_allocating_it(checkpoint: Path, declared: int) -> None:
    import resource

    write_safetensors(checkpoint / "model.safetensors", {}, declared=declared)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, before[1]))
    try:
        message = refusal(lambda: check_checkpoint(checkpoint))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "header" in message


def test_row_35_a_header_above_the_format_s_limit_is_refused_though_the_file_is_large_enough(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    write_safetensors(path, {}, declared=100_000_001)
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # sparse: takes no space
    assert "more than safetensors' 100000000" in refusal(lambda: check_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": tensor("F32", [2], [0, 8]), "b": tensor("F32", [2], [4, 12])}, bytes(12), "overlaps"),
        ({"a": tensor("F32", [2], [0, 8]), "b": tensor("F32", [2], [0, 8])}, bytes(8), "overlaps"),
        ({"a": tensor("F32", [2], [0, 8]), "b": tensor("F32", [2], [12, 20])}, bytes(20), "belong to no tensor"),
        ({"a": tensor("F32", [2], [0, 8])}, bytes(12), "too long"),
        ({"a": tensor("F32", [4], [0, 16])}, bytes(8), "truncated"),
        ({"a": tensor("F32", [2**62, 8], [0, 8])}, bytes(8), "8 bytes"),
        ({"a": tensor("F32", [3], [0, 8])}, bytes(8), "8 bytes"),
        ({"a": tensor("F32", [2], [8, 0])}, bytes(8), "data_offsets"),
        ({"a": tensor("F32", [2], [-8, 0])}, bytes(8), "data_offsets"),
        ({"a": tensor("F32", [2], [0, 8, 16])}, bytes(8), "data_offsets"),
        ({"a": tensor("F32", [2], None)}, bytes(8), "data_offsets"),
        ({"a": tensor("F32", [-2], [0, 8])}, bytes(8), "shape"),
        ({"a": tensor("F32", [True, 2], [0, 8])}, bytes(8), "shape"),
        ({"a": tensor("F32", [1] * 65, [0, 4])}, bytes(4), "shape"),
        ({"a": tensor("F33", [2], [0, 8])}, bytes(8), "dtype"),
        ({"a": tensor(["F32"], [2], [0, 8])}, bytes(8), "dtype"),
        ({"a": []}, b"", "dtype"),
        ({"__metadata__": {"format": 1}}, b"", "__metadata__"),
        ([], b"", "not a JSON object"),
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe{", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a": {"dtype":"F32","shape":[],"data_offsets":[0,4]}, "a": 1}', bytes(4), "stands twice"),
    ],
)
def test_row_35_malformed_safetensors_is_refused(checkpoint: Path, header: object, data: bytes, words: str) -> None:
    write_safetensors(checkpoint / "model.safetensors", header, data)
    assert words in refusal(lambda: check_checkpoint(checkpoint))


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1])
def test_row_35_truncated_safetensors_is_refused(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert ("empty" if keep == 0 else "truncated") in refusal(lambda: check_checkpoint(checkpoint))


def test_row_35_tensors_of_no_size_and_of_sub_byte_types_pass(checkpoint: Path) -> None:
    header = {
        "none": tensor("F32", [0, 3], [0, 0]),
        "scalar": tensor("I64", [], [0, 8]),
        "four_bits": tensor("F4", [3, 2], [8, 11]),
    }
    write_safetensors(checkpoint / "model.safetensors", header, bytes(11))
    check_checkpoint(checkpoint)


def test_a_tensor_s_name_cannot_break_the_message(checkpoint: Path) -> None:
    write_safetensors(checkpoint / "model.safetensors", {"a\n\x1b[2J" + "x" * 500: tensor("?", [], [0, 0])})
    message = refusal(lambda: check_checkpoint(checkpoint))
    assert "\x1b" not in message
    assert message.count("x") < 100


def shard(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_sharded_checkpoint_passes(checkpoint: Path) -> None:
    shard(checkpoint, dict.fromkeys(["encoder", "head"], "model-00001-of-00001.safetensors"))
    check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"head": "model-00002-of-00002.safetensors"}, "is missing"),
        ({"head": "../other/model.safetensors"}, "outside its folder"),
        ({"head": "/etc/model.safetensors"}, "outside its folder"),
        ({"head": "C:\\model.safetensors"}, "outside its folder"),
        ({"head": "..\\model.safetensors"}, "outside its folder"),
        ({"head": "a\x00.safetensors"}, "outside its folder"),
        ({"head": ""}, "outside its folder"),
        ({"pooler": "model-00001-of-00001.safetensors"}, "lacks the tensor 'pooler'"),
        ({"head": 7}, "names no file"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_a_wrong_shard_index_is_refused(checkpoint: Path, weight_map: object, words: str) -> None:
    shard(checkpoint, weight_map)
    assert words in refusal(lambda: check_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no config.json"), ("{", "not valid JSON"), ("[]", "no JSON object")]
)
def test_config_must_be_there_and_valid(checkpoint: Path, content: str | None, words: str) -> None:
    (checkpoint / "config.json").unlink()
    if content is not None:
        (checkpoint / "config.json").write_text(content)
    assert words in refusal(lambda: check_checkpoint(checkpoint))


def test_a_missing_tokenizer_is_said(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(lambda: check_checkpoint(checkpoint))


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(lambda: check_checkpoint(tmp_path / "nowhere"))


# --- ONNX ---

WEIGHT = np.arange(6, dtype=np.float32)


def external_weight(location: str, dims: tuple[int, ...] = (6,), **entries: object) -> TensorProto:
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    return weight


def model_with(weight: TensorProto | None = None, nodes: list[Any] | None = None, **more: Any) -> onnx.ModelProto:
    shape: dict[str, Any] = {"elem_type": TensorProto.FLOAT, "shape": [6]}
    graph = helper.make_graph(
        nodes or [helper.make_node("Add", ["x", "weight"], ["y"])],
        "main",
        [helper.make_tensor_value_info("x", **shape)],
        [helper.make_tensor_value_info("y", **shape)],
        [numpy_helper.from_array(WEIGHT, "weight") if weight is None else weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], **more)


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(folder: Path, model: onnx.ModelProto, **settings: Any) -> str:
    path = saved(folder, model)
    return refusal(lambda: check_onnx(path, **settings))


def test_a_sound_model_passes(tmp_path: Path) -> None:
    check_onnx(saved(tmp_path, model_with()))


def test_external_data_in_the_folder_passes(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/model.data").write_bytes(bytes(8) + WEIGHT.tobytes())
    for entries in ({"offset": 8, "length": 24}, {"offset": 8}):
        check_onnx(saved(tmp_path, model_with(external_weight("weights/model.data", **entries))))


@pytest.mark.parametrize(
    "location",
    ["../secret", "a/../../secret", "/etc/hostname", "..\\secret", "C:\\secret", "c:secret", "", ".", "a\x00b"],
)
def test_row_36_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(24))
    folder = tmp_path / "model"
    folder.mkdir()
    assert "outside the model's folder" in refused(folder, model_with(external_weight(location)))


def test_row_36_external_data_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_bytes(bytes(24))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "file").symlink_to(tmp_path / "elsewhere/secret")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    for location in ("file", "sub/secret"):
        assert "through a link" in refused(folder, model_with(external_weight(location)))


def test_row_36_a_second_location_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(24))
    weight = external_weight("../secret")
    weight.external_data.add(key="location", value="data")
    assert "described twice" in refused(tmp_path, model_with(weight))


@pytest.mark.parametrize("hide", ["subgraph", "function", "attribute", "sparse"])
def test_row_36_external_data_is_found_wherever_a_tensor_can_be(tmp_path: Path, hide: str) -> None:
    weight = external_weight("../secret")
    constant = helper.make_node("Constant", [], ["weight"], value=weight)
    if hide == "attribute":
        model = model_with(nodes=[constant])
    elif hide == "subgraph":
        branch = helper.make_graph([constant], "branch", [], [], [])
        model = model_with(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])
    elif hide == "function":
        function = helper.make_function("local", "F", [], ["weight"], [constant], [helper.make_opsetid("", 18)])
        model = model_with(functions=[function])
    else:
        model = model_with()
        model.graph.sparse_initializer.add(values=weight, indices=numpy_helper.from_array(np.arange(6)), dims=[6])
    assert "outside the model's folder" in refused(tmp_path, model)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": -8}, "no valid number"),
        ({"length": -24}, "no valid number"),
        ({"offset": "0x10"}, "no valid number"),
        ({"offset": 10**30}, "no valid number"),
        ({"offset": 2**62}, "ends at byte"),
        ({"offset": 1}, "ends at byte"),
        ({"length": 10**9}, "its shape needs 24"),
        ({"length": 4}, "its shape needs 24"),
    ],
)
def test_row_37_external_offset_or_length_out_of_range_is_refused(
    tmp_path: Path, entries: dict[str, object], words: str
) -> None:
    (tmp_path / "data").write_bytes(bytes(24))
    assert words in refused(tmp_path, model_with(external_weight("data", **entries)))


def test_row_37_a_shape_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(24))
    assert "ends at byte" in refused(tmp_path, model_with(external_weight("data", dims=(2**40, 2**20))))
    assert "no valid shape" in refused(tmp_path, model_with(external_weight("data", dims=(-1,))))


def test_row_37_an_unknown_type_is_refused_and_packed_types_are_counted_in_bits(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(3))
    weight = external_weight("data", length=3)
    weight.data_type = TensorProto.INT4
    check_onnx(saved(tmp_path, model_with(weight)))
    weight.data_type = 99
    assert "unknown type 99" in refused(tmp_path, model_with(weight))


def test_row_38_custom_domain_is_refused_unless_allowed_by_name(tmp_path: Path) -> None:
    model = model_with(nodes=[helper.make_node("Evil", ["x"], ["y"], domain="com.example")])
    message = refused(tmp_path, model)
    assert "'Evil'" in message
    assert "'com.example'" in message
    assert "com.example" in refused(tmp_path, model, allow_domains=["com.other"])
    check_onnx(tmp_path / "model.onnx", allow_domains=["com.example"])


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"])
def test_row_38_stock_domains_pass(tmp_path: Path, domain: str) -> None:
    check_onnx(saved(tmp_path, model_with(nodes=[helper.make_node("Gelu", ["x"], ["y"], domain=domain)])))


def test_row_38_the_training_domain_is_not_stock(tmp_path: Path) -> None:
    assert "ai.onnx.training" in refused(
        tmp_path, model_with(nodes=[helper.make_node("Adam", ["x"], ["y"], domain="ai.onnx.training")])
    )


def test_row_38_functions_of_the_model_are_resolved_and_looked_into(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 18)]
    call = helper.make_node("F", ["x"], ["y"], domain="local")
    sound = helper.make_function("local", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    check_onnx(saved(tmp_path, model_with(nodes=[call], functions=[sound])))
    assert "'F'" in refused(tmp_path, model_with(nodes=[call]))
    evil = helper.make_node("Evil", ["x"], ["y"], domain="com.example")
    hiding = helper.make_function("local", "F", ["x"], ["y"], [evil], opsets)
    assert "'Evil'" in refused(tmp_path, model_with(nodes=[call], functions=[hiding]))


def test_row_38_custom_domain_in_a_subgraph_is_refused(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Evil", [], ["y"], domain="com.example")], "branch", [], [])
    outer = helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)], "outer", [], []
    )
    model = model_with(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=outer, else_branch=outer)])
    assert "'Evil'" in refused(tmp_path, model)


def test_row_39_every_truncation_is_refused(tmp_path: Path) -> None:
    content = model_with().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert ("empty" if length == 0 else "truncated or no ONNX file") in refusal(lambda: check_onnx(path))


def test_row_39_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"<html></html>", bytes(64)):
        path.write_bytes(content)
        assert "no ONNX file" in refusal(lambda: check_onnx(path))
    assert "does not exist" in refusal(lambda: check_onnx(tmp_path / "nowhere.onnx"))


def test_who_gives_a_checkpoint_for_an_onnx_folder_is_told_to_export_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        check_onnx(tmp_path / "model.onnx")
    assert "deploykit export" in str(caught.value.hint)


def test_row_39_a_file_beyond_protobuf_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: takes no space
    assert "protobuf can hold" in refusal(lambda: check_onnx(path))


@pytest.mark.parametrize("location", ["model.data", "sub/model.data", "*/_ORT_MEM_ADDR_/*"])
def test_row_40_missing_external_data_is_refused(tmp_path: Path, location: str) -> None:
    """The last is what onnxruntime writes for a tensor at an address in memory: never valid in a file."""
    assert "is missing" in refused(tmp_path, model_with(external_weight(location)))
