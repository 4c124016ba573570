"""What a running server answers: the same as in process, by either protocol, given singly and from many clients."""

from __future__ import annotations

__all__ = ["answers_under_load", "check_endpoint", "check_served"]

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from deploykit.parity.flips import judge_flips
from deploykit.parity.identity import compare_answers
from deploykit.parity.invariance import judge_invariance
from deploykit.parity.verdict import Verdict
from deploykit.pipeline.measuring import ModelOutputs, Steps, run_target, try_target
from deploykit.runners import Target, open_runner
from deploykit.runners.triton_client import Rejected
from deploykit.tasks import Answer, Task

CLIENTS = 16
"""Clients at a time when answers are checked under load."""


def check_served(
    urls: Any,
    name: str,
    texts: Sequence[str],
    task: Task,
    in_process: ModelOutputs,
    steps: Steps,
    confidence: float,
    max_flips: float,
) -> tuple[ModelOutputs, list[Verdict], dict[str, Any]]:
    """The served answers given singly (they are what is judged), and the checks on them."""
    singles = [[index] for index in range(len(texts))]
    checks, served = [], None
    for protocol, url in (("gRPC", urls.grpc), ("HTTP", urls.http)):
        if url is None:  # a running server was named by its other address
            continue
        found = run_target(Target("triton", f"{url}/{name}", task=task.name), texts, task, (), singles, steps)
        logits = task.output
        identity = compare_answers(
            in_process.answers,
            found.answers,
            in_process.outputs[logits],
            found.outputs[logits],
            check=f"served over {protocol} against in process",
        )
        checks.append(identity.verdict)
        served = served or found
    assert served is not None
    target = Target("triton", f"{urls.grpc or urls.http}/{name}", task=task.name)
    check, changed = _check_under_load(target, texts, served.answers, max_flips, confidence, steps)
    return served, [*checks, check], {"flips_under_load": changed, "clients": CLIENTS}


def check_endpoint(
    target: Target,
    also: Target | None,
    texts: Sequence[str],
    task: Task,
    labels: Sequence[str],
    alone: ModelOutputs,
    max_flips: float,
    confidence: float,
    steps: Steps,
) -> list[Verdict]:
    """Whether a server that was only named gives many clients, and by its other address, what it gave one.

    Args:
        target: the server and the model in it.
        also: the same by another address, such as HTTP beside gRPC; None where it has none.
        texts: the messages.
        task: what the model does.
        labels: the names of its classes.
        alone: what it gave for each message by itself.
        max_flips: the rate of answers that may change under load.
        confidence: of the bound of that rate.
        steps: counts the messages.
    """
    asked = [index for index in range(len(texts)) if index not in alone.failures]
    answered = [texts[index] for index in asked]
    if not answered:
        return []
    answers = tuple(alone.answers[index] for index in asked)
    checks = [_check_under_load(target, answered, answers, max_flips, confidence, steps)[0]]
    if also is not None:
        with open_runner(also) as runner:
            singles = [[index] for index in range(len(texts))]
            found = try_target(runner, texts, task, labels, singles, like=alone.outputs[task.output], steps=steps)
        words = f"at {also.location}"
        numbers = judge_invariance(
            alone.outputs[task.output],
            [(words, range(len(texts)), found.outputs[task.output])],
            check="the same numbers by the other address",
            part="server",
        )
        checks.append(numbers)
    return checks


def _check_under_load(
    target: Target,
    texts: Sequence[str],
    alone: Sequence[Answer],
    max_flips: float,
    confidence: float,
    steps: Steps,
) -> tuple[Verdict, int]:
    """The verdict on answers that many clients get at a time, and how many of them changed."""
    loaded = answers_under_load(lambda: open_runner(target), texts, steps)
    pairs = [(ours, theirs) for ours, theirs in zip(alone, loaded, strict=True) if theirs is not None]
    flips = judge_flips([ours for ours, _ in pairs], [theirs for _, theirs in pairs], max_flips, confidence)
    rejected = len(alone) - len(pairs)
    details = (*flips.details, *([f"{rejected:,} were rejected: the queue was full"] if rejected else []))
    check = f"answers under {CLIENTS} clients against given singly"
    return replace(flips, part="server", check=check, details=details), sum(ours != theirs for ours, theirs in pairs)


def answers_under_load(
    open_client: Callable[[], Any], texts: Sequence[str], steps: Steps | None = None
) -> tuple[Answer | None, ...]:
    """The answers when 16 clients ask at a time, one message each; None for what a full queue rejected."""
    local = threading.local()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
        opening = threading.Lock()

        def ask(text: str) -> Answer | None:
            if not hasattr(local, "runner"):
                with opening:
                    local.runner = stack.enter_context(open_client())
            answer: Answer | None = None
            with contextlib.suppress(Rejected):  # a full queue is no wrong answer
                answer = local.runner.infer([text])["answer"][0]
            if steps is not None:
                steps.count([0])
            return answer

        return tuple(pool.map(ask, texts))
