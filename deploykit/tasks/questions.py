"""Extractive question answering: a question and its context in, the words that answer it out, or no answer.

The model is that of Devlin et al. 2019 (BERT, sections 4.2 and 4.3): from each token's last hidden state a logit for
the beginning and one for the end of the answer. "No answer" has the logit 0 at both ends in place of the first token's:
so the threshold that is found after the training is folded into the model as its bias.
"""

from __future__ import annotations

__all__ = ["Answered", "QuestionAnswering", "token_f1"]

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import Label, Quote
from deploykit.data.marks import AnswerInContext
from deploykit.errors import ModelError, UsageError
from deploykit.tasks.base import Answer, Loss, Outputs, Scores, Section, ServedOutput
from deploykit.tasks.checkpoint import load_checkpoint
from deploykit.tasks.entry import entry_files
from deploykit.tasks.spans import PAIRS_KEY, best_span, likeliest_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NONE = -100
_START, _END, _GOES_ON, _UNREAD = 1, 2, 4, 8
"""What a token's target is made of: whether the answer begins with it, whether it ends with it, whether it goes on with
the word of the token before; and of the first token, that the answer is not among those that are read."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answered:
    """The answer to a question: a part of the message, of no characters for "no answer". Equal are those in one place.

    Attributes:
        start: its first character in the message.
        end: the one behind its last.
        text: its characters.
        score: its probability, or that of "no answer".
        read: where the last word that the model read ends; what is behind was cut off.
    """

    start: int
    end: int
    text: str = field(default="", compare=False)
    score: float = field(default=1.0, compare=False)
    read: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.text!r} {self.start}-{self.end}" if self.end else "no answer"

    def as_json(self, text: str) -> dict[str, Any]:
        """`answer`: null, or `start`, `end` (code points of the message) and `text`; `score`; whether it was `cut`."""
        found = {"start": self.start, "end": self.end, "text": text[self.start : self.end]} if self.end else None
        return {"answer": found, "score": self.score, "cut": self._is_cut(text)}

    def line(self, text: str) -> str:
        """The answer with its probability, then the question."""
        said = repr(text[self.start : self.end]) if self.end else "no answer"
        cut = ", the end of the context was not read" if self._is_cut(text) else ""
        return f"{said} ({self.score:.1%}{cut})  {text.partition(chr(10))[0]}"

    def _is_cut(self, text: str) -> bool:
        context = text.find("\n") + 1
        return bool(context) and self.read is not None and any(map(str.isalnum, text[max(context, self.read) :]))


class QuestionAnswering:
    """Questions about a text that is given with them: a token-classification head of two outputs over an encoder."""

    name = "question-answering"
    metric = "F1"
    output = "logits"
    per_token = True
    several = False
    losses: tuple[Loss, ...] = ("cross_entropy",)
    entries = False
    served = (ServedOutput("quote", "BYTES", (1,)),)

    def sections(self, label_names: Sequence[str]) -> tuple[Section, ...]:
        """The beginning and the end, each chosen among the tokens."""
        return Section(0, 1, True, 0.5, over_tokens=True), Section(1, 2, True, 0.5, over_tokens=True)

    def label_form(self, columns: str | Sequence[str]) -> AnswerInContext:
        """One column, or two.

        Raises:
            UsageError: there are more.
        """
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        if len(names) not in (1, 2):
            raise UsageError(
                f"{self.name} takes one label column or two, not {len(names)}",
                "name the column of the marked answer, or those of its start and its end",
            )
        return AnswerInContext(names)

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The token-classification model of a checkpoint folder, whose messages are pairs; see `load_checkpoint`.

        Raises:
            ModelError: it was not fine-tuned for this task here.
        """
        model = load_checkpoint(folder, "AutoModelForTokenClassification", self.name, labels, **settings)
        if labels is None and not getattr(model.config, PAIRS_KEY, False):
            raise ModelError(
                f"{folder} does not say that its messages are a question and its context",
                "fine-tune it for this task: deploykit finetune --task question-answering",
            )
        setattr(model.config, PAIRS_KEY, True)
        return model

    def targets(
        self, labels: Sequence[Label], label_names: Sequence[str], words: Sequence[NDArray[np.int64]] = ()
    ) -> list[list[int]]:
        """For each token 1 where the answer begins and 2 where it ends, added up; -100 outside the context.

        Beside it, for the metrics alone, 4 where a token goes on with a word, and 8 in front of an answer that is cut
        off, wholly or in part: the training takes it for none.

        Raises:
            ModelError: the tokenizer has no special token in front.
        """
        if any(len(each) and each[0, 1] for each in words):
            raise ModelError(
                f"{self.name} needs a special token in front of every message, and this tokenizer puts none there",
                "use an encoder of the BERT kind",
            )
        return [_marked(_quote(label), own) for label, own in zip(labels, words, strict=True)]

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """F1 over the tokens of the context by their place, exact match, and how often there rightly is one.

        Of the spans that `best_span` looks at. An answer that is cut off earns nothing, whatever is said.
        """
        found, right = _places(predictions, targets), _true_places(targets)
        f1 = [_overlap(*pair) for pair in zip(found, right, strict=True)]
        same = [ours == wanted for ours, wanted in zip(found, right, strict=True)]
        told = [bool(ours) == bool(wanted) for ours, wanted in zip(found, right, strict=True)]
        return {
            self.metric: float(np.mean(f1)),
            "exact_match": float(np.mean(same)),
            "answerable_accuracy": float(np.mean(told)),
        }

    def shift(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """Half of the threshold with which most F1 is earned: it is taken off the beginning and the end."""
        right = _true_places(targets)
        likeliest = [_likeliest(*each) for each in zip(predictions, targets, strict=True)]
        scores = np.array([score for _, score in likeliest])
        gains = np.array(
            [_overlap(place, wanted) - (not wanted) for (place, _), wanted in zip(likeliest, right, strict=True)]
        )
        order = np.argsort(-scores, kind="stable")
        gained = np.r_[0.0, np.cumsum(gains[order])]  # with the so many likeliest answered
        best = int(gained.argmax())
        finite = scores[order][np.isfinite(scores[order])]
        best = min(best, len(finite))
        if not len(finite):
            return 0.0
        above = finite[best - 1] if best else finite[0] + 1.0
        below = finite[best] if best < len(finite) else finite[-1] - 1.0
        return float(above + below) / 4

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """The answer to each message; there is one at most, whatever `top_k`."""
        found = [best_span(*each) for each in zip(outputs["words"], outputs[self.output], strict=True)]
        return [
            Answered(each.start, each.end, str(text)[each.start : each.end], each.score, each.read)
            for each, text in zip(found, outputs["texts"], strict=True)
        ]

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The marked answers."""
        return [Answered(*_quote(label)) for label in labels]

    def scores(self, answers: Sequence[Answer], right: Sequence[Answer]) -> Scores:
        """The F1 of each answer's words (`token_f1`), and beside it whether all of them are the same.

        Those of SQuAD 2.0 (Rajpurkar, Jia and Liang 2018): where there is no answer both are 1 for none, else 0.
        """
        said = [
            (cast(Answered, ours).text, cast(Answered, wanted).text)
            for ours, wanted in zip(answers, right, strict=True)
        ]
        earned = np.array([token_f1(*each) for each in said], dtype=np.float64)
        same = np.array([_words(ours) == _words(wanted) for ours, wanted in said], dtype=np.float64)
        ones = np.ones_like(earned)
        return Scores(earned, ones, {"exact match": Scores(same, ones)})

    def by_class(self, answers: Sequence[Answer], right: Sequence[Answer]) -> tuple[list[str], list[str]]:
        """Whether there is an answer: `answer` and `no answer`; `another answer` for one that is not right."""
        asked, said = [], []
        for ours, wanted in zip(cast(Sequence[Answered], answers), cast(Sequence[Answered], right), strict=True):
            asked.append("answer" if wanted.end else "no answer")
            found = "answer" if token_f1(ours.text, wanted.text) else "another answer"
            said.append(found if ours.end else "no answer")
        return asked, said

    def entry(self) -> tuple[Path, ...]:
        """The text model's source files."""
        return entry_files("question_answering", Path(__file__).with_name("spans.py"))

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """That messages are pairs."""
        return {"pairs": True}

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The answers that the text model sent, a JSON object for each message.

        Raises:
            ValueError: that is not what it sends.
        """
        values = found["quote"]
        if values.dtype != np.object_ or values.ndim != 2 or values.shape[1] != 1:
            raise ValueError(f"quote {values.dtype} {values.shape}")
        try:
            return [
                Answered(each["start"], each["end"], each["text"], each["score"], each["read"])
                for each in map(json.loads, values[:, 0])
            ]
        except (TypeError, KeyError) as error:
            raise ValueError(f"an answer that can't be read ({error})") from error


def token_f1(ours: str, wanted: str) -> float:
    """The F1 of an answer's words, each as often as it is there, without case, punctuation and articles.

    That of SQuAD (Rajpurkar et al. 2016, section 6.1); 1 for two empty ones, 0 where only one of them is. Its script
    takes an answer that is an article or a mark ("A") for none; here it counts.
    """
    found, right = Counter(_words(ours)), Counter(_words(wanted))
    if not found or not right:
        return float(found == right)
    return 2 * (found & right).total() / (found.total() + right.total())


def _words(answer: str) -> list[str]:
    """The words that are counted; of an answer that has no others, such as "A", its articles and marks."""
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split() or answer.lower().split()


def _quote(label: Label) -> Quote:
    if not isinstance(label, Quote):
        raise UsageError(f"the label {label!r} is no answer in a context", "name the column of the marked answer")
    return label


def _marked(quote: Quote, words: NDArray[np.int64]) -> list[int]:
    """The target of each token of one message."""
    found = [0 if place == 0 or end else _NONE for place, end in enumerate(words[:, 1].tolist())]
    tokens = np.flatnonzero(words[:, 1])
    for place in tokens[1:][(words[tokens[1:]] == words[tokens[:-1]]).all(axis=1)]:
        found[place] += _GOES_ON
    touched = np.flatnonzero((words[:, 0] < quote.end) & (words[:, 1] > quote.start))
    if len(touched) and words[touched[-1], 1] >= quote.end:
        found[touched[0]] += _START
        found[touched[-1]] += _END
    elif quote.end:
        found[0] += _UNREAD
    return found


def _likeliest(logits: NDArray[Any], targets: NDArray[Any]) -> tuple[range, float]:
    """The tokens of the likeliest answer to a message, and by how much it is likelier than none."""
    inside = np.flatnonzero(targets[1:] != _NONE) + 1
    words = np.zeros((len(targets), 2), dtype=np.int64)
    words[inside] = np.cumsum((targets[inside] & _GOES_ON) == 0)[:, np.newaxis]
    first, last, score = likeliest_run(words, logits)
    return range(first, last + 1), score


def _places(predictions: NDArray[Any], targets: NDArray[Any]) -> list[range]:
    likeliest = [_likeliest(*each) for each in zip(predictions, targets, strict=True)]
    return [place if score > 0 else range(0) for place, score in likeliest]


def _true_places(targets: NDArray[Any]) -> list[range]:
    """The tokens of the right answers; for one that is cut off a place behind all of them, which nobody chooses."""
    real, length = np.where(targets == _NONE, 0, targets), targets.shape[1]
    real = np.pad(real, ((0, 0), (0, 1)))
    real[(real[:, 0] & _UNREAD) > 0, length] = _START + _END
    starts, ends = ((real & bit) > 0 for bit in (_START, _END))
    return [
        range(int(start.argmax()), int(end.argmax()) + 1) if start.any() else range(0)
        for start, end in zip(starts, ends, strict=True)
    ]


def _overlap(ours: range, wanted: range) -> float:
    """The F1 of the tokens of two places."""
    if not ours or not wanted:
        return float(bool(ours) == bool(wanted))
    both = max(0, min(ours.stop, wanted.stop) - max(ours.start, wanted.start))
    return 2 * both / (len(ours) + len(wanted))
