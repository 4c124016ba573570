"""Token classification: one message in, the entities in it out, as spans of its text."""

from __future__ import annotations

__all__ = ["Entities", "TokenClassification"]

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import Label, Span, classes_of
from deploykit.data.marks import MarkedSpans
from deploykit.errors import UsageError
from deploykit.tasks.base import Answer, Loss, Outputs, Scores, Section, ServedOutput
from deploykit.tasks.checkpoint import check_known, load_checkpoint
from deploykit.tasks.entry import entry_files
from deploykit.tasks.spans import Found, spans_of_labels, tag_parts, tagged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NONE = -100
"""What PyTorch's cross entropy leaves out: special tokens, and those of a word behind its first."""


@dataclass(frozen=True)
class Entities:
    """The entities of a message in their order, and the mean probability of each one's words."""

    spans: tuple[Span, ...]
    scores: tuple[float, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return ", ".join(f"{span.label} {span.start}-{span.end}" for span in self.spans) or "none"

    def as_json(self, text: str) -> dict[str, Any]:
        """`entities`: a list of `start`, `end` (code points), `label`, `text` and `score`."""
        pairs = zip(self.spans, self.scores, strict=True)
        return {
            "entities": [
                {"start": s.start, "end": s.end, "label": s.label, "text": text[s.start : s.end], "score": score}
                for s, score in pairs
            ]
        }

    def line(self, text: str) -> str:
        """Each entity's text, class and probability, then the message."""
        found = zip(self.spans, self.scores, strict=True)
        said = ", ".join(f"{text[s.start : s.end]!r} {s.label} ({score:.1%})" for s, score in found)
        return f"{said or 'no entity'}  {text}"


class TokenClassification:
    """Names, order numbers, dates in a message: a token-classification head over an encoder, read word by word.

    A word's first token decides on it. Labels are BIO tags; models with BIOES tags or plain classes are understood.
    """

    name = "token-classification"
    metric = "entity F1"
    output = "logits"
    per_token = True
    several = False
    losses: tuple[Loss, ...] = ("cross_entropy",)
    entries = False
    served = (ServedOutput("entities", "BYTES", (1,)),)

    def sections(self, label_names: Sequence[str]) -> tuple[Section, ...]:
        """None: all columns are one part."""
        return ()

    def label_form(self, columns: str | Sequence[str]) -> MarkedSpans:
        """One column with spans or tags, or those of a span's label, start and end.

        Raises:
            UsageError: they are neither one nor three.
        """
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        if len(names) not in (1, 3):
            raise UsageError(
                f"{self.name} takes one label column or three, not {len(names)}",
                "name the column with the spans, or those of a span's label, start and end",
            )
        return MarkedSpans(names)

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The token-classification model of a checkpoint folder; see `load_checkpoint`."""
        return load_checkpoint(folder, "AutoModelForTokenClassification", self.name, labels, **settings)

    def targets(
        self, labels: Sequence[Label], label_names: Sequence[str], words: Sequence[NDArray[np.int64]] = ()
    ) -> list[list[int]]:
        """The label of each token, -100 where it decides on no word; a word that a span touches belongs to it.

        Raises:
            DataError: an entity's class that the model does not know.
        """
        index = {name: position for position, name in enumerate(label_names)}
        _check_known(labels, label_names)
        return [_tags(_spans(label), decided, index) for label, decided in zip(labels, words, strict=True)]

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """Micro F1, precision and recall of whole spans, as fractions: those that the tags make, word by word."""
        tags = [tag_parts(name) for name in label_names]
        found, right = list[Answer](), list[Answer]()
        for logits, wanted in zip(predictions, targets, strict=True):
            deciding = np.flatnonzero(wanted != _NONE)
            words = np.stack([deciding, deciding + 1], axis=1)
            ones = np.ones(len(deciding))
            found.append(_answer(spans_of_labels(words, logits[deciding].argmax(axis=-1), ones, tags)))
            right.append(_answer(spans_of_labels(words, wanted[deciding], ones, tags)))
        both, ours, wanted_count = (sum(counts) for counts in zip(*_counts(found, right), strict=True))
        return {
            self.metric: 2 * both / (ours + wanted_count) if ours + wanted_count else 1.0,
            "precision": both / ours if ours else 1.0,
            "recall": both / wanted_count if wanted_count else 1.0,
        }

    def shift(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """0: the likeliest tag is the answer."""
        return 0.0

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """The entities of each message; a message has one reading only, whatever `top_k`."""
        logits = outputs[self.output]
        tags = [tag_parts(label_names[number]) for number in range(logits.shape[-1])]
        return [_answer(tagged(words, rows, tags)) for words, rows in zip(outputs["words"], logits, strict=True)]

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The marked spans.

        Raises:
            DataError: an entity's class that the model does not know.
        """
        _check_known(labels, label_names)
        return [Entities(spans, (1.0,) * len(spans)) for spans in map(_spans, labels)]

    def scores(self, answers: Sequence[Answer], right: Sequence[Answer]) -> Scores:
        """Twice the spans that are right in text and class, of those found and those marked: together the micro F1."""
        counts = np.array(_counts(answers, right), dtype=np.float64).reshape(-1, 3)
        return Scores(2 * counts[:, 0], counts[:, 1] + counts[:, 2])

    def by_class(self, answers: Sequence[Answer], right: Sequence[Answer]) -> tuple[list[str], list[str]]:
        """The class of each marked span, and that which was answered for exactly this span, "" for none."""
        asked, said = [], []
        for ours, wanted in zip(answers, right, strict=True):
            found = {(span.start, span.end): span.label for span in cast(Entities, ours).spans}
            for span in cast(Entities, wanted).spans:
                asked.append(span.label)
                said.append(found.get((span.start, span.end), ""))
        return asked, said

    def entry(self) -> tuple[Path, ...]:
        """The text model's source files."""
        return entry_files("token_classification", Path(__file__).with_name("spans.py"))

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The entities that the text model sent, a JSON list for each message.

        Raises:
            ValueError: that is not what it sends.
        """
        values = found["entities"]
        if values.dtype != np.object_ or values.ndim != 2 or values.shape[1] != 1:
            raise ValueError(f"entities {values.dtype} {values.shape}")
        try:
            return [
                _answer([Found(each["start"], each["end"], each["label"], each["score"]) for each in json.loads(value)])
                for value in values[:, 0]
            ]
        except (TypeError, KeyError) as error:
            raise ValueError(f"entities that can't be read ({error})") from error


def _spans(label: Label) -> tuple[Span, ...]:
    if isinstance(label, str):
        raise UsageError(f"the label {label!r} is a class, and spans are asked for", "name the column of the spans")
    return tuple(each for each in label if isinstance(each, Span))


def _check_known(labels: Sequence[Label], label_names: Sequence[str]) -> None:
    known = {tag_parts(name)[1] for name in label_names}
    check_known((name for label in labels for name in classes_of(label)), known)


def _answer(found: Sequence[Found]) -> Entities:
    return Entities(tuple(Span(*each[:3]) for each in found), tuple(each.score for each in found))


def _counts(answers: Sequence[Answer], right: Sequence[Answer]) -> list[tuple[int, int, int]]:
    """Of each message: spans that are right, found, marked."""
    counts = []
    for ours, wanted in zip(answers, right, strict=True):
        found, marked = Counter(cast(Entities, ours).spans), Counter(cast(Entities, wanted).spans)
        counts.append(((found & marked).total(), found.total(), marked.total()))
    return counts


def _tags(spans: Sequence[Span], words: NDArray[np.int64], index: Mapping[str, int]) -> list[int]:
    """The tag of each token of one message."""
    found = [_NONE] * len(words)
    deciding = np.flatnonzero(words[:, 1]).tolist()
    owners = [
        next((n for n, span in enumerate(spans) if words[token, 0] < span.end and words[token, 1] > span.start), None)
        for token in deciding
    ]
    for place, (token, owner) in enumerate(zip(deciding, owners, strict=True)):
        if owner is None:
            found[token] = index["O"]
            continue
        first = place == 0 or owners[place - 1] != owner
        last = place + 1 == len(owners) or owners[place + 1] != owner
        found[token] = _tag(spans[owner].label, first, last, index)
    return found


def _tag(kind: str, first: bool, last: bool, index: Mapping[str, int]) -> int:
    """The label of a word of a span, in whichever scheme the model has."""
    places = ("S", "U") * (first and last) + ("B",) * first + ("E", "L") * last + ("I",)
    return next(index[name] for name in (*(f"{place}-{kind}" for place in places), kind) if name in index)
