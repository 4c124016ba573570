"""Text classification: one message in, one label out."""

from __future__ import annotations

__all__ = ["Classified", "TextClassification"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.data.labels import Label, OneClass
from deploykit.errors import UsageError
from deploykit.tasks.base import Answer, Loss, Outputs, Scores, Section, ServedOutput
from deploykit.tasks.checkpoint import check_known, load_checkpoint
from deploykit.tasks.entry import entry_files
from deploykit.tasks.pooling import is_sentence_model
from deploykit.tasks.sentence import SentenceAuto

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Classified:
    """The best label of a message, its probability, and the next best ones, best first."""

    label: str
    score: float = field(default=1.0, compare=False)
    alternatives: tuple[tuple[str, float], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.label

    def as_json(self, text: str) -> dict[str, Any]:
        """`label`, `score`, and `alternatives` of both."""
        others = [{"label": label, "score": score} for label, score in self.alternatives]
        return {"label": self.label, "score": self.score, "alternatives": others}

    def line(self, text: str) -> str:
        """The label with its probability, then the message."""
        others = "".join(f", {label} {score:.1%}" for label, score in self.alternatives)
        return f"{self.label} ({self.score:.1%}{others})  {text}"


class TextClassification:
    """Intents, topics, sentiment: a sequence-classification head over an encoder."""

    name = "text-classification"
    metric = "accuracy"
    output = "logits"
    per_token = False
    several = False
    losses: tuple[Loss, ...] = ("cross_entropy", "contrastive")
    entries = False
    served: tuple[ServedOutput, ...] = (ServedOutput("label", "BYTES", (-1,)), ServedOutput("score", "FP32", (-1,)))

    def sections(self, label_names: Sequence[str]) -> tuple[Section, ...]:
        """None: all columns are one part."""
        return ()

    def label_form(self, columns: str | Sequence[str]) -> OneClass:
        """One column.

        Raises:
            UsageError: there are several.
        """
        if not isinstance(columns, str):
            raise UsageError(f"{self.name} takes one label column, not {len(columns)}", "name the column of the class")
        return OneClass(columns)

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The sequence-classification model of a checkpoint folder, or its sentence model; see `load_checkpoint`."""
        if settings.pop("pooling", None) == "mean" or is_sentence_model(folder):
            return load_checkpoint(folder, SentenceAuto, self.name, labels, **settings)
        if labels is not None:
            settings["problem_type"] = "single_label_classification"
        return load_checkpoint(folder, "AutoModelForSequenceClassification", self.name, labels, **settings)

    def targets(
        self, labels: Sequence[Label], label_names: Sequence[str], words: Sequence[NDArray[np.int64]] = ()
    ) -> list[int]:
        """Label indices.

        Raises:
            DataError: a label that the model does not know.
        """
        index = {name: position for position, name in enumerate(label_names)}
        names = [str(label) for label in labels]
        check_known(names, index)
        return [index[name] for name in names]

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """Accuracy and macro F1 (over the labels that occur in either), as fractions."""
        from sklearn.metrics import f1_score

        predicted = predictions.argmax(axis=-1)
        return {
            "accuracy": float((predicted == targets).mean()),
            "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0.0)),
        }

    def shift(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """0: the likeliest label is the answer."""
        return 0.0

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """The `top_k` labels of each item with their probabilities, best first; ties go to the lower index."""
        import numpy as np

        logits = outputs[self.output].astype(np.float64)
        if top_k == 1:  # on the way of every message that is timed, where few calls into numpy count
            best = logits.argmax(axis=-1).tolist()
            return [
                Classified(label_names[index], 1 / float(np.exp(row - row[index]).sum()))
                for index, row in zip(best, logits, strict=True)
            ]
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=-1, keepdims=True)
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
        answers: list[Answer] = []
        for row, places in enumerate(order):
            ranked = [(label_names[index], float(probabilities[row, index])) for index in places]
            answers.append(Classified(*ranked[0], alternatives=tuple(ranked[1:])))
        return answers

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The labels.

        Raises:
            DataError: a label that the model does not know.
        """
        check_known(map(str, labels), label_names)
        return [Classified(str(label)) for label in labels]

    def scores(self, answers: Sequence[Answer], right: Sequence[Answer]) -> Scores:
        """1 for each right label: their mean is the accuracy."""
        import numpy as np

        earned = np.array([ours == wanted for ours, wanted in zip(answers, right, strict=True)], dtype=np.float64)
        return Scores(earned, np.ones_like(earned))

    def by_class(self, answers: Sequence[Answer], right: Sequence[Answer]) -> tuple[Sequence[Answer], Sequence[Answer]]:
        """Each message's own label, and the one that it got."""
        return right, answers

    def entry(self) -> tuple[Path, ...]:
        """The text model's source files."""
        return entry_files("text_classification")

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The labels and scores that the text model sent, each [messages, k].

        Raises:
            ValueError: that is not what it sends.
        """
        labels, scores = found["label"], found["score"]
        readable = labels.dtype == object and scores.dtype.kind == "f"
        if not readable or labels.shape != scores.shape or labels.ndim != 2 or labels.shape[1] == 0:
            raise ValueError(f"labels {labels.dtype} {labels.shape}, scores {scores.dtype} {scores.shape}")
        answers: list[Answer] = []
        for names, values in zip(labels, scores, strict=True):
            ranked = [
                (name.decode("utf-8", errors="replace"), float(score))
                for name, score in zip(names, values, strict=True)
            ]
            answers.append(Classified(*ranked[0], alternatives=tuple(ranked[1:])))
        return answers
