"""Triton's configuration: built, checked, written, parsed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import ArtifactError, RepositoryError, UsageError
from deploykit.triton.config import (
    DynamicBatching,
    InstanceGroup,
    Tensor,
    Warmup,
    WarmupInput,
    interface,
    parse_config,
    tensor_model_config,
    text_model_config,
    warmup_bytes,
    write_config,
)

INPUTS = (Tensor("input_ids", "INT64", (-1,)), Tensor("attention_mask", "INT64", (-1,)))
LOGITS = Tensor("logits", "FP32", (77,), labels_file="labels.txt")
ANSWER = (Tensor("label", "BYTES", (-1,)), Tensor("score", "FP32", (-1,)), LOGITS)
SAMPLE = Warmup("short", (WarmupInput("text", "BYTES", (1,), "short"),), batch_size=4, count=2)


def tensor_config(name: str = "intents_onnx", **changes: Any) -> Any:
    settings: dict[str, Any] = {"inputs": INPUTS, "outputs": (LOGITS,), "max_batch_size": 64}
    return tensor_model_config(name, **(settings | changes))


def text_config(name: str = "intents", **changes: Any) -> Any:
    settings: dict[str, Any] = {"outputs": ANSWER, "max_batch_size": 64}
    return text_model_config(name, **(settings | changes))


def test_tensor_model_survives_writing_and_parsing(tmp_path: Path) -> None:
    folder = tmp_path / "intents_onnx"
    folder.mkdir()
    batching = DynamicBatching(preferred_batch_sizes=(8, 64), queue_us=500)
    config = tensor_config(batching=batching, threads=2, instances=InstanceGroup("gpu", 2, (0, 1)))
    parsed = parse_config(write_config(folder, config))
    assert parsed == config
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("intents_onnx", "onnxruntime", 64)
    assert parsed.version_policy.latest.num_versions == 1
    assert [(tensor.name, list(tensor.dims)) for tensor in parsed.input] == [
        ("input_ids", [-1]),
        ("attention_mask", [-1]),
    ]
    assert parsed.output[0].label_filename == "labels.txt"
    assert list(parsed.dynamic_batching.preferred_batch_size) == [8, 64]
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 500
    assert parsed.parameters["intra_op_thread_count"].string_value == "2"
    (group,) = parsed.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 2, [0, 1])


def test_text_model_takes_one_message_and_warms_up_with_a_real_one() -> None:
    config = text_config(warmup=[SAMPLE], parameters={"language": "größe"})
    assert config.backend == "python"
    assert interface(config) == {
        "input text": "TYPE_STRING",
        "output label": "TYPE_STRING",
        "output score": "TYPE_FP32",
        "output logits": "TYPE_FP32",
    }
    (warmup,) = config.model_warmup
    assert (warmup.name, warmup.batch_size, warmup.count) == ("short", 4, 2)
    assert warmup.inputs["text"].input_data_file == "short"
    assert list(warmup.inputs["text"].dims) == [1]


def test_batching_is_on_only_when_asked_for() -> None:
    assert not text_config().HasField("dynamic_batching")
    assert text_config(batching=DynamicBatching()).HasField("dynamic_batching")


def test_warmup_bytes_are_a_length_and_utf8() -> None:
    assert warmup_bytes("größe") == b"\x07\x00\x00\x00gr\xc3\xb6\xc3\x9fe"
    with pytest.raises(UsageError, match="not valid Unicode"):
        warmup_bytes("\ud800")


@pytest.mark.parametrize("config", [tensor_config, text_config])
@pytest.mark.parametrize("name", ["..", "a/b", "", " ", "a\n", "a\0"])
def test_row_15_impossible_model_name_makes_no_config(config: Callable[..., Any], name: str) -> None:
    with pytest.raises(UsageError, match="can't be a model's name"):
        config(name)


def test_row_16_config_is_not_written_into_a_folder_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(RepositoryError, match=r"'intents'.*'other'"):
        write_config(tmp_path / "other", text_config())
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("size", [0, -1, 65])
def test_row_45_preferred_batch_size_outside_the_maximum_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"preferred_batch_size {size} .*64"):
        tensor_config(batching=DynamicBatching(preferred_batch_sizes=(8, size)))


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": -1},
        {"instances": InstanceGroup(count=0)},
        {"instances": InstanceGroup(count=-2)},
        {"instances": InstanceGroup("gpu", gpus=(-1,))},
        {"instances": InstanceGroup("cpu", gpus=(0,))},
        {"batching": DynamicBatching(queue_us=-1)},
        {"max_batch_size": 0},
    ],
)
def test_row_47_negative_threads_counts_and_delays_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^intents_onnx: "):
        tensor_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ()},
        {"inputs": (INPUTS[0], INPUTS[0])},
        {"outputs": (replace(LOGITS, name=""),)},
        {"outputs": (replace(LOGITS, dims=(0,)),)},
        {"inputs": (Tensor("input_ids", "INT64", (-2,)),)},
    ],
)
def test_impossible_tensors_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        tensor_config(**changes)


@pytest.mark.parametrize(
    "warmup",
    [
        replace(SAMPLE, batch_size=65),
        replace(SAMPLE, count=0),
        replace(SAMPLE, inputs=()),
        replace(SAMPLE, inputs=(WarmupInput("text", "INT64", (1,), "short"),)),
        replace(SAMPLE, inputs=(WarmupInput("text", "BYTES", (-1,), "short"),)),
        replace(SAMPLE, inputs=(WarmupInput("text", "BYTES", (1,), "../short"),)),
        replace(SAMPLE, inputs=(WarmupInput("text", "BYTES", (1,), ""),)),
    ],
)
def test_impossible_warmup_is_refused(warmup: Warmup) -> None:
    with pytest.raises(UsageError, match="warm-up 'short'"):
        text_config(warmup=[warmup])


def test_malformed_config_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text('name: "a"\nmax_batch_sizes: 3\n')
    with pytest.raises(RepositoryError, match="2:1"):
        parse_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match="not a Triton configuration"):
        parse_config(path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"config\.pbtxt"):
        parse_config(path)
