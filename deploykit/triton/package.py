"""Builds a staged Triton package from an ONNX folder: the entry of messages, and the tensor entry it calls."""

from __future__ import annotations

__all__ = ["PackageSettings", "build_package", "labels_from_folder"]

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx

from deploykit.artifacts.names import check_model_name
from deploykit.errors import ModelError
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.medium import medium_of
from deploykit.runners.untrusted import check_onnx
from deploykit.tasks import Task
from deploykit.tasks.medium import Encoder, Medium
from deploykit.triton.config import (
    WARMUP_FOLDER,
    DynamicBatching,
    InstanceGroup,
    Tensor,
    Warmup,
    WarmupInput,
    tensor_model_config,
    text_model_config,
    write_config,
)
from deploykit.triton.entries import vendor_tokenizers

_LABELS = "labels.txt"
_WARMUPS = 3
_VENDORS = {"tokenizers": vendor_tokenizers}
_STORED = {"INT64": "<i8", "UINT8": "u1"}


@dataclass(frozen=True)
class PackageSettings:
    """How Triton is to run a package.

    Attributes:
        max_batch_size: most messages in one batch.
        instances: copies of the tensor model.
        device: where they run.
        threads: intra-op threads of one copy, 0 for onnxruntime's own choice.
        queue_delay_us: how long a message may wait for others.
        preferred_batch_size: batch sizes that end the waiting.
        layout: whether the text entry calls the tensor model, or holds the same file itself (on the CPU, where the
            server's Python has onnxruntime).
    """

    max_batch_size: int = 64
    instances: int = 1
    device: Literal["cpu", "gpu"] = "cpu"
    threads: int = 0
    queue_delay_us: int = 0
    preferred_batch_size: tuple[int, ...] = ()
    layout: Literal["call", "hold"] = "hold"


def build_package(
    source: Path,
    out: Path,
    name: str,
    task: Task,
    settings: PackageSettings,
    *,
    samples: Sequence[str],
) -> None:
    """Write the two models `NAME` (message in, answer out) and `NAME_onnx` (tensors) into the folder `out`.

    What runs in the server lies in the package: for texts the tokenizer's library and vocabulary too, so that NVIDIA's
    image serves it with nothing installed.

    Args:
        source: an ONNX folder: `model.onnx`, `config.json` with labels, what messages need (`tokenizer.json`).
        out: the folder to write, empty or absent.
        name: the model's name in Triton.
        task: whose entry answers.
        settings: how Triton runs it.
        samples: real messages to warm the models up with.

    Raises:
        UsageError: the name is impossible.
        ModelError: the folder lacks a file, or the model has another interface than the task.
    """
    check_model_name(name)
    inner = f"{check_model_name(name)}_onnx"
    labels = labels_from_folder(source)
    medium = medium_of(task)
    encoder = medium.encoder(source)
    inputs = _graph_inputs(source / "model.onnx", medium)
    batching = DynamicBatching(settings.preferred_batch_size, settings.queue_delay_us)
    instances = InstanceGroup(settings.device, settings.instances)
    layout = "call" if settings.device == "gpu" else settings.layout
    warm = list(dict.fromkeys(samples))[:_WARMUPS] or [medium.neighbour]

    tensor_folder = out / inner
    (tensor_folder / "1").mkdir(parents=True)
    shutil.copyfile(source / "model.onnx", tensor_folder / "1" / "model.onnx")
    _write_labels(tensor_folder, labels)
    dims = (-1, len(labels)) if task.per_token else (len(labels),)
    # The classification extension ranks the values of one row.
    logits = Tensor(task.output, "FP32", dims, labels_file=None if task.per_token else _LABELS)
    write_config(
        tensor_folder,
        tensor_model_config(
            inner,
            inputs=[Tensor(value, medium.tensors[value].dtype, medium.tensors[value].dims) for value in inputs],
            outputs=[logits],
            max_batch_size=settings.max_batch_size,
            instances=instances,
            # The text entry has made its batch already: waiting here would be added to every call.
            batching=DynamicBatching(),
            threads=settings.threads,
            # While a new version is loaded, the text entry of the one before still calls its own.
            versions=2,
            warmup=[
                _tensor_warmup(tensor_folder, encoder, medium, inputs, number, message)
                for number, message in enumerate(warm)
            ],
        ),
    )

    text_folder = out / name
    (text_folder / "1").mkdir(parents=True)
    model, *beside = task.entry()
    shutil.copyfile(model, text_folder / "1" / "model.py")
    for source_file in beside:
        shutil.copyfile(source_file, text_folder / "1" / source_file.name)
    for file in medium.served_files:
        shutil.copyfile(source / file, text_folder / "1" / file)
    for library in medium.libraries:
        _VENDORS[library](text_folder / "1" / "site")
    entry: dict[str, Any] = {
        "model": inner,
        "labels": list(labels),
        "inputs": inputs,
        **medium.served_settings(source),
        **task.served_settings(source),
    }
    (text_folder / "1" / "entry.json").write_text(json.dumps(entry, indent=1, ensure_ascii=False), encoding="utf-8")
    write_config(
        text_folder,
        text_model_config(
            name,
            outputs=[
                *(Tensor(each.name, each.dtype, each.dims) for each in task.served),
                replace(logits, labels_file=None),
            ],
            max_batch_size=settings.max_batch_size,
            message=Tensor(medium.name, "BYTES", (1,)),
            instances=InstanceGroup("cpu", settings.instances),
            batching=batching,
            parameters={"layout": layout, "intra_op_thread_count": str(settings.threads)},
            # No warm-up here: while a server starts it refuses the call to the tensor entry.
        ),
    )


def _graph_inputs(path: Path, medium: Medium) -> list[str]:
    check_onnx(path)
    names = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    given = list(medium.tensors)
    if set(names) - set(given) or given[0] not in names:
        raise ModelError(
            f"{path} takes {', '.join(names)}: the entry of {medium.name}s gives {', '.join(given)}",
            "export the model with `deploykit export`",
        )
    return names


def _write_labels(folder: Path, labels: Sequence[str]) -> None:
    (folder / _LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _tensor_warmup(
    folder: Path, encoder: Encoder, medium: Medium, inputs: Sequence[str], number: int, message: str
) -> Warmup:
    (folder / WARMUP_FOLDER).mkdir(exist_ok=True)
    tensors = encoder.encode([message])
    found = []
    for name in inputs:
        file, dtype = f"{number}_{name}", medium.tensors[name].dtype
        (folder / WARMUP_FOLDER / file).write_bytes(tensors[name][0].astype(_STORED[dtype]).tobytes())
        found.append(WarmupInput(name, dtype, tensors[name].shape[1:], file))
    return Warmup(f"sample {number}", tuple(found))
