"""What a target gives for messages: all of them, or as many as it can answer; PyTorch's once and then from a file."""

from __future__ import annotations

__all__ = [
    "NO_ANSWER",
    "ModelOutputs",
    "OutputCache",
    "Steps",
    "by_class",
    "padded_batches",
    "run_target",
    "try_target",
]

import io
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from deploykit import __version__
from deploykit.artifacts.atomic import write_atomic
from deploykit.artifacts.digest import digest_file, digest_json
from deploykit.errors import ArtifactError, DataError, ModelError, ParityError, RequestError
from deploykit.events import Listener, Progress
from deploykit.machine import instruction_set
from deploykit.parity.flips import ByClass
from deploykit.parity.report import Predictions
from deploykit.runners import Runner, Target, infer_all, open_runner
from deploykit.runners.padding import equally_long
from deploykit.tasks import Answer, Scores, Task


@dataclass(frozen=True)
class NoAnswer:
    """What a message got that a model refused or failed on."""

    def __str__(self) -> str:
        return "(no answer)"

    def as_json(self, text: str) -> dict[str, Any]:
        """No answer, in JSON."""
        return {"text": text, "answer": None}

    def line(self, text: str) -> str:
        """No answer, on one line."""
        return f"{text}: {self}"


NO_ANSWER: Final = NoAnswer()
_EMPTY: Final[Mapping[str, Any]] = {"answer": NO_ANSWER, "texts": ""}
"""What an output is where a message has none."""
_BATCH = 16
_GIVE_UP = 5
"""Batches that fail one after the other before the rest is not tried."""
_CACHE_VERSION = 1
_KEPT = 64
"""Cached outputs that stay: a megabyte or so each."""


@dataclass(frozen=True)
class ModelOutputs:
    """What one model gave for all messages.

    Attributes:
        outputs: named arrays [messages, ...]; NaN where there is no answer.
        answers: what a client is told.
        failures: why a message has no answer, by its index.
    """

    outputs: dict[str, NDArray[Any]]
    answers: tuple[Answer, ...]
    failures: Mapping[int, str] = field(default_factory=dict)

    def predictions(self, task: Task, right: Sequence[Answer] | None, *, with_outputs: bool = False) -> Predictions:
        """As a parity report takes them."""
        scores = None if right is None else self.scores(task, right)
        logits = {task.output: self.outputs[task.output]} if with_outputs else None
        return Predictions(self.answers, None if scores is None else scores.correct, logits, scores)

    def scores(self, task: Task, right: Sequence[Answer]) -> Scores:
        """How good the answers are; a message without one earns nothing."""
        answers = [right[index] if index in self.failures else answer for index, answer in enumerate(self.answers)]
        scores = task.scores(answers, right)
        return scores.without(list(self.failures)) if self.failures else scores


def by_class(task: Task, reference: ModelOutputs, candidate: ModelOutputs, right: Sequence[Answer]) -> ByClass | None:
    """What recall by class is counted on, of messages that have an answer; None where an answer is one class."""
    kept = [index for index in range(len(right)) if index not in candidate.failures]
    wanted = [right[index] for index in kept]
    asked, before = task.by_class([reference.answers[index] for index in kept], wanted)
    if asked is wanted:
        return None
    return before, task.by_class([candidate.answers[index] for index in kept], wanted)[1], asked


class Steps:
    """Counts messages over several passes, from several threads, as one bar."""

    def __init__(self, stage: str, total: int, listener: Listener) -> None:
        self._stage, self._total, self._listener = stage, total, listener
        self._done, self._lock = 0, threading.Lock()

    def count(self, batch: Sequence[int]) -> Sequence[int]:
        """One batch more; returns it."""
        self.skip(len(batch))
        return batch

    def skip(self, messages: int) -> None:
        """So many messages more are done, or need not be."""
        with self._lock:
            self._done += messages
            done = self._done
        if done % 20 < messages or done == self._total:
            self._listener(Progress(self._stage, done, self._total, "message"))


def padded_batches(texts: Sequence[str], size: int = _BATCH) -> list[list[int]]:
    """Batches of messages of unlike lengths, but not of the shortest with the longest: padding costs as text does."""
    batches = []
    for start in range(0, len(texts), 4 * size):
        window = sorted(range(start, min(start + 4 * size, len(texts))), key=lambda index: len(texts[index]))
        batches += [window[begin : begin + size] for begin in range(0, len(window), size)]
    return batches


def run_target(
    target: Target,
    texts: Sequence[str],
    task: Task,
    labels: Sequence[str],
    batches: Sequence[Sequence[int]],
    steps: Steps | None = None,
) -> ModelOutputs:
    """What a target gives for all texts, run in the given batches of indices; that it can't answer is an error."""
    with open_runner(target) as runner:
        watched = (steps.count(batch) for batch in batches) if steps else batches
        outputs = infer_all(runner, texts, watched)
    return ModelOutputs(outputs, _answers(outputs, task, labels))


def try_target(
    runner: Runner,
    texts: Sequence[str],
    task: Task,
    labels: Sequence[str],
    batches: Sequence[Sequence[int]],
    *,
    like: NDArray[Any],
    steps: Steps | None = None,
) -> ModelOutputs:
    """What a runner gives for as many texts as it can answer: a refusal or a misshapen output is a finding.

    Args:
        runner: entered.
        texts: the messages.
        task: what it does.
        labels: the names of its classes.
        batches: of indices, each text once.
        like: what the reference gave, for the shape and dtype where nothing is answered.
        steps: counts the messages.
    """
    found: dict[str, NDArray[Any]] = {}
    failures: dict[int, str] = {}
    in_vain = 0
    for batch in batches:
        values: Mapping[str, NDArray[Any]] = {}
        reason = "not tried after others had failed"
        if found or in_vain < _GIVE_UP:
            try:
                values = runner.infer([texts[index] for index in batch])
                reason = _misshapen(values, found, task.output, len(batch)) or ""
            except (DataError, ModelError, RequestError) as error:
                reason = error.message
        if reason:
            in_vain += 1
            failures.update(dict.fromkeys(batch, reason))
        else:
            for name in values.keys() & {task.output, "words", "texts", "answer"}:
                given = values[name]
                if name not in found:
                    empty = _EMPTY.get(name, np.nan if given.dtype.kind == "f" else 0)
                    found[name] = np.full((len(texts), *given.shape[1:]), empty, dtype=given.dtype)
                given, found[name] = equally_long(given, found[name])
                found[name][list(batch)] = given
        if steps is not None:
            steps.count(batch)
    if not found:
        found[task.output] = np.full((len(texts), *like.shape[1:]), np.nan, dtype=like.dtype)
    if task.per_token and "words" not in found:
        found["words"] = np.zeros((*found[task.output].shape[:2], 2), dtype=np.int64)
        found["texts"] = np.full(len(texts), "", dtype=np.object_)
    same_width = found[task.output].shape[-1] == like.shape[-1]
    answers = _answers(found, task, labels if same_width else _numbered(labels, found[task.output].shape[-1]))
    answers = tuple(NO_ANSWER if index in failures else answer for index, answer in enumerate(answers))
    return ModelOutputs(found, answers, failures)


def _numbered(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """Names for as many classes as an output has that is not the one with the labels."""
    return tuple(labels[index] if index < len(labels) else f"(class {index})" for index in range(count))


def _misshapen(
    values: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], output: str, count: int
) -> str | None:
    if output not in values:
        return f"there is no output {output!r}, only {', '.join(values)}"
    shape = values[output].shape
    varies = 2 if len(shape) > 2 else 1  # tokens may be more or fewer
    if len(shape) < 2 or shape[0] != count or (output in found and shape[varies:] != found[output].shape[varies:]):
        return f"{output!r} has shape {list(shape)} for {count} messages"
    return None


def _answers(outputs: Mapping[str, NDArray[Any]], task: Task, labels: Sequence[str]) -> tuple[Answer, ...]:
    """A server names its answer itself; in process the labels do."""
    if "answer" in outputs:
        return tuple(outputs["answer"])
    try:
        return tuple(task.answers(outputs, labels))
    except IndexError:
        raise ParityError(
            f"a model gives {outputs[task.output].shape[-1]} logits, and {len(labels)} labels have a name",
            "write every label into id2label of its config.json",
        ) from None


@dataclass(frozen=True)
class OutputCache:
    """PyTorch's outputs in a folder, by the digest of all that decides them.

    A file is written whole or not at all; one that can't be read counts as none, and is written again.
    """

    folder: Path

    def key(self, target: Target, texts: Sequence[Sequence[str]], batches: Sequence[Sequence[Sequence[int]]]) -> str:
        """The digest of the model's files, the messages and their batches, the code, and the kind of processor."""
        folders = {Path(target.location), Path(target.tokenizer or target.location)}
        files: dict[str, JsonValue] = {
            path.name: digest_file(path)
            for folder in sorted(folders)
            for path in sorted(folder.iterdir())
            if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".model")
        }
        asked: list[JsonValue] = [[list(part) for part in texts], [[list(each) for each in part] for part in batches]]
        how: list[JsonValue] = [target.precision, target.device, target.task, instruction_set(), __version__]
        versions: list[JsonValue] = [version(name) for name in ("torch", "transformers", "tokenizers")]
        return digest_json([_CACHE_VERSION, files, asked, how, versions])

    def get(self, key: str) -> list[NDArray[Any]] | None:
        """The arrays that were put under a key; None where there are none that can be read."""
        try:
            with np.load(self.folder / f"{key}.npz", allow_pickle=False) as stored:
                return [stored[f"part{index}"] for index in range(len(stored.files))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, key: str, parts: Sequence[NDArray[Any]]) -> None:
        """Keep arrays under a key; a folder that can't be written keeps nothing, which costs time only."""
        stream = io.BytesIO()
        arrays: dict[str, Any] = {f"part{index}": part for index, part in enumerate(parts)}
        np.savez(stream, **arrays)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / f"{key}.npz", stream.getvalue())
            for old in sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
                old.unlink(missing_ok=True)
        except (OSError, ArtifactError):
            return
