"""What a comparison asks beside the data: hard messages, all sizes of them and of batches, and other company."""

from __future__ import annotations

__all__ = ["Asked", "Company", "ask_in_company", "make_probes"]

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DataError, ModelError, RequestError
from deploykit.parity.verdict import Verdict
from deploykit.pipeline.measuring import ModelOutputs, Steps, try_target
from deploykit.runners import Runner
from deploykit.runners.medium import medium_of
from deploykit.runners.padding import equally_long
from deploykit.runners.texts import TEXTS
from deploykit.tasks import Task
from deploykit.tasks.medium import Encoder, Medium

_BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 33, 64)
_IN_COMPANY = 64
"""Messages that are asked again in other company."""


@dataclass(frozen=True)
class Asked:
    """Messages chosen to break a model.

    Attributes:
        names: what each is called in a report.
        texts: the messages.
        batches: how the reference is asked: long texts apart, so that padding costs little.
        sized: the numbers of those that stand for a size, which every model has to take.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    batches: tuple[tuple[int, ...], ...]
    sized: tuple[int, ...]


def make_probes(encoder: Encoder | None, medium: Medium = TEXTS) -> Asked:
    """The hard messages, and those of each size.

    Args:
        encoder: the reference's; None where it is behind a server.
        medium: what messages are.
    """
    hard = medium.hard(encoder)
    names, texts = tuple(each.name for each in hard), tuple(each.message for each in hard)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    short = [index for index in order if len(texts[index]) < 400]
    middle = [index for index in order if 400 <= len(texts[index]) < 1500]
    long = [(index,) for index in order if len(texts[index]) >= 1500]
    batches = tuple(part for part in (tuple(short), tuple(middle), *long) if part)
    return Asked(names, texts, batches, tuple(index for index, each in enumerate(hard) if each.sized))


@dataclass(frozen=True)
class Company:
    """A candidate's answers to messages that it was asked in other ways than alone.

    Attributes:
        others: how, of which messages, and what it gave; see `judge_invariance`. Empty where its answers may depend on
            the batch.
        again: the same for messages that were asked alone twice.
        shapes: the verdict on batch sizes and lengths.
    """

    others: tuple[tuple[str, tuple[int, ...], NDArray[Any]], ...]
    again: tuple[tuple[str, tuple[int, ...], NDArray[Any]], ...]
    shapes: Verdict


def ask_in_company(
    runner: Runner,
    texts: Sequence[str],
    task: Task,
    labels: Sequence[str],
    probes: Asked,
    hard: ModelOutputs,
    *,
    max_batch: int,
    scales_by_batch: bool,
    like: NDArray[Any],
    steps: Steps,
) -> Company:
    """Ask a candidate in batches of every size, beside a long message, in another order, and twice.

    Args:
        runner: of the candidate, entered.
        texts: the data's messages.
        task: what it does.
        labels: the names of its classes.
        probes: the texts chosen to break it.
        hard: what it gave for them one at a time.
        max_batch: the largest batch to try.
        scales_by_batch: its answers may depend on the batch, so that only repeating is held against it.
        like: the reference's output.
        steps: counts the messages.
    """
    chosen = sorted(range(len(texts)), key=lambda index: len(texts[index]))[: 4 * _IN_COMPANY : 4] or [0]
    medium = medium_of(task)
    neighbour = medium.neighbour

    def give(words: str, batch: Sequence[str]) -> tuple[NDArray[Any] | None, str]:
        found = try_target(runner, batch, task, labels, [range(len(batch))], like=like)
        return (None, f"{words}: {found.failures[0]}") if found.failures else (fitted(found.outputs[task.output]), "")

    def fitted(values: NDArray[Any]) -> NDArray[Any]:
        """With as many tokens as the reference's: what is behind the data's longest message is padding."""
        return equally_long(values[:, : like.shape[1]], like[:1])[0] if values.ndim > 2 else values

    failed: list[str] = []
    others: list[tuple[str, tuple[int, ...], NDArray[Any]]] = []
    sizes = [size for size in _BATCHES if size <= max_batch]
    for size in sizes:
        part = [chosen[place % len(chosen)] for place in range(size)][::-1]
        values, problem = give(f"a batch of {size}", [texts[index] for index in part])
        failed += [problem] if problem else []
        if values is not None and values.shape[1:] == like.shape[1:] and not scales_by_batch:
            others.append((f"in a batch of {size}", tuple(part), values))
    some = chosen[:8]
    rows = []
    for index in some:
        values, problem = give("beside a long message", [texts[index], neighbour])
        failed += [problem] if problem else []
        rows.append(np.full(like.shape[1:], np.nan, like.dtype) if values is None else values[0])
    same_width = {row.shape for row in rows} == {like.shape[1:]}
    if same_width and not scales_by_batch:
        others.append(("beside a long message", tuple(some), np.stack(rows)))
    again = try_target(runner, [texts[index] for index in some], task, labels, _one_each(some), like=like)
    lengths = probes.sized
    failed += [f"{probes.names[index]}: {hard.failures[index]}" for index in lengths if index in hard.failures]
    failed += _refusal(runner, medium)
    steps.skip(2 * _IN_COMPANY)
    shapes = Verdict(
        check="every batch size and length",
        outcome="fail" if failed else "pass",
        figure=float(len(failed)),
        bound=None,
        limit=0.0,
        n=len(sizes) + len(lengths) + len(some) + 1,
        unit="items",
        next_step="Export it with batch and length as dynamic axes." if failed else "",
        details=tuple(failed[:5]) or (f"batches of 1 to {sizes[-1]}, {probes.names[lengths[-2]]} at most",),
        part="interface",
    )
    return Company(tuple(others), (("a second time", tuple(some), fitted(again.outputs[task.output])),), shapes)


def _refusal(runner: Runner, medium: Medium) -> list[str]:
    """What is wrong with a model's way to take what can't be read: a refusal or an answer, and the next is answered."""
    with contextlib.suppress(DataError, RequestError):  # a refusal is a defined answer
        try:
            runner.infer([medium.refused])
        except ModelError as error:
            return [f"a message that can't be read: {error.message}"]
    return []


def _one_each(items: Sequence[Any]) -> list[list[int]]:
    return [[index] for index in range(len(items))]
