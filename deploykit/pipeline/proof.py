"""The proof that a package answers like the PyTorch model: in process, then through a running server."""

from __future__ import annotations

__all__ = ["ModelOutputs", "compare_models", "judge_forms", "prove", "serving_engine"]

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deploykit.artifacts.store import Draft
from deploykit.compress.vocabulary import is_trimmed
from deploykit.data.labels import Label
from deploykit.errors import ParityError
from deploykit.events import Listener, Progress, Warn, ignore
from deploykit.machine import instruction_set
from deploykit.parity.fidelity import (
    TOLERANCES,
    Precision,
    compare_outputs,
    judge_labels,
    judge_tokenizer,
    judge_trimmed_tokenizer,
)
from deploykit.parity.flips import ByClass, judge_flips
from deploykit.parity.identity import compare_answers
from deploykit.parity.report import ParityReport, Predictions, build_report
from deploykit.parity.verdict import Verdict
from deploykit.pipeline.context import Context
from deploykit.pipeline.stages import package_settings
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.tokenize import Encoder, max_length_from_folder
from deploykit.tasks import Answer, Task

CLIENTS = 16
"""Clients at a time when answers are checked under load."""
_BATCH = 16
_SMALL_BATCH = 8
"""What any package takes as one request."""


@dataclass(frozen=True)
class ModelOutputs:
    """What one model gave for all messages.

    Attributes:
        outputs: named arrays [messages, ...].
        answers: what a client is told.
    """

    outputs: dict[str, NDArray[Any]]
    answers: tuple[Answer, ...]

    def predictions(self, task: Task, right: Sequence[Answer] | None, *, with_outputs: bool = False) -> Predictions:
        """As a parity report takes them."""
        scores = None if right is None else task.scores(self.answers, right)
        logits = {task.output: self.outputs[task.output]} if with_outputs else None
        return Predictions(self.answers, None if scores is None else scores.correct, logits, scores)


def prove(context: Context, draft: Draft) -> str:
    """Prove or refute the staged package on the test split; writes `parity.json` and the outputs behind it.

    Four comparisons: the float32 ONNX against PyTorch, number by number, in padded batches; the served model against
    the same file in process, message by message, over gRPC and HTTP; answers under load against answers given singly;
    and the served answers against PyTorch's at the task, which is the verdict on the drop.
    """
    task, data, goal, listener = context.task, context.data(), context.recipe.goal, context.listener
    texts = list(data.test.texts)
    right = task.right_answers(data.test.labels or (), data.label_names)
    finetuned, exported, shipped = (context.folder(stage) for stage in ("finetune", "export", "quantize"))
    engine = serving_engine(context.recipe.serve.engine, listener)
    pruned = context.checkpoint != finetuned
    total = (3 + pruned + (3 if engine else 0)) * len(texts)
    steps = _Steps("parity", total, listener)

    batches = _padded_batches(texts)
    singles = [[index] for index in range(len(texts))]
    labels = labels_from_folder(finetuned)
    gpu = package_settings(context.recipe.package).device == "gpu"
    on = partial(Target, task=task.name, device="cuda" if gpu else "cpu")  # where it is served
    reference = run_target(on("torch", str(finetuned)), texts, task, labels, batches, steps)
    source = reference
    if pruned:
        source = run_target(on("torch", str(context.checkpoint)), texts, task, labels, batches, steps)
    fp32 = run_target(on("onnxruntime", str(exported)), texts, task, labels, batches, steps)
    threads = context.recipe.package.threads
    in_process = run_target(on("onnxruntime", str(shipped), threads=threads), texts, task, labels, singles, steps)
    checks = [
        *judge_forms(finetuned, shipped, texts),
        _fidelity(source, fp32, task, f"float32 ONNX against {'pruned ' * pruned}PyTorch", "fp32", exact_answers=True),
    ]
    if context.info("quantize").get("scheme") == "fp16":
        checks.append(_fidelity(source, in_process, task, "fp16 ONNX against PyTorch", "fp16"))
    final = in_process
    served_info: dict[str, Any] = {}
    if engine:
        with _serving(context, engine) as urls:
            final, served_checks, served_info = _check_served(
                urls, context.recipe.name, texts, task, in_process, steps, goal.confidence, goal.max_drop
            )
            checks += served_checks
    report = build_report(
        reference.predictions(task, right),
        final.predictions(task, right),
        texts,
        instruction_set=instruction_set(),
        served=engine is not None,
        labels=right,
        by_class=_by_class(task, reference, final, right),
        metric=task.metric,
        margin=goal.max_drop,
        confidence=goal.confidence,
        checks=checks,
    )
    (draft.path / "parity.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    fp32_metric = task.scores(fp32.answers, right).value
    draft.info.update({"verdict": report.verdict, "fp32_onnx": float(fp32_metric), "engine": engine, **served_info})
    upper = "" if report.drop_upper is None else f", drop at most {report.drop_upper:.2%}"
    return f"{report.statement}{upper}"


def _batches(count: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def _padded_batches(texts: Sequence[str]) -> list[list[int]]:
    """Batches of messages of unlike lengths, but not of the shortest with the longest: padding costs as text does."""
    batches = []
    for start in range(0, len(texts), 4 * _BATCH):
        window = sorted(range(start, min(start + 4 * _BATCH, len(texts))), key=lambda index: len(texts[index]))
        batches += [window[begin : begin + _BATCH] for begin in range(0, len(window), _BATCH)]
    return batches


def serving_engine(asked: str, listener: Listener = ignore) -> str | None:
    """The engine to prove on: what was asked, `embedded` for `auto` where it runs, None for no server."""
    from deploykit.triton.embedded import unsupported_reason

    if asked == "none":
        return None
    if asked != "auto":
        return asked
    reason = unsupported_reason()
    if reason is None:
        return "embedded"
    listener(Warn(f"no embedded Triton here ({reason}): proved in process only, not served"))
    return None


def run_target(
    target: Target,
    texts: Sequence[str],
    task: Task,
    labels: Sequence[str],
    batches: Sequence[Sequence[int]],
    steps: _Steps | None = None,
) -> ModelOutputs:
    """What a target gives for all texts, run in the given batches of indices."""
    with open_runner(target) as runner:
        watched = (steps.count(batch) for batch in batches) if steps else batches
        outputs = infer_all(runner, texts, watched)
    return _named(outputs, task, labels)


def _named(outputs: dict[str, NDArray[Any]], task: Task, labels: Sequence[str]) -> ModelOutputs:
    """A server names its answer itself; in process the labels do."""
    if "answer" in outputs:
        return ModelOutputs(outputs, tuple(outputs["answer"]))
    try:
        return ModelOutputs(outputs, tuple(task.answers(outputs, labels)))
    except IndexError:
        raise ParityError(
            f"a model gives {outputs[task.output].shape[-1]} logits, and {len(labels)} labels have a name",
            "write every label into id2label of its config.json",
        ) from None


def judge_forms(
    reference: Path, candidate: Path, texts: Sequence[str], *, tokenizers: tuple[Path, Path] | None = None
) -> list[Verdict]:
    """Whether two model folders name their labels alike and tokenize alike; `tokenizers` where they lie elsewhere."""
    from transformers import AutoTokenizer

    ours, theirs = tokenizers or (reference, candidate)
    tokenizer = AutoTokenizer.from_pretrained(ours, trust_remote_code=False)
    expected = tokenizer(list(texts), truncation=True, max_length=max_length_from_folder(ours))["input_ids"]
    encoder = Encoder(theirs)
    found = [encoder.encode([text])["input_ids"][0].tolist() for text in texts]
    labels = judge_labels(labels_from_folder(reference), labels_from_folder(candidate))
    if not is_trimmed(theirs):
        return [labels, judge_tokenizer(expected, found)]
    pieces = [encoder.pieces(ids) for ids in found]
    whole = [tokenizer.convert_ids_to_tokens(ids) for ids in expected]
    return [labels, judge_trimmed_tokenizer(whole, pieces, encoder.max_length, encoder.inner_prefix)]


def _fidelity(
    reference: ModelOutputs,
    candidate: ModelOutputs,
    task: Task,
    check: str,
    precision: Precision,
    *,
    exact_answers: bool = False,
) -> Verdict:
    """Whether the same weights in another form give the same numbers, and (where asked) not one other answer."""
    name = task.output
    fidelity = compare_outputs(
        {name: reference.outputs[name]}, {name: candidate.outputs[name]}, TOLERANCES[precision], logits=(name,)
    )
    verdict = replace(fidelity.verdict, check=check)
    flipped = sum(ours != theirs for ours, theirs in zip(reference.answers, candidate.answers, strict=True))
    if exact_answers and flipped and verdict.outcome == "pass":
        return replace(verdict, outcome="fail", details=(f"{flipped} answers changed", *verdict.details))
    return verdict


@contextlib.contextmanager
def _serving(context: Context, engine: str) -> Iterator[Any]:
    from deploykit.triton.engines import open_server

    with open_server(engine, context.folder("package"), listener=context.listener) as server:
        yield server.urls


def _check_served(
    urls: Any,
    name: str,
    texts: Sequence[str],
    task: Task,
    in_process: ModelOutputs,
    steps: _Steps,
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
    loaded = _under_load(
        lambda: open_runner(Target("triton", f"{urls.grpc or urls.http}/{name}", task=task.name)), texts, steps
    )
    flips = judge_flips(served.answers, loaded, max_flips, confidence)
    checks.append(replace(flips, check=f"answers under {CLIENTS} clients against given singly"))
    changed = sum(ours != theirs for ours, theirs in zip(served.answers, loaded, strict=True))
    return served, checks, {"flips_under_load": changed, "clients": CLIENTS}


def _by_class(task: Task, reference: ModelOutputs, candidate: ModelOutputs, right: Sequence[Answer]) -> ByClass | None:
    """What recall by class is counted on; None where an answer is one class."""
    asked, before = task.by_class(reference.answers, right)
    return None if asked is right else (before, task.by_class(candidate.answers, right)[1], asked)


def _under_load(open_client: Callable[[], Any], texts: Sequence[str], steps: _Steps) -> tuple[Answer, ...]:
    """The answers when 16 clients ask at a time, one message each."""
    local = threading.local()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
        opening = threading.Lock()

        def ask(text: str) -> Answer:
            if not hasattr(local, "runner"):
                with opening:
                    local.runner = stack.enter_context(open_client())
            answer: Answer = local.runner.infer([text])["answer"][0]
            steps.count([0])
            return answer

        return tuple(pool.map(ask, texts))


def compare_models(
    reference: Target,
    candidate: Target,
    texts: Sequence[str],
    given: Sequence[Label] | None,
    task: Task,
    *,
    labels: Sequence[str],
    max_drop: float,
    max_flips: float | None = None,
    tolerance: float | None = None,
    confidence: float = 0.95,
    listener: Listener = ignore,
) -> ParityReport:
    """Prove or refute that a candidate answers like its reference: any two targets.

    Args:
        reference: what to live up to.
        candidate: what is on trial.
        texts: the messages.
        given: their right labels; None checks behaviour without the metric.
        task: what both do.
        labels: the reference's labels in index order.
        max_drop: the drop of the metric that is too much.
        max_flips: the rate of changed answers that passes; None reports it only (where there are labels).
        tolerance: on the logits, for the same weights in another form; None does not judge them.
        confidence: of the one-sided bounds.
        listener: hears of progress.
    """
    steps = _Steps("parity", 3 * len(texts), listener)
    singles = [[index] for index in range(len(texts))]
    folders = [_named_folder(target) for target in (reference, candidate)]
    # Each model's answers have the names that its own config.json gives them: a label permuted on the way is wrong
    # though its logits are right.
    own = labels if folders[1] is None else labels_from_folder(folders[1])
    first = run_target(reference, texts, task, labels, singles, steps)
    second = run_target(candidate, texts, task, own, singles, steps)
    # A graph that gets padding wrong answers single messages well.
    together = run_target(candidate, texts, task, own, _batches(len(texts), _SMALL_BATCH), steps)
    padded = judge_flips(second.answers, together.answers, max_drop if max_flips is None else max_flips, confidence)
    checks = [replace(padded, check=f"answers in padded batches of {_SMALL_BATCH} against given singly")]
    if tolerance is not None:
        name = task.output
        fidelity = compare_outputs(
            {name: first.outputs[name]}, {name: together.outputs[name]}, tolerance, logits=(name,)
        )
        checks.append(replace(fidelity.verdict, check="numbers in padded batches"))
    if folders[0] is not None and folders[1] is not None:
        elsewhere = Path(reference.tokenizer or folders[0]), Path(candidate.tokenizer or folders[1])
        checks += judge_forms(folders[0], folders[1], texts, tokenizers=elsewhere)
    right = None if given is None else task.right_answers(given, labels)
    if right is None and max_flips is None:
        max_flips = max_drop
    return build_report(
        first.predictions(task, right, with_outputs=True),
        second.predictions(task, right, with_outputs=True),
        texts,
        instruction_set=instruction_set(),
        served=candidate.kind == "triton",
        labels=right,
        by_class=None if right is None else _by_class(task, first, second, right),
        metric=task.metric,
        margin=max_drop if right is not None else None,
        max_flips=max_flips,
        tolerance=tolerance,
        confidence=confidence,
        checks=checks,
    )


def _named_folder(target: Target) -> Path | None:
    """The folder that says what the labels of a target in process are called."""
    if target.kind == "triton":
        return None
    path = Path(target.location)
    folder = path if path.is_dir() else path.parent
    return folder if (folder / "config.json").is_file() else None


class _Steps:
    """Counts messages over several passes, from several threads, as one bar."""

    def __init__(self, stage: str, total: int, listener: Listener) -> None:
        self._stage, self._total, self._listener = stage, total, listener
        self._done, self._lock = 0, threading.Lock()

    def count(self, batch: Sequence[int]) -> Sequence[int]:
        with self._lock:
            self._done += len(batch)
            done = self._done
        if done % 20 < len(batch) or done == self._total:
            self._listener(Progress(self._stage, done, self._total, "message"))
        return batch
