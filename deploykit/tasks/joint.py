"""Intents and entities jointly: one message in, its intent and the entities in it out, by one pass of one encoder.

The model is that of Chen, Zhuo and Wang 2019 (JointBERT, equations 1 and 2): the last hidden state of the first token
decides on the intent, that of each other one on its tag. Both heads are rows of one matrix, so it is a model for token
classification of transformers that has the tags in its first columns and the intents behind them.
"""

from __future__ import annotations

__all__ = ["IntentAndEntities", "Understood"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import INTENT, Label, MarkedMessage
from deploykit.data.marks import ClassAndSpans
from deploykit.errors import ModelError, UsageError
from deploykit.tasks.base import Answer, Loss, Outputs, Scores, Section
from deploykit.tasks.entry import entry_files
from deploykit.tasks.text_classification import Classified, TextClassification
from deploykit.tasks.token_classification import Entities, TokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NONE = -100
_TAGS = 0.5
"""What the tags' cost weighs beside the intents'. It is a mean over the tokens, most of which ask for the same, "no
entity", and their gradients set the scale of Adam's steps at first: weighed more, the intents come slowly and end
lower; weighed much less, entities are missed. Which is best differs between data sets."""
_INTENTS, _ENTITIES = TextClassification(), TokenClassification()


@dataclass(frozen=True)
class Understood:
    """What a message wants, and what it names."""

    intent: Classified
    entities: Entities

    def __str__(self) -> str:
        return f"{self.intent}; {self.entities}"

    def as_json(self, text: str) -> dict[str, Any]:
        """`label`, `score` and `alternatives` of the intent, and `entities`."""
        return self.intent.as_json(text) | self.entities.as_json(text)

    def line(self, text: str) -> str:
        """The intent with its probability, the entities with theirs, then the message."""
        return f"{self.intent.line('').rstrip()}; {self.entities.line(text)}"


class IntentAndEntities:
    """The intent of a message and the spans in it, by one encoder in one call: the two single tasks side by side.

    Two metrics judge it, the accuracy of the intents and the F1 of the entities; each has to be as good.
    """

    name = "intent-and-entities"
    metric = "intent accuracy"
    output = "logits"
    per_token = True
    several = False
    losses: tuple[Loss, ...] = ("cross_entropy",)
    entries = False
    served = (*_INTENTS.served, *_ENTITIES.served)

    def sections(self, label_names: Sequence[str]) -> tuple[Section, ...]:
        """The tags, one for each token, and the intents, one for the message."""
        tags, intents = _split(label_names)
        return Section(0, len(tags), True, _TAGS), Section(len(tags), len(tags) + len(intents), False)

    def label_form(self, columns: str | Sequence[str]) -> ClassAndSpans:
        """The column of the intent, and the one or three of the spans.

        Raises:
            UsageError: they are neither two nor four.
        """
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        if len(names) not in (2, 4):
            raise UsageError(
                f"{self.name} takes two label columns or four, not {len(names)}",
                "name that of the intent and that of the spans; or that of the intent, a span's label, start and end",
            )
        return ClassAndSpans(names)

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The token-classification model of a checkpoint folder; see `load_checkpoint`.

        Raises:
            ModelError: its labels are not those of this task.
        """
        model = _ENTITIES.load_model(folder, labels, **settings)
        names = model.config.id2label
        _split([names[number] for number in range(len(names))])
        return model

    def targets(
        self, labels: Sequence[Label], label_names: Sequence[str], words: Sequence[NDArray[np.int64]] = ()
    ) -> list[list[int]]:
        """The column of each token's tag, that of the intent for the first one; -100 where it decides on nothing.

        Raises:
            DataError: an intent, or an entity's class, that the model does not know.
            ModelError: the tokenizer has no special token in front, which would decide on the intent.
        """
        tags, intents = _split(label_names)
        if any(len(each) and each[0, 1] for each in words):
            raise ModelError(
                f"{self.name} needs a special token in front of every message, and this tokenizer puts none there",
                "use an encoder of the BERT kind",
            )
        marked = _marked(labels)
        chosen = _INTENTS.targets([each.intent for each in marked], intents)
        found = _ENTITIES.targets([each.spans for each in marked], tags, words)
        return [[len(tags) + intent, *own[1:]] for intent, own in zip(chosen, found, strict=True)]

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """Those of the single tasks: accuracy and macro F1 of intents, F1, precision and recall of entities."""
        tags, intents = self.sections(label_names)
        names = _split(label_names)
        own = np.where(targets < tags.past, targets, _NONE)
        accuracy = _INTENTS.metrics(intents.columns(predictions), targets[:, 0] - intents.first, names[1])
        found = _ENTITIES.metrics(tags.columns(predictions), own, names[0])
        return {
            self.metric: accuracy[_INTENTS.metric],
            _ENTITIES.metric: found[_ENTITIES.metric],
            "intent_macro_f1": accuracy["macro_f1"],
            "entity_precision": found["precision"],
            "entity_recall": found["recall"],
        }

    def shift(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """0: the likeliest intent and tags are the answer."""
        return 0.0

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """The `top_k` intents and the entities of each message."""
        names = _split(label_names)
        tags, intents = self.sections(label_names)
        logits = outputs[self.output]
        chosen = _INTENTS.answers({_INTENTS.output: intents.columns(logits)}, names[1], top_k)
        found = _ENTITIES.answers({_ENTITIES.output: tags.columns(logits), "words": outputs["words"]}, names[0])
        return _joined(chosen, found)

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The intents and the marked spans.

        Raises:
            DataError: an intent, or an entity's class, that the model does not know.
        """
        tags, intents = _split(label_names)
        marked = _marked(labels)
        chosen = _INTENTS.right_answers([each.intent for each in marked], intents)
        return _joined(chosen, _ENTITIES.right_answers([each.spans for each in marked], tags))

    def scores(self, answers: Sequence[Answer], right: Sequence[Answer]) -> Scores:
        """The right intents; beside them the spans, as the single task counts them."""
        (chosen, found), (wanted, marked) = _parts(answers), _parts(right)
        return replace(_INTENTS.scores(chosen, wanted), beside={_ENTITIES.metric: _ENTITIES.scores(found, marked)})

    def by_class(self, answers: Sequence[Answer], right: Sequence[Answer]) -> tuple[list[str], list[str]]:
        """Each intent and the one that was answered, with `intent:` before; then the spans as the single task."""
        (chosen, found), (wanted, marked) = _parts(answers), _parts(right)
        asked, said = _ENTITIES.by_class(found, marked)
        return [*(f"{INTENT}{each}" for each in wanted), *asked], [*(f"{INTENT}{each}" for each in chosen), *said]

    def entry(self) -> tuple[Path, ...]:
        """The text model's source files, with those of token classification."""
        shared = entry_files("intent_and_entities")
        return *shared, *(path for path in _ENTITIES.entry() if path not in shared)

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The intents and the entities that the text model sent.

        Raises:
            ValueError: that is not what it sends.
        """
        return _joined(_INTENTS.served_answers(found), _ENTITIES.served_answers(found))


def _split(label_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of the tags, and behind them those of the intents, without what these begin with.

    Raises:
        ModelError: there are not both.
    """
    first = next((number for number, name in enumerate(label_names) if name.startswith(INTENT)), 0)
    if not first:
        raise ModelError(
            f"the model's {len(label_names)} labels are not tags and then intents ({INTENT}NAME)",
            "fine-tune it for this task: deploykit finetune --task intent-and-entities",
        )
    return list(label_names[:first]), [name.removeprefix(INTENT) for name in label_names[first:]]


def _marked(labels: Sequence[Label]) -> list[MarkedMessage]:
    for label in labels:
        if not isinstance(label, MarkedMessage):
            raise UsageError(
                f"the label {label!r} is no intent with spans", "name the columns of both: [intent, entities]"
            )
    return [cast(MarkedMessage, label) for label in labels]


def _joined(chosen: Sequence[Answer], found: Sequence[Answer]) -> list[Answer]:
    pairs = zip(chosen, found, strict=True)
    return [Understood(cast(Classified, intent), cast(Entities, entities)) for intent, entities in pairs]


def _parts(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    found = [cast(Understood, answer) for answer in answers]
    return [each.intent for each in found], [each.entities for each in found]
