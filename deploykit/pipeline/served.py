"""What a running server answers: the same as in process, given singly and from many clients at a time."""

from __future__ import annotations

__all__ = ["CLIENTS", "answers_under_load", "check_served"]

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from deploykit.parity.flips import judge_flips
from deploykit.parity.identity import compare_answers
from deploykit.parity.verdict import Verdict
from deploykit.pipeline.measuring import ModelOutputs, Steps, run_target
from deploykit.runners import Target, open_runner
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
    loaded = answers_under_load(
        lambda: open_runner(Target("triton", f"{urls.grpc or urls.http}/{name}", task=task.name)), texts, steps
    )
    flips = judge_flips(served.answers, loaded, max_flips, confidence)
    checks.append(replace(flips, part="server", check=f"answers under {CLIENTS} clients against given singly"))
    changed = sum(ours != theirs for ours, theirs in zip(served.answers, loaded, strict=True))
    return served, checks, {"flips_under_load": changed, "clients": CLIENTS}


def answers_under_load(
    open_client: Callable[[], Any], texts: Sequence[str], steps: Steps | None = None
) -> tuple[Answer, ...]:
    """The answers when 16 clients ask at a time, one message each."""
    local = threading.local()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
        opening = threading.Lock()

        def ask(text: str) -> Answer:
            if not hasattr(local, "runner"):
                with opening:
                    local.runner = stack.enter_context(open_client())
            answer: Answer = local.runner.infer([text])["answer"][0]
            if steps is not None:
                steps.count([0])
            return answer

        return tuple(pool.map(ask, texts))
