"""Faults before the first layer and behind the last: what tokens go in, and what becomes of the logits."""

from __future__ import annotations

__all__ = ["explain_labels", "explain_output", "explain_tokens"]

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

from deploykit.parity.localize import Finding, sqnr_db
from deploykit.parity.places import Part

_SAME_DB = 60.0
"""Two outputs in such a relation are the same numbers, rounded."""
Outputs = NDArray[np.floating]


def explain_tokens(
    reference: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]], texts: Sequence[str]
) -> Finding | None:
    """What is wrong with the candidate's tokens; None where all are the same.

    Args:
        reference: token ids of each text, unpadded.
        candidate: likewise.
        texts: the texts.
    """
    pairs = [(list(ours), list(theirs)) for ours, theirs in zip(reference, candidate, strict=True)]
    differing = [number for number, (ours, theirs) in enumerate(pairs) if ours != theirs]
    if not differing:
        return None
    share = f"{len(differing)} of {len(pairs)} messages are cut into other tokens"
    remedy = "use the model's own tokenizer.json and tokenizer_config.json"
    if all(theirs == ours[: len(theirs) - 1] + ours[-1:] for ours, theirs in (pairs[number] for number in differing)):
        longest = max(len(theirs) for _, theirs in pairs)
        cause = f"{share}: it truncates to {longest} tokens, where the reference keeps more"
        remedy = "set model_max_length in tokenizer_config.json as the reference has it"
    elif all(ours == theirs[: len(ours) - 1] + theirs[-1:] for ours, theirs in (pairs[number] for number in differing)):
        longest = max(len(ours) for ours, _ in pairs)
        cause = f"{share}: it keeps more than the reference's {longest} tokens"
        remedy = "set model_max_length in tokenizer_config.json as the reference has it"
    elif all(_cut_at_other_side(*pairs[number]) for number in differing):
        cause, remedy = f"{share}: long ones lose their beginning, not their end", "set truncation_side to right"
    else:
        cause = share + _only_where(texts, differing)
    return _finding("tokenizer", "tokenizer", cause, remedy)


def explain_labels(reference: Sequence[str], candidate: Sequence[str]) -> Finding | None:
    """What is wrong with the candidate's label names; None where they are the reference's."""
    if list(reference) == list(candidate):
        return None
    if sorted(reference) == sorted(candidate):
        moved = sum(ours != theirs for ours, theirs in zip(reference, candidate, strict=True))
        cause = f"{moved} of {len(reference)} labels stand at another index"
    else:
        cause = f"{len(candidate)} labels, of which {len(set(candidate) - set(reference))} are none of the reference's"
    return _finding("labels", "labels", cause, "copy id2label from the reference's config.json, in index order")


def explain_output(reference: Outputs, candidate: Outputs) -> Finding | None:
    """What was done to the logits, where they are the reference's but for it; None where it is nothing simple.

    Args:
        reference: the reference's logits [messages, labels].
        candidate: the candidate's output, likewise.
    """
    wanted, found = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if wanted.shape != found.shape or wanted.ndim != 2 or not np.isfinite(found).all():
        return None
    if sqnr_db(wanted, found) > _SAME_DB:
        return None
    where: Part = "post-processing"
    done = {"a softmax": softmax(wanted, -1), "a log-softmax": log_softmax(wanted, -1), "a sigmoid": expit(wanted)}
    for name, values in done.items():
        if sqnr_db(values, found) > _SAME_DB:
            cause = f"the output is the reference's logits behind {name}"
            return _finding(where, "output", cause, "take the logits, before any post-processing")
    power = float(np.square(wanted).sum())
    factor = float((wanted * found).sum()) / power if power else 1.0
    if factor and sqnr_db(factor * wanted, found) > _SAME_DB:
        cause = f"the output is the reference's logits times {factor:.4g}: a temperature of {1 / factor:.4g}"
        return _finding(where, "output", cause, "leave the logits as they are, or scale the reference's too")
    offset = float((found - wanted).mean())
    if sqnr_db(wanted + offset, found) > _SAME_DB:
        cause = f"the output is the reference's logits plus {offset:.4g}"
        return _finding(where, "output", cause, "look for a bias that is added twice")
    row = int(np.ptp(wanted, axis=1).argmax())
    order = wanted[row].argsort(kind="stable")[found[row].argsort(kind="stable").argsort(kind="stable")]
    if sqnr_db(wanted[:, order], found) > _SAME_DB:
        moved = int((order != np.arange(len(order))).sum())
        cause = f"{moved} of {len(order)} outputs are the reference's of another label"
        return _finding("labels", "labels", cause, "compare id2label of both, and the order of the head's rows")
    nearest = np.square(found[:, None] - wanted[None]).sum(axis=-1).argmin(axis=1)
    if len(wanted) > 1 and sqnr_db(wanted[nearest], found) > _SAME_DB:
        moved = int((nearest != np.arange(len(nearest))).sum())
        cause = f"{moved} of {len(nearest)} messages got the answer of another message"
        return _finding("serving", "serving", cause, "check how answers are matched with requests in a batch")
    return None


def _cut_at_other_side(ours: list[int], theirs: list[int]) -> bool:
    """Whether two are ends of the same text: of one length, and not the beginning of each other."""
    overlap = len(ours) // 4
    return (
        len(ours) == len(theirs)
        and ours[0] == theirs[0]
        and ours[-1] == theirs[-1]
        and (
            overlap == 0
            or any(ours[begin : begin + overlap] == theirs[1 : 1 + overlap] for begin in range(2, len(ours)))
        )
    )


def _only_where(texts: Sequence[str], differing: Sequence[int]) -> str:
    """What the differing texts have that the others have not."""
    chosen = set(differing)
    marked = {
        "capital letters: lower-casing differs": [text != text.lower() for text in texts],
        "letters that are not ASCII: normalization differs": [not text.isascii() for text in texts],
    }
    for words, marks in marked.items():
        if {number for number, mark in enumerate(marks) if mark} == chosen:
            return f", those with {words}"
    return ": another vocabulary" if len(differing) > len(texts) / 2 else ""


def _finding(part: Part, name: str, cause: str, next_step: str) -> Finding:
    return Finding(
        part=part,
        layer=None,
        module="",
        name=name,
        own_sqnr_db=None,
        cosine=None,
        cause=f"{cause}.",
        next_step=f"{next_step[0].upper()}{next_step[1:]}.",
    )
