"""Multi-label classification: one message in, every intent in it out, or none of them."""

from __future__ import annotations

__all__ = ["Intents", "MultiLabelClassification"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import Label, SeveralClasses, classes_of
from deploykit.errors import UsageError
from deploykit.tasks.base import Answer, Loss, Outputs, Scores, Section, ServedOutput
from deploykit.tasks.checkpoint import check_known, load_checkpoint
from deploykit.tasks.entry import entry_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NONE_OF_THESE = "(none of these)"
"""What a message with no label counts as."""
_IN_SCOPE_RECALL = 0.95
"""The share of the messages with a label that keep one, whatever the threshold gains elsewhere."""


@dataclass(frozen=True)
class Intents:
    """The labels of a message in alphabetical order, and the probability of each; without any it is out of scope."""

    labels: tuple[str, ...]
    scores: tuple[float, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return ", ".join(self.labels) or NONE_OF_THESE

    def as_json(self, text: str) -> dict[str, Any]:
        """`labels`: a list of `label` and `score`, the likeliest first; empty where the message is out of scope."""
        return {"labels": [{"label": label, "score": score} for label, score in self._ranked()]}

    def line(self, text: str) -> str:
        """The labels with their probabilities, then the message."""
        said = ", ".join(f"{label} ({score:.1%})" for label, score in self._ranked())
        return f"{said or NONE_OF_THESE}  {text}"

    def _ranked(self) -> list[tuple[str, float]]:
        return sorted(zip(self.labels, self.scores, strict=True), key=lambda each: -each[1])


class MultiLabelClassification:
    """Several intents in one message, and messages for nobody: a sigmoid for each label.

    A label is given where its logit is above 0. After the training one threshold for all labels is found on the
    validation split and folded into the head's bias, so that 0 decides best (`shift`).
    """

    name = "multi-label-classification"
    metric = "micro F1"
    output = "logits"
    per_token = False
    several = True
    losses: tuple[Loss, ...] = ("cross_entropy",)
    entries = False
    served = (ServedOutput("labels", "BYTES", (1,)),)

    def sections(self, label_names: Sequence[str]) -> tuple[Section, ...]:
        """None: all columns are one part."""
        return ()

    def label_form(self, columns: str | Sequence[str]) -> SeveralClasses:
        """One column with all labels of a message.

        Raises:
            UsageError: there are several columns.
        """
        if not isinstance(columns, str):
            raise UsageError(
                f"{self.name} takes one label column, not {len(columns)}",
                'write all labels of a message into one: ["refund", "address"], or refund; address',
            )
        return SeveralClasses(columns)

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The sequence-classification model of a checkpoint folder; see `load_checkpoint`."""
        if labels is not None:
            settings["problem_type"] = "multi_label_classification"
        return load_checkpoint(folder, "AutoModelForSequenceClassification", self.name, labels, **settings)

    def targets(
        self, labels: Sequence[Label], label_names: Sequence[str], words: Sequence[NDArray[np.int64]] = ()
    ) -> list[tuple[float, ...]]:
        """1 for each label that a message has, else 0.

        Raises:
            DataError: a label that the model does not know.
        """
        _check_known(labels, label_names)
        return [tuple(float(name in classes_of(label)) for name in label_names) for label in labels]

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """Micro F1 (no label counts as one), macro F1, and what of the messages with and without labels is told right.

        `in_scope_recall` is the share of the messages with labels that get one, `out_of_scope_recall` the share of
        those without that get none; 1 where there are no such messages.
        """
        from sklearn.metrics import f1_score

        given, wanted = predictions > 0, targets > 0.5
        some = wanted.any(axis=1)
        return {
            self.metric: _f1(given, wanted),
            "macro_f1": float(f1_score(wanted, given, average="macro", zero_division=0.0)),
            "in_scope_recall": float(given[some].any(axis=1).mean()) if some.any() else 1.0,
            "out_of_scope_recall": float((~given[~some].any(axis=1)).mean()) if not some.all() else 1.0,
        }

    def shift(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """What to take off all logits, so that 0 decides: the threshold of the best micro F1.

        Of thresholds that leave 95 % of the messages with labels at least one; so it is calibrated for messages that
        are out of scope as far as the split has any.

        Args:
            predictions: logits of the validation split, [messages, labels].
            targets: 0 or 1, likewise.
        """
        wanted = targets > 0.5
        some = wanted.any(axis=1)
        highest = float(np.quantile(predictions[some].max(axis=1), 1 - _IN_SCOPE_RECALL)) if some.any() else 0.0
        tried = np.unique(np.quantile(predictions, np.linspace(0.5, 1.0, 200)))
        middles = (tried[1:] + tried[:-1]) / 2 if len(tried) > 1 else tried
        allowed = [0.0, *(float(each) for each in middles if each <= highest)] if highest >= 0 else [highest]
        return max(allowed, key=lambda threshold: (_f1(predictions > threshold, wanted), -abs(threshold)))

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """The labels above 0 of each message, as many as there are, whatever `top_k`."""
        logits = outputs[self.output].astype(np.float64)
        probabilities = 1 / (1 + np.exp(-logits))
        answers: list[Answer] = []
        for row, scores in zip(logits, probabilities, strict=True):
            found = sorted((label_names[index], float(scores[index])) for index in np.flatnonzero(row > 0).tolist())
            answers.append(Intents(tuple(label for label, _ in found), tuple(score for _, score in found)))
        return answers

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The labels of each message.

        Raises:
            DataError: a label that the model does not know.
        """
        _check_known(labels, label_names)
        found = [tuple(sorted(set(classes_of(label)))) for label in labels]
        return [Intents(names, (1.0,) * len(names)) for names in found]

    def scores(self, answers: Sequence[Answer], right: Sequence[Answer]) -> Scores:
        """Twice the labels that are right, of those given and those wanted: together the micro F1."""
        pairs = [(_named(ours), _named(wanted)) for ours, wanted in zip(answers, right, strict=True)]
        earned = np.array([2.0 * len(ours & wanted) for ours, wanted in pairs])
        return Scores(earned, np.array([float(len(ours) + len(wanted)) for ours, wanted in pairs]))

    def by_class(self, answers: Sequence[Answer], right: Sequence[Answer]) -> tuple[list[str], list[str]]:
        """Each label that is right, and itself where it was given, "" else."""
        asked, said = [], []
        for ours, wanted in zip(answers, right, strict=True):
            given = _named(ours)
            for name in sorted(_named(wanted)):
                asked.append(name)
                said.append(name if name in given else "")
        return asked, said

    def entry(self) -> tuple[Path, ...]:
        """The text model's source files."""
        return entry_files("multi_label_classification")

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The labels that the text model sent, a JSON list for each message.

        Raises:
            ValueError: that is not what it sends.
        """
        values = found["labels"]
        if values.dtype != np.object_ or values.ndim != 2 or values.shape[1] != 1:
            raise ValueError(f"labels {values.dtype} {values.shape}")
        answers: list[Answer] = []
        try:
            for value in values[:, 0]:
                pairs = sorted((str(each["label"]), float(each["score"])) for each in json.loads(value))
                answers.append(Intents(tuple(label for label, _ in pairs), tuple(score for _, score in pairs)))
        except (TypeError, KeyError) as error:
            raise ValueError(f"labels that can't be read ({error})") from error
        return answers


def _check_known(labels: Sequence[Label], label_names: Sequence[str]) -> None:
    check_known((name for label in labels for name in classes_of(label)), label_names)


def _named(answer: Answer) -> set[str]:
    return set(cast(Intents, answer).labels) or {NONE_OF_THESE}


def _f1(given: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    """Micro F1, a message without labels counting as one that has the label "none"."""
    given, wanted = (np.concatenate([each, ~each.any(axis=1, keepdims=True)], axis=1) for each in (given, wanted))
    return float(2 * (given & wanted).sum() / (given.sum() + wanted.sum()))
