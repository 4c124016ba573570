"""Messages as the rows that a model is trained on, and how rows become batches."""

from __future__ import annotations

__all__ = [
    "NO_LABEL", "Part", "Row", "gathered_rows", "padding_collator", "row_length", "sections_of", "training_rows",
    "unlabelled",
]  # fmt: skip

import inspect
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from deploykit.data.labels import Label
from deploykit.data.spill import Gathering
from deploykit.errors import ModelError
from deploykit.runners.medium import medium_of
from deploykit.tasks import Task
from deploykit.tasks.base import Section
from deploykit.tasks.spans import PAIRS_KEY, token_words, tokenizer_input

Row = dict[str, Any]

NO_LABEL = -100
"""What PyTorch's cross entropy leaves out."""
_BATCH = 1000
"""Messages that are tokenized together."""


def training_rows(
    tokenizer: Any, network: Any, texts: Sequence[str], task: Task, labels: Sequence[Label] | None, names: Sequence[str]
) -> Iterator[Row]:
    """Rows of what the model takes, with their `labels`: a number, or for a task by token a list of them.

    Args:
        tokenizer: the model's; it may give more than the model takes (token types to DistilBERT).
        network: the model.
        texts: the messages.
        task: what the model learns.
        labels: of the messages; None for rows that have none.
        names: what the model's outputs are called; their number is that of the classes.

    Raises:
        DataError: a label that is not among them.
        ModelError: the tokenizer does not say where its tokens are, and the task needs it.
    """
    if task.per_token and not tokenizer.is_fast:
        raise ModelError(
            f"{task.name} needs to know where tokens are in the text, and this tokenizer does not say",
            "use a model with a fast tokenizer (tokenizer.json)",
        )
    taken, medium = set(inspect.signature(network.forward).parameters), medium_of(task)
    pairs = bool(getattr(network.config, PAIRS_KEY, False))
    if pairs:
        taken.discard("token_type_ids")  # the exported graph takes none: the separator tells the parts apart
    for start in range(0, len(texts), _BATCH):  # a tokenizer's answer takes many times the room of its rows
        part = list(texts[start : start + _BATCH])
        encoded: Any = medium.rows(tokenizer, tokenizer_input(part, pairs=pairs), offsets=task.per_token)
        if labels is None:
            targets = [unlabelled(ids, task, len(names)) for ids in encoded["input_ids"]]
        elif task.per_token:
            words = [token_words(text, each, pairs=pairs) for text, each in zip(part, encoded.encodings, strict=True)]
            targets = task.targets(labels[start : start + _BATCH], names, words)
        else:
            targets = task.targets(labels[start : start + _BATCH], names)
        for row, target in enumerate(targets):
            yield {name: values[row] for name, values in encoded.items() if name in taken} | {"labels": target}


def gathered_rows() -> Gathering[Row]:
    """A gathering of rows, which lie on disk where they are many."""
    return Gathering(pickle.dumps, pickle.loads)  # through an unnamed file of this process: nobody else writes it


def row_length(row: Row) -> int:
    """The tokens of a row; 1 for what has none, such as an image."""
    return len(row["input_ids"]) if "input_ids" in row else 1


def unlabelled(ids: Sequence[int], task: Task, classes: int) -> int | list[int] | tuple[float, ...]:
    """The `labels` of a row that has none."""
    if task.several:
        return (float(NO_LABEL),) * classes
    return [NO_LABEL] * len(ids) if task.per_token else NO_LABEL


def padding_collator(tokenizer: Any) -> Callable[[Sequence[Row]], Any]:
    """Rows as one batch of PyTorch tensors, padded to the longest; labels by token with `NO_LABEL`.

    Rows without tokens, such as images, are stacked.
    """
    import torch
    from transformers import DataCollatorWithPadding, default_data_collator

    pad = DataCollatorWithPadding(tokenizer)

    def collate(rows: Sequence[Row]) -> Any:
        if "input_ids" not in rows[0]:
            return default_data_collator(list(rows))
        if not isinstance(rows[0].get("labels"), list):
            return pad(list(rows))
        batch = pad([{name: value for name, value in row.items() if name != "labels"} for row in rows])
        length = batch["input_ids"].shape[1]
        labels = [row["labels"] + [NO_LABEL] * (length - len(row["labels"])) for row in rows]
        batch["labels"] = torch.tensor(labels, dtype=torch.int64)
        return batch

    return collate


_NEVER = -1e4
"""The logit of a token that can't be chosen: low enough, and its slope is a number."""


class Part(NamedTuple):
    """What of a batch is decided on apart: its logits, its labels counted from 0, its columns, its cost's weight."""

    logits: Any
    labels: Any
    columns: slice
    weight: float


def sections_of(logits: Any, labels: Any, sections: Sequence[Section]) -> Iterator[Part]:
    """The parts of a batch, one for each section.

    Args:
        logits: [messages, labels] or [messages, tokens, labels].
        labels: [messages] or [messages, tokens] columns; `NO_LABEL` where there is none.
        sections: none where all columns are one part.
    """
    if not sections:
        yield Part(logits, labels, slice(None), 1.0)
    for section in sections:
        if section.over_tokens:
            yield _over_tokens(section, logits, labels)
            continue
        wanted = section.rows(labels)
        others = (wanted < section.first) | (wanted >= section.past)
        own = (wanted - section.first).masked_fill(others, NO_LABEL)
        yield Part(section.columns(logits), own, slice(section.first, section.past), section.weight)


def _over_tokens(section: Section, logits: Any, labels: Any) -> Part:
    """The choice of one token, or of none in the first one's place; rows without labels have nothing to choose from.

    The labels are those that the section's own bit is set in, 1 for the first column.
    """
    import torch

    real = labels != NO_LABEL
    found = section.columns(logits).masked_fill(~real, _NEVER)
    found = torch.cat([torch.zeros_like(found[:, :1]), found[:, 1:]], dim=1)
    marked = real & ((labels.clamp_min(0) >> section.first) & 1).bool()
    own = marked.int().argmax(dim=1).masked_fill(~real.any(dim=1), NO_LABEL)
    return Part(found, own.long(), slice(section.first, section.past), section.weight)
