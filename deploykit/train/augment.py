"""More messages like those of the data: words misspelt, left out, swapped, replaced by their like.

Those that keep their label are for any training; those that may not are for a teacher to answer.
The replacement by neighbours in the embedding is that of TinyBERT (Jiao et al. 2020, section 3.3 and appendix), over
token ids; joining the halves of two messages gives what lies between their labels.
"""

from __future__ import annotations

__all__ = ["altered_rows", "altered_texts", "labelled_copies", "nearest_pieces", "with_neighbours"]

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import LabelledData
from deploykit.data.spill import gathered_texts
from deploykit.errors import TrainingError
from deploykit.recipe import Finetune
from deploykit.tasks import Task
from deploykit.train.rows import Row, training_rows

_NEIGHBOURS = 8
_JOIN = 0.3
"""Of the rows are the start of one message and the end of another."""
_DROP, _REPLACE, _SWAP = 0.08, 0.15, 0.05
"""Of the pieces of a row."""
_SLIP, _LEFT_OUT, _LIKE = 0.1, 0.1, 0.1
"""Of the words, and of the pieces, of a message that keeps its label."""
_LETTERS = re.compile(r"[^\W\d_]{4,}")


def labelled_copies(
    rows: Sequence[Row], data: LabelledData, settings: Finetune, task: Task, tokenizer: Any, network: Any, seed: int,
    translated: Callable[[int], Sequence[str]],
) -> Iterator[Row]:  # fmt: skip
    """Altered copies of the training rows, which keep their labels.

    Args:
        rows: of the training messages.
        data: whose training messages they are.
        settings: `augment` and `augment_copies`.
        task: what the model learns.
        tokenizer: the model's.
        network: the model, whose embedding says what is alike.
        seed: of every choice.
        translated: gives the training messages of a copy in other words (`back_translation`).

    Raises:
        TrainingError: the labels say where in the text something is, and the text would change.
    """
    in_text = sorted({"typos", "word_dropout", "back_translation"} & set(settings.augment))
    if in_text and task.per_token:
        raise TrainingError(
            f"finetune.augment={','.join(in_text)} moves the words that {task.name} has labels for", "use synonyms"
        )
    nearest = None
    if "synonyms" in settings.augment:
        used = sorted({piece for row in rows for piece in row["input_ids"]})
        nearest = nearest_pieces(network.get_input_embeddings().weight.detach(), used, tokenizer.all_special_ids)
    labels, names = data.train.labels or (), data.label_names
    for copy in range(settings.augment_copies):
        made: Iterable[Row] = rows
        if in_text:
            texts = translated(copy) if "back_translation" in in_text else data.train.texts
            texts = altered_texts(texts, in_text, [seed, copy])
            made = training_rows(tokenizer, network, texts, task, labels, names)
        random = np.random.default_rng([seed, copy])
        for row in made:
            yield row if nearest is None else row | {"input_ids": with_neighbours(row["input_ids"], nearest, random)}


def altered_texts(texts: Sequence[str], kinds: Collection[str], seed: Sequence[int]) -> Sequence[str]:
    """A copy of each message that still says the same.

    Args:
        texts: the messages.
        kinds: `typos`: a tenth of the words has two letters swapped, one left out or one doubled, the first never;
            `word_dropout`: a tenth of the words is left out, one stays.
        seed: of every choice.
    """
    random = np.random.default_rng(seed)
    found = gathered_texts()
    for text in texts:
        altered, words = text, text.split()
        if "word_dropout" in kinds and words:
            kept = random.random(len(words)) >= _LEFT_OUT
            kept[random.integers(len(words))] = True
            altered = " ".join(word for word, stays in zip(words, kept, strict=True) if stays)
        if "typos" in kinds:
            altered = _LETTERS.sub(lambda word: _slip(word[0], random) if random.random() < _SLIP else word[0], altered)
        found.append(altered)
    return found.done()


def _slip(word: str, random: np.random.Generator) -> str:
    place = int(random.integers(1, len(word) - 1))
    before, letter, after = word[:place], word[place], word[place + 1 :]
    return (before + after[0] + letter + after[1:], before + after, before + 2 * letter + after)[random.integers(3)]


def with_neighbours(row: Sequence[int], neighbours: NDArray[np.int64], random: np.random.Generator) -> list[int]:
    """A row with a tenth of the pieces replaced by one of their neighbours: as long, piece by piece.

    Args:
        row: token ids.
        neighbours: [pieces, k], as `nearest_pieces` gives them.
        random: what every choice is drawn from.
    """
    return [
        int(neighbours[piece, random.integers(0, neighbours.shape[1])]) if random.random() < _LIKE else int(piece)
        for piece in row
    ]


def altered_rows(
    rows: Sequence[Sequence[int]], neighbours: NDArray[np.int64], copies: int, seed: int, lead: int = 1
) -> list[list[int]]:
    """So many altered copies of each row.

    Args:
        rows: token ids with special tokens at the start and one at the end.
        neighbours: [pieces, k], what may stand for a piece; a piece without any has itself.
        copies: for each row.
        seed: of every choice.
        lead: special tokens at the start.
    """
    random = np.random.default_rng(seed)
    found = []
    for _ in range(copies):
        partners = random.permutation(len(rows))
        for number, row in enumerate(rows):
            inner = list(row[lead:-1])
            if random.random() < _JOIN:
                other = rows[partners[number]][lead:-1]
                start = inner[: int(random.integers(1, len(inner) + 1))] if inner else []
                inner = [*start, *other[int(random.integers(0, len(other))) if other else 0 :]]
                inner = inner[: max(len(row), len(rows[partners[number]])) - lead - 1]
            found.append([*row[:lead], *_shaken(inner, neighbours, random), row[-1]])
    return found


def _shaken(pieces: Sequence[int], neighbours: NDArray[np.int64], random: np.random.Generator) -> list[int]:
    draws = random.random((3, len(pieces)))
    kept = [
        int(neighbours[piece, random.integers(0, neighbours.shape[1])]) if replace < _REPLACE else piece
        for piece, drop, replace in zip(pieces, draws[0], draws[1], strict=True)
        if drop >= _DROP
    ] or list(pieces[:1])
    for place in range(len(kept) - 1):
        if draws[2, place] < _SWAP:
            kept[place], kept[place + 1] = kept[place + 1], kept[place]
    return kept


def nearest_pieces(table: Any, used: Sequence[int], fixed: Sequence[int]) -> NDArray[np.int64]:
    """For each piece the pieces nearest to it by the cosine of their embeddings, itself not among them.

    Args:
        table: the embedding, a float tensor [pieces, width].
        used: the pieces that the data has: only they are replaced, and by each other.
        fixed: pieces that stay as they are: special tokens.

    Returns:
        int64 [pieces, k].
    """
    import torch

    like = sorted(set(used) - set(fixed))
    count = min(_NEIGHBOURS, len(like) - 1)
    found = np.repeat(np.arange(len(table))[:, None], max(count, 1), axis=1)
    if count > 0:
        vectors = torch.nn.functional.normalize(table[like].float(), dim=-1)
        alike = vectors @ vectors.T
        alike.fill_diagonal_(-2.0)
        found[like] = np.array(like)[alike.topk(count).indices.numpy()]
    return found
