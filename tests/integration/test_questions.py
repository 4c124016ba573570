"""The recipe of questions through a real embedded Triton: spans and "no answer" as the file gives them in process."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from deploykit.data.labels import Quote
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import find_task
from deploykit.triton.embedded import unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]
TOPICS = ("cancel", "parcel", "invoice", "password")
FILLING = ["please", "hello", "can", "you", "tell", "me", "about", "the", "my", "a", "is", "it", "was", "not", "now"]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """A topic asked for, and a context that names it, which is the answer, or not."""
    rng, found = random.Random(seed), []
    for number in range(count):
        words = rng.sample(FILLING, 8)
        topic, other = rng.sample(TOPICS, 2)
        words.insert(rng.randrange(8), other)
        if number % 3:
            words.insert(rng.randrange(9), topic)
        text, answer = f"{topic}?\n", []
        for word in words:
            text += f"{' ' if text[-1] != chr(10) else ''}"
            if word == topic:
                answer = [{"start": len(text), "end": len(text) + len(word), "label": "answer"}]
            text += word
        found.append({"message": text, "answer": answer})
    return found


def test_the_recipe_runs_and_what_is_served_is_what_the_file_says_in_process(run_tiny: Callable[..., Any]) -> None:
    test = rows(80, 2)
    run = run_tiny(
        "questions", rows(400, 1), test, "data.text=message", "finetune.epochs=6", "finetune.max_length=64",
        "goal.max_drop=0.1", until="parity",
    )  # fmt: skip
    assert {"F1 drop", "exact match drop"} <= set(run.checks)
    assert run.result.metric == run.report["metric"] == "F1"
    assert [further["metric"] for further in run.report["further"]] == ["exact match"]
    assert run.report["reference"] > 0.5  # a third has no answer

    task, texts = find_task("question-answering"), [row["message"] for row in test]
    with open_runner(Target("onnxruntime", str(run.only("quantize")), task=task.name)) as runner:
        outputs = infer_all(runner, texts, [[row] for row in range(len(texts))])
    answers = task.answers(outputs, ("start", "end"))
    marked = [(row["answer"] or [{"start": 0, "end": 0}])[0] for row in test]
    places = [(each["start"], each["end"], text) for each, text in zip(marked, texts, strict=True)]
    right = task.right_answers([Quote(start, end, text[start:end]) for start, end, text in places], ())
    assert run.report["candidate"] == pytest.approx(task.scores(answers, right).value, abs=1e-12)
    assert {str(answer) == "no answer" for answer in answers} == {True, False}
