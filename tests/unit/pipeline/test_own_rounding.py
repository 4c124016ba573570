"""PyTorch's own rounding is asked of the messages that differ, and of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploykit.parity.verdict import Verdict
from deploykit.pipeline.measuring import ModelOutputs, run_target
from deploykit.pipeline.own_rounding import own_rounding
from deploykit.pipeline.proof import _fidelity
from deploykit.runners import Target
from deploykit.tasks import find_task
from deploykit.tasks.text_classification import Classified

TEXTS = ["where is my card", "help", "I want my money back please", "open an account"] * 10


def moved(outputs: ModelOutputs, rows: range, by: float) -> ModelOutputs:
    logits = outputs.outputs["logits"].copy()
    logits[rows] += np.float32(by)
    return replace(outputs, outputs={"logits": logits})


def test_only_what_differs_is_asked_again_and_float32_is_off_by_little(tiny_checkpoint: Callable[..., Path]) -> None:
    task = find_task("text-classification")
    target = Target("torch", str(tiny_checkpoint("bert")), device="cpu")
    labels = tuple(map(str, range(9)))
    found = run_target(target, TEXTS, task, labels, [[index] for index in range(len(TEXTS))])

    def rounding(*others: ModelOutputs) -> object:
        return own_rounding(target, TEXTS, found, others, 1e-4, task, labels)

    assert rounding(found) is None
    assert rounding(moved(found, range(40), 0.5)) is None  # more than a few
    some = own_rounding(target, TEXTS, found, [found, moved(found, range(3, 5), 0.5)], 1e-4, task, labels)
    assert some is not None
    assert np.flatnonzero(some).tolist() == [3, 4]
    assert some.max() < 1e-4
    served = replace(target, kind="triton")
    assert own_rounding(served, TEXTS, found, [moved(found, range(2), 0.5)], 1e-4, task, labels) is None
    asked = own_rounding(target, TEXTS, found, [found], 1e-4, task, labels, also=[7])
    assert asked is not None
    assert np.flatnonzero(asked).tolist() == [7]


def test_an_answer_that_hangs_on_rounding_is_not_another_one(tiny_checkpoint: Callable[..., Path]) -> None:
    task = find_task("text-classification")
    target = Target("torch", str(tiny_checkpoint("bert")), device="cpu")
    labels = tuple(map(str, range(9)))
    found = run_target(target, TEXTS, task, labels, [[index] for index in range(len(TEXTS))])

    def judged(by: float) -> Verdict:
        other = moved(found, range(7, 8), by)
        answers = [*other.answers[:7], Classified("another", 0.5), *other.answers[8:]]
        return _fidelity(
            found, replace(other, answers=answers), TEXTS, check="same", task=task, precision="fp32", target=target,
            labels=labels, exact_answers=True,
        )  # fmt: skip

    hanging, wrong = judged(0.0), judged(5e-5)
    assert (hanging.outcome, wrong.outcome) == ("pass", "fail")
    assert hanging.details[0] == "1 answers changed, each within float32's own rounding"
    assert wrong.details[0] == "1 answers changed"
