"""Where two models part: tokenizer, layers, head and labels of any two targets, on the messages that show it."""

from __future__ import annotations

__all__ = ["locate", "with_location"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.compress.vocabulary import is_trimmed
from deploykit.errors import DeploykitError, ModelError
from deploykit.events import Listener, Warn, ignore
from deploykit.parity.activations import open_trace
from deploykit.parity.ends import explain_labels, explain_output, explain_tokens
from deploykit.parity.localize import Finding, Localization
from deploykit.parity.report import ParityReport
from deploykit.parity.walk import walk
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import Task
from deploykit.tasks.pruned import KEPT_KEY

_WALKED = 12
"""Messages at most that are walked through, beside the shortest and the longest: padding shows its own faults."""
_TOKENIZED = 200
_BATCH = 8
Feed = dict[str, NDArray[np.int64]]


def locate(
    reference: Target, candidate: Target, texts: Sequence[str], task: Task, *, failing: Sequence[int] = ()
) -> Localization:
    """Find where a candidate parts from its reference.

    Args:
        reference: what to live up to.
        candidate: what differs; inside of a server nothing can be seen but what goes in and comes out.
        texts: messages.
        task: what both do.
        failing: positions of messages that show the difference, worst first; without them the first ones are taken.

    Returns:
        what was found, in the order from text to answer. No finding means that both compute the same on these messages.

    Raises:
        ModelError: one of them can't be loaded.
    """
    samples = _samples(texts, failing)
    chosen = [texts[number] for number in samples]
    folders = [_folder(target) for target in (reference, candidate)]
    findings = [found for found in (_tokens(folders, texts, failing),) if found is not None]
    behind = _output(reference, candidate, chosen, task)
    walked = Localization(findings=(), precision="unknown", layers=(), samples=tuple(samples))
    if "triton" not in (reference.kind, candidate.kind) and folders[0] is not None:
        walked, refused = _walk(reference, candidate, chosen, task, folders, samples)
        findings += [refused] if refused is not None else []
    inside = [found for found in walked.findings if behind is None or found.part not in ("head", "pooler")]
    findings += inside if behind is None or behind.part != "serving" else []
    if behind is not None and not inside:
        findings.append(behind)
    labels = _labels(folders)
    if labels is not None:
        findings.append(labels)
    return walked.model_copy(update={"findings": tuple(findings)})


def with_location(
    report: ParityReport,
    reference: Target,
    candidate: Target,
    texts: Sequence[str],
    task: Task,
    listener: Listener = ignore,
) -> ParityReport:
    """A report, and where the failure begins if it is one.

    Args:
        report: on these two, over these texts.
        reference: what to live up to.
        candidate: what differs.
        texts: the messages.
        task: what both do.
        listener: hears why nothing could be found.
    """
    if report.verdict != "fail":
        return report
    failing = [sample.index for sample in report.changed]
    try:
        found = locate(reference, candidate, texts, task, failing=failing)
    except DeploykitError as error:  # what can't be looked into has failed all the same
        listener(Warn(f"the failure can't be located: {error}"))
        return report
    return report.model_copy(update={"localized": found})


def _samples(texts: Sequence[str], failing: Sequence[int]) -> list[int]:
    chosen = list(dict.fromkeys(failing))[:_WALKED] or list(range(min(_WALKED, len(texts))))
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    return list(dict.fromkeys([*chosen, by_length[0], by_length[-1]]))


def _folder(target: Target) -> Path | None:
    """Where a target's tokenizer lies."""
    if target.tokenizer:
        return Path(target.tokenizer)
    if target.kind == "triton":
        return None
    path = Path(target.location)
    folder = path if path.is_dir() else path.parent
    return folder if (folder / "tokenizer.json").is_file() else None


def _tokens(folders: Sequence[Path | None], texts: Sequence[str], failing: Sequence[int]) -> Finding | None:
    ours, theirs = folders
    if ours is None or theirs is None or ours == theirs or is_trimmed(theirs):
        return None
    numbers = list(dict.fromkeys([*failing[:_TOKENIZED], *range(min(_TOKENIZED, len(texts)))]))
    chosen = [texts[number] for number in numbers]
    cut = [
        [encoder.encode([text])["input_ids"][0].tolist() for text in chosen]
        for encoder in (Encoder(ours), Encoder(theirs))
    ]
    return explain_tokens(cut[0], cut[1], chosen)


def _output(reference: Target, candidate: Target, texts: Sequence[str], task: Task) -> Finding | None:
    """What was done to the output, from text to logits."""
    found = []
    for target in (reference, candidate):
        with open_runner(target) as runner:
            found.append(infer_all(runner, texts, [[number] for number in range(len(texts))]))
    if not all(task.output in outputs for outputs in found):
        return None
    return explain_output(found[0][task.output], found[1][task.output])


def _labels(folders: Sequence[Path | None]) -> Finding | None:
    known = [folder for folder in folders if folder is not None and (folder / "config.json").is_file()]
    return explain_labels(*map(labels_from_folder, known)) if len(known) == 2 else None


def _walk(
    reference: Target,
    candidate: Target,
    texts: Sequence[str],
    task: Task,
    folders: Sequence[Path | None],
    samples: Sequence[int],
) -> tuple[Localization, Finding | None]:
    """The walk, and what the candidate refuses: it may take messages one at a time only."""
    ours, theirs = folders[0], folders[1]
    assert ours is not None
    trimmed = theirs is not None and is_trimmed(theirs) and theirs != ours
    encoders = [Encoder(ours), Encoder(theirs) if trimmed and theirs is not None else None]
    singles, padded = _batches(texts)
    if trimmed and encoders[1] is not None:  # walked through token by token: the same pieces, by other numbers
        lengths = [encoder.lengths(texts) for encoder in encoders if encoder is not None]
        alike = set(np.flatnonzero(lengths[0] == lengths[1]).tolist())
        singles = [batch for batch in singles if set(batch) <= alike]
        padded = [same for batch in padded if (same := [number for number in batch if number in alike])]
    before, after, kept = open_trace(reference), open_trace(candidate), _kept(reference, candidate)

    def walked(batches: Sequence[Sequence[int]]) -> Localization:
        feeds = [
            [encoder.encode([texts[number] for number in batch]) for batch in batches]
            for encoder in encoders
            if encoder is not None
        ]
        return walk(before, after, feeds[0], task.output, candidate_feeds=feeds[-1], kept=kept, samples=samples)

    try:
        return walked([*padded, *singles]), None
    except ModelError as error:
        refused = Finding(
            part="inputs",
            layer=None,
            module="",
            name="inputs",
            own_sqnr_db=None,
            cosine=None,
            cause=f"it fails on a padded batch, and not on one message: {error}.",
            next_step="Export with a dynamic batch and length: `deploykit export`.",
        )
        return walked(singles), refused


def _batches(texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Some messages alone, and all in batches of unlike lengths."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    count = -(-len(texts) // _BATCH)
    return [[number] for number in order[:: max(1, len(order) // 3)]], [order[start::count] for start in range(count)]


def _kept(reference: Target, candidate: Target) -> dict[int, int] | None:
    """The candidate's layers with those of the reference that they were; None where both have the same."""
    ours, theirs = (_kept_layers(target) for target in (reference, candidate))
    if theirs is None or ours == theirs:
        return None
    return {number: layer if ours is None else ours.index(layer) for number, layer in enumerate(theirs)}


def _kept_layers(target: Target) -> list[int] | None:
    path = Path(target.location)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file():
        return None
    settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    kept = settings.get(KEPT_KEY)
    return [int(layer) for layer in kept] if isinstance(kept, list) else None
