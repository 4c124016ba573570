"""What a task is: everything that differs between intents, entities, retrieval and the like, in one object."""

from __future__ import annotations

__all__ = ["Answer", "Loss", "Message", "Outputs", "Scores", "Section", "ServedOutput", "Task"]

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from deploykit.data.labels import Label, LabelForm

Message = str
"""A text, or what stands for another kind of message (`Medium`): hashable, equal where the messages are."""
Loss = Literal["cross_entropy", "contrastive", "two_towers"]
"""What a training minimizes: the cost of wrong labels; of texts of one label that are far from each other; or of
messages that are far from the text of their entry."""
Outputs: TypeAlias = "Mapping[str, NDArray[Any]]"
"""Named arrays, the first axis the batch: for a classifier `logits`, float32 [batch, labels]. What has a row for each
token has the longest message's tokens as its second axis, and zeros behind the end of the shorter ones."""


class Answer(Protocol):
    """What a client is told about one message. Two are equal that say the same, whatever their scores; hashable."""

    def __str__(self) -> str:
        """The answer in a report."""
        ...

    def __hash__(self) -> int: ...

    def as_json(self, text: str) -> dict[str, Any]:
        """The answer to that message in JSON, under stable names."""
        ...

    def line(self, text: str) -> str:
        """The answer to that message on one line."""
        ...


@dataclass(frozen=True)
class Scores:
    """How good the answers to some messages are.

    Attributes:
        earned: float64 [messages].
        possible: float64 [messages]: the metric is the sum of what was earned over the sum of what was possible. It is
            1 for each message where the metric is a mean, and may be 0 for one that does not count.
        beside: further metrics by name. Each is a claim of its own, judged like this one: all have to hold.
    """

    earned: NDArray[np.float64]
    possible: NDArray[np.float64]
    beside: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The metric, a fraction; 1 where nothing was asked for and nothing given."""
        total = float(self.possible.sum())
        return float(self.earned.sum()) / total if total else 1.0

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which answers are wholly right: bool [messages]."""
        right: NDArray[np.bool_] = self.earned == self.possible
        return right

    @property
    def is_share(self) -> bool:
        """Whether the metric is the share of right answers: each is right or wrong, and counts as much."""
        return bool((self.possible == 1).all() and ((self.earned == 0) | (self.earned == 1)).all())

    def by_metric(self, metric: str) -> dict[str, Scores]:
        """This one under its name, and those beside it."""
        return {metric: self, **self.beside}

    def without(self, unanswered: Sequence[int]) -> Scores:
        """The scores where these messages have no answer: they earn nothing, of 1 at least."""
        earned, possible = self.earned.copy(), self.possible.copy()
        earned[unanswered] = 0.0
        possible[unanswered] = possible[unanswered].clip(min=1.0)
        return Scores(earned, possible, {name: each.without(unanswered) for name, each in self.beside.items()})


@dataclass(frozen=True)
class Section:
    """Columns of a task's output, next to each other, of which one is right.

    Attributes:
        first: the first of them.
        past: the one behind the last.
        by_token: whether one is right for each token; else for the message, and the row of its first token tells it.
        weight: of its cost in the training.
        over_tokens: whether it is one column, and what is right is one of the tokens, or none of them; the logit of
            none is 0 and stands in the place of the first token's.
    """

    first: int
    past: int
    by_token: bool
    weight: float = 1.0
    over_tokens: bool = False

    def rows(self, values: Any) -> Any:
        """What of an array or tensor [messages, tokens, ...] it is about: all, or the first token's [messages, ...]."""
        return values if self.by_token else values[:, 0]

    def columns(self, values: Any) -> Any:
        """Its own columns of those rows; [messages, tokens] where it is one column over tokens."""
        if self.over_tokens:
            return values[..., self.first]
        return self.rows(values)[..., self.first : self.past]


@dataclass(frozen=True)
class ServedOutput:
    """An output of the text model, beside the task's tensor.

    Attributes:
        name: its name.
        dtype: its data type, as Triton's clients name it.
        dims: its shape for one message; -1 is any length.
    """

    name: str
    dtype: Literal["BYTES", "FP32", "INT64"]
    dims: tuple[int, ...]


class Task(Protocol):
    """One task. Stages know a task only through this protocol; `deploykit.tasks` entry points add more."""

    @property
    def name(self) -> str:
        """The name that recipes use."""
        ...

    @property
    def metric(self) -> str:
        """The metric that judges it."""
        ...

    @property
    def output(self) -> str:
        """The ONNX output that carries the answer."""
        ...

    @property
    def per_token(self) -> bool:
        """Whether that output has a row for each token.

        Runners then give `words` beside it, int64 [batch, tokens, 2]: the part of the text that a token decides on,
        0 and 0 where it decides on none (`deploykit.tasks.spans`); and `texts`, the messages, objects [batch].
        """
        ...

    @property
    def several(self) -> bool:
        """Whether a message may have several labels or none: a sigmoid for each logit, and not a softmax over all."""
        ...

    def sections(self, label_names: Sequence[str]) -> tuple[Section, ...]:
        """The columns that are decided on apart, each part by a softmax of its own; none where all are one part."""
        ...

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses that it can be trained by, its own first."""
        ...

    @property
    def entries(self) -> bool:
        """Whether its labels stand for texts that a message is compared with, and that can be exchanged (`index`)."""
        ...

    @property
    def served(self) -> tuple[ServedOutput, ...]:
        """What the text model answers, beside that output."""
        ...

    def label_form(self, columns: str | Sequence[str]) -> LabelForm:
        """How its labels are written down in these columns of the data.

        Raises:
            UsageError: they are too many, or too few.
        """
        ...

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The PyTorch model of a checkpoint folder; with `labels`, a head for them (new where it does not fit).

        `settings` go to `from_pretrained`; `pooling="mean"` asks for the model that the contrastive loss trains.
        """
        ...

    def targets(
        self, labels: Sequence[Label], label_names: Sequence[str], words: Sequence[NDArray[np.int64]] = ()
    ) -> list[Any]:
        """What the model is trained on, by message: a whole number, or a list with one for each token.

        Args:
            labels: of the messages.
            label_names: what the model's outputs are called.
            words: of each message, [tokens, 2] (`per_token`).

        Raises:
            DataError: a label that the model does not know.
        """
        ...

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """Every metric of a training by name, `metric` among them; fractions.

        Args:
            predictions: the output for all messages.
            targets: as they were trained on, -100 where there is none.
            label_names: what the model's outputs are called.
        """
        ...

    def shift(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """What is taken off all logits after the training, through the head's bias; 0 where nothing is.

        Args:
            predictions: the output for the validation split.
            targets: as they were trained on.
        """
        ...

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """What a client is told for each message; where `top_k` is not given, as many as `scores` looks at."""
        ...

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The answers that these labels ask for.

        Raises:
            DataError: a label that the model does not know.
        """
        ...

    def scores(self, answers: Sequence[Answer], right: Sequence[Answer]) -> Scores:
        """How good answers are; the metric is their `value`."""
        ...

    def by_class(
        self, answers: Sequence[Answer], right: Sequence[Answer]
    ) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
        """What was asked for, one class each, and what was answered to it: for recall by class."""
        ...

    def entry(self) -> tuple[Path, ...]:
        """The sources of the Python model that answers text in Triton, the model itself first.

        They import nothing of deploykit: numpy, Triton's own module, and each other by name.
        """
        ...

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """What that model must know of an ONNX folder beside what every text model does; plain JSON."""
        ...

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The answers in what the text model sent.

        Raises:
            ValueError: that is not what it sends.
        """
        ...
