"""Any two models to compare: what a command-line argument means, and what its files say of labels and tokens."""

from __future__ import annotations

__all__ = [
    "Architecture",
    "architecture_of",
    "judge_forms",
    "labels_of",
    "labels_or_error",
    "model_folder",
    "pair_from_text",
    "tokenizer_folder",
]

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from deploykit.artifacts.digest import digest_json
from deploykit.compress.vocabulary import is_trimmed
from deploykit.errors import ParityError, UsageError
from deploykit.parity.contract import (
    judge_labels,
    judge_tokenizer,
    judge_tokenizer_settings,
    judge_trimmed_tokenizer,
)
from deploykit.parity.verdict import Verdict
from deploykit.runners import Target, target_from_text
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.onnx_runner import onnx_file
from deploykit.runners.tokenize import Encoder, max_length_from_folder, reads_pairs
from deploykit.tasks.spans import tokenizer_input
from deploykit.triton.layout import version_folders

_LABELS: Final = "labels.txt"
_SHAPE_KEYS: Final = (
    "model_type", "vocab_size", "hidden_size", "dim", "num_hidden_layers", "n_layers", "intermediate_size",
    "hidden_dim", "num_attention_heads", "n_heads", "deploykit_plan",
)  # fmt: skip
_UNUSED_BY_TOKENS: Final = ("padding", "truncation")
"""Parts of tokenizer.json that a runner sets by itself."""

Architecture = Mapping[str, Any]


def pair_from_text(
    reference: str, candidate: str, *, task: str, tokenizer: Path | None = None
) -> tuple[Target, Target]:
    """The targets that two arguments name, each with a tokenizer: a bare `.onnx` file takes the other's.

    Args:
        reference: a checkpoint folder, an ONNX folder or file, a model's folder in a Triton repository, or a URL.
        candidate: likewise.
        task: what both do.
        tokenizer: the folder of the tokenizer for a side that has none; the other side's unless told.

    Raises:
        UsageError: one of them is none of these.
    """
    targets = [_target(text, task) for text in (reference, candidate)]
    with_tokenizer = [folder for target in targets if (folder := tokenizer_folder(target)) is not None]
    spare = tokenizer or (with_tokenizer[0] if with_tokenizer else None)
    first, second = (
        replace(target, tokenizer=str(spare))
        if target.kind != "triton" and tokenizer_folder(target) is None and spare is not None
        else target
        for target in targets
    )
    return first, second


def _target(text: str, task: str) -> Target:
    """As `target_from_text`, and a model's folder in a Triton repository as the ONNX file of its newest version."""
    folder = Path(text)
    if "://" in text or not (folder / "config.pbtxt").is_file():
        return target_from_text(text, task=task)
    folder = folder.resolve()
    tensor = folder if folder.name.endswith("_onnx") else folder.with_name(f"{folder.name}_onnx")
    entry = folder.with_name(folder.name.removesuffix("_onnx"))
    files = [version / "model.onnx" for version in version_folders(tensor).values()]
    if not files or not files[-1].is_file():
        raise UsageError(
            f"{text} has no version with a model.onnx, nor has {tensor.name} beside it",
            "name the folder of a model that `deploykit package` made, or the .onnx file in it",
        )
    tokenizers = [version for version in version_folders(entry).values() if (version / "tokenizer.json").is_file()]
    return Target("onnxruntime", str(files[-1]), task=task, tokenizer=str(tokenizers[-1]) if tokenizers else None)


def model_folder(target: Target) -> Path | None:
    """The folder of a target in process."""
    if target.kind == "triton":
        return None
    return Path(target.location) if target.kind == "torch" else onnx_file(target.location).parent


def tokenizer_folder(target: Target) -> Path | None:
    """The folder with the tokenizer of a target in process; None where it has none."""
    if target.kind == "triton":
        return None
    folder = Path(target.tokenizer) if target.tokenizer else model_folder(target)
    return folder if folder is not None and (folder / "tokenizer.json").is_file() else None


def labels_of(target: Target) -> tuple[str, ...] | None:
    """What the files of a target say its labels are called, in index order; None where they don't.

    Raises:
        ModelError: its config.json names no labels.
    """
    folder = model_folder(target)
    if folder is None:
        return None
    if (folder / "config.json").is_file():
        return labels_from_folder(folder)
    if (folder.parent / "config.pbtxt").is_file() and (folder.parent / _LABELS).is_file():
        return tuple((folder.parent / _LABELS).read_text(encoding="utf-8").splitlines())
    return None


def architecture_of(target: Target) -> Architecture | None:
    """The keys of config.json that decide the shapes of the weights; None without one."""
    folder = model_folder(target)
    if folder is None or not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: config[key] for key in _SHAPE_KEYS if key in config}


def judge_forms(
    reference: Target, candidate: Target, labels: Sequence[str], own: Sequence[str] | None, texts: Sequence[str]
) -> list[Verdict]:
    """Whether two targets name their labels alike and tokenize alike, as far as their files say so.

    Args:
        reference: what to live up to.
        candidate: what is on trial.
        labels: the reference's.
        own: the candidate's; None where it names none.
        texts: messages to tokenize.
    """
    verdicts = [] if own is None else [judge_labels(labels, own)]
    ours, theirs = tokenizer_folder(reference), tokenizer_folder(candidate)
    if ours is None or theirs is None:
        return verdicts
    expected, pieces = _token_ids(reference, ours, texts)
    encoder = Encoder(theirs)
    if is_trimmed(theirs):
        found = [encoder.encode([text])["input_ids"][0].tolist() for text in texts]
        cut = [encoder.pieces(ids) for ids in found]
        verdicts.append(judge_trimmed_tokenizer(pieces, cut, encoder.max_length, encoder.inner_prefix))
        return verdicts
    found, _ = _token_ids(candidate, theirs, texts)
    judged = judge_tokenizer(expected, found)
    digests = [_tokenizer_digest(folder) for folder in (ours, theirs)]
    same = "the same" if digests[0] == digests[1] else "unlike"
    note = f"digests of what cuts the text are {same}: {digests[0][:12]} and {digests[1][:12]}"
    verdicts.append(replace(judged, details=(*judged.details, note)))
    settings = [_settings(folder) for folder in (ours, theirs)]
    shared = settings[0].keys() & settings[1].keys()
    verdicts.append(judge_tokenizer_settings(*({key: each[key] for key in shared} for each in settings)))
    return verdicts


def _token_ids(target: Target, folder: Path, texts: Sequence[str]) -> tuple[list[list[int]], list[list[str]]]:
    """The token ids and pieces of texts as the target's runner makes them: PyTorch's with transformers."""
    if target.kind != "torch":
        encoder = Encoder(folder)
        ids = [encoder.encode([text])["input_ids"][0].tolist() for text in texts]
        return ids, [encoder.pieces(each) for each in ids]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    given = tokenizer_input(texts, pairs=reads_pairs(folder))
    ids = tokenizer(given, truncation=True, max_length=max_length_from_folder(folder))["input_ids"]
    return ids, [tokenizer.convert_ids_to_tokens(each) for each in ids]


def _tokenizer_digest(folder: Path) -> str:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return digest_json({key: value for key, value in content.items() if key not in _UNUSED_BY_TOKENS})


def _settings(folder: Path) -> dict[str, Any]:
    """What decides how messages are cut and padded, beside tokenizer.json; a folder of a package says the length."""
    settings: dict[str, Any] = {"max_length": max_length_from_folder(folder)}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        settings |= {side: config.get(side, "right") for side in ("padding_side", "truncation_side")}
        settings |= {key: config[key] for key in ("do_lower_case",) if key in config}
    return settings


def labels_or_error(reference: Target, candidate: Target, *, needed: bool) -> tuple[str, ...]:
    """The labels of the first side that names them.

    Raises:
        ParityError: neither does, and they are needed.
    """
    found = next((labels for side in (reference, candidate) if (labels := labels_of(side)) is not None), None)
    if found is None and needed:
        raise ParityError(
            "neither model says what its labels are called", "compare with the checkpoint folder, which has config.json"
        )
    return found or ()
