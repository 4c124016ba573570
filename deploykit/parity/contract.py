"""Whether two models are asked and answer in the same terms: labels, tokens, inputs, outputs, epsilons."""

from __future__ import annotations

__all__ = [
    "judge_epsilons",
    "judge_interface",
    "judge_labels",
    "judge_tokenizer",
    "judge_tokenizer_settings",
    "judge_trimmed_tokenizer",
]

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from deploykit.errors import ParityError
from deploykit.parity.verdict import Part, Verdict, paired_count
from deploykit.runners.anatomy import Anatomy, TensorForm
from deploykit.runners.texts import TEXTS
from deploykit.tasks.medium import Medium

_DTYPES = {"INT64": ("int64", "int32"), "UINT8": ("uint8",)}
"""What an input may be in a graph, the first the one that it should be."""
_CLOSE = 1e-3
"""An epsilon in a graph is a float32: it differs from the one in config.json by rounding."""


def judge_labels(reference_labels: Sequence[str], candidate_labels: Sequence[str]) -> Verdict:
    """Judge whether both models name their labels alike and in the same order; n is the number of labels.

    Raises:
        ParityError: the reference has no labels.
    """
    if not reference_labels:
        raise ParityError("the reference has no labels to compare", "write id2label into its config.json")
    pairs = list(zip_longest(reference_labels, candidate_labels))
    differing = [index for index, (ours, theirs) in enumerate(pairs) if ours != theirs]
    details: tuple[str, ...] = ()
    if differing:
        first = differing[0]
        ours, theirs = (repr(side) if side is not None else "nothing" for side in pairs[first])
        same_set = sorted(reference_labels) == sorted(candidate_labels)
        details = (
            f"label {first} is {ours} in the reference and {theirs} in the candidate",
            "the same labels in another order" if same_set else "not the same labels",
        )
    return _form_verdict(
        "label order",
        len(differing),
        len(pairs),
        details,
        "Copy id2label from the reference's config.json, in index order.",
        part="labels",
    )


def judge_tokenizer(reference_ids: Sequence[Sequence[int]], candidate_ids: Sequence[Sequence[int]]) -> Verdict:
    """Judge whether both tokenizers give the same token ids, a list for each message, unpadded.

    Raises:
        ParityError: no messages, not the same number of them, or no token in any.
    """
    n = paired_count("tokenized messages", reference_ids, candidate_ids)
    if not any(len(ids) for ids in reference_ids):
        raise ParityError("the reference's tokenizer gave no tokens", "compare on messages that are not blank")
    differing = [index for index in range(n) if list(reference_ids[index]) != list(candidate_ids[index])]
    details: tuple[str, ...] = ()
    if differing:
        details = (
            f"{len(differing)} of {n} messages differ",
            _first_token_difference(differing[0], reference_ids[differing[0]], candidate_ids[differing[0]]),
        )
    return _form_verdict(
        "tokenizer",
        len(differing),
        n,
        details,
        "Use the model's own tokenizer.json, with its truncation length.",
        part="tokenizer",
    )


def judge_trimmed_tokenizer(
    reference_pieces: Sequence[Sequence[str]], candidate_pieces: Sequence[Sequence[str]], max_length: int, prefix: str
) -> Verdict:
    """Judge whether a tokenizer with fewer pieces cuts messages alike or finer, and loses no character.

    Args:
        reference_pieces: of the whole vocabulary, a list for each message, special tokens included.
        candidate_pieces: of the trimmed one.
        max_length: pieces that both truncate to; a message that is cut finer may lose its end.
        prefix: what marks a piece within a word.

    Raises:
        ParityError: no messages, or not the same number of them.
    """
    n = paired_count("tokenized messages", reference_pieces, candidate_pieces)

    def joined(pieces: Sequence[str]) -> str:
        return "".join(piece.removeprefix(prefix) if prefix else piece for piece in pieces[1:-1])

    finer, differing = 0, []
    for index, (ours, theirs) in enumerate(zip(reference_pieces, candidate_pieces, strict=True)):
        finer += list(ours) != list(theirs)
        before, after = joined(ours), joined(theirs)
        ends = ours[:1] == theirs[:1] and ours[-1:] == theirs[-1:]
        if not ends or not (before.startswith(after) if len(theirs) >= max_length else before == after):
            differing.append(index)
    details = [f"{finer} of {n} messages have a word that is cut finer than before"] if finer else []
    if differing:
        first = differing[0]
        details.append(f"message {first}: {' '.join(reference_pieces[first])} -> {' '.join(candidate_pieces[first])}")
    return _form_verdict(
        "trimmed tokenizer",
        len(differing),
        n,
        tuple(details),
        "Trim the vocabulary again, or use prune.vocabulary: all.",
        part="tokenizer",
    )


def judge_interface(candidate: Anatomy, output: str, labels: int, medium: Medium = TEXTS) -> Verdict:
    """Judge what an ONNX graph says of its inputs and outputs; n is the number of things asked.

    What messages become (token ids and attention mask, pixels) has to be whole numbers with batch and length or size
    free, the output float32 with the batch free and one value a label. Whether free axes are free in truth is tried,
    not read: see `probes`.

    Args:
        candidate: of the graph.
        output: the output that carries the answer.
        labels: how many it has.
        medium: what messages are.
    """
    problems = []
    inputs = {form.name: form for form in candidate.inputs}
    needed = [name for name, each in medium.tensors.items() if each.needed]
    problems += [f"no input {name!r}" for name in needed if name not in inputs]
    for form in candidate.inputs:
        kind = medium.tensors.get(form.name, medium.tensors[needed[0]])
        if form.dtype not in _DTYPES[kind.dtype]:
            problems.append(f"input {form.name!r} is {form.dtype}, not {_DTYPES[kind.dtype][0]}")
        problems += _fixed_axes(form, ("batch", *kind.axes))
    found = next((form for form in candidate.outputs if form.name == output), None)
    if found is None:
        problems.append(f"no output {output!r}, only {', '.join(form.name for form in candidate.outputs)}")
    else:
        if found.dtype != "float32":
            problems.append(f"output {output!r} is {found.dtype}, not float32")
        problems += _fixed_axes(found, ("batch",))
        if found.shape and found.shape[-1] not in (None, labels):
            problems.append(f"output {output!r} has {found.shape[-1]} values, and there are {labels} labels")
    verdict = _form_verdict(
        "interface",
        len(problems),
        len(needed) + len(candidate.inputs) + 1,
        tuple(problems)
        or (f"opset {candidate.opset}; {', '.join(map(_described, (*candidate.inputs, *candidate.outputs)))}",),
        "Export it again with the task's inputs and outputs, batch and length dynamic.",
        part="interface",
    )
    return verdict


def judge_epsilons(reference: Anatomy, candidate: Anatomy) -> Verdict | None:
    """Judge whether the normalizations of a graph have an epsilon that the reference has; None where one has none.

    An epsilon that is wrong by far changes no number on most messages, and all of them on one whose variance is small.
    """
    if not reference.epsilons or not candidate.epsilons:
        return None
    known = {value for _, value in reference.epsilons}
    wrong = [
        (name, value)
        for name, value in candidate.epsilons
        if not any(abs(value - other) <= _CLOSE * max(abs(value), abs(other)) for other in known)
    ]
    expected = ", ".join(f"{value:g}" for value in sorted(known))
    details = tuple(f"{name} has epsilon {value:g}, the reference {expected}" for name, value in wrong[:5])
    return _form_verdict(
        "normalization epsilon",
        len(wrong),
        len(candidate.epsilons),
        details,
        "Export with the epsilon of the reference's config.json.",
        part="layer norm",
    )


def judge_tokenizer_settings(reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> Verdict:
    """Judge whether two tokenizers cut and pad alike: the same values under the same names; n is their number."""
    names = sorted({*reference, *candidate})
    differing = [name for name in names if reference.get(name) != candidate.get(name)]
    return _form_verdict(
        "tokenizer settings",
        len(differing),
        max(1, len(names)),
        tuple(
            f"{name} is {reference.get(name)!r} in the reference and {candidate.get(name)!r} in the candidate"
            for name in differing
        )
        or (", ".join(f"{name} {reference[name]!r}" for name in names),),
        "Copy tokenizer.json and tokenizer_config.json from the reference.",
        part="tokenizer",
    )


def _fixed_axes(form: TensorForm, names: Sequence[str]) -> list[str]:
    if len(form.shape) < len(names):
        return []  # it says nothing of its shape
    return [
        f"the {name} axis of {form.name!r} is frozen at {size}"
        for name, size in zip(names, form.shape, strict=False)
        if size is not None
    ]


def _described(form: TensorForm) -> str:
    return f"{form.name} {form.dtype}[{', '.join('?' if size is None else str(size) for size in form.shape)}]"


def _form_verdict(check: str, differing: int, n: int, details: tuple[str, ...], remedy: str, *, part: Part) -> Verdict:
    """The verdict on items that must all be alike."""
    return Verdict(
        check=check,
        outcome="fail" if differing else "pass",
        figure=float(differing),
        bound=None,
        limit=0.0,
        n=n,
        unit="items",
        next_step=remedy if differing else "",
        details=details,
        part=part,
    )


def _first_token_difference(message: int, ours: Sequence[int], theirs: Sequence[int]) -> str:
    shared = min(len(ours), len(theirs))
    position = next((index for index in range(shared) if ours[index] != theirs[index]), shared)
    if position == shared:
        return f"message {message}: {len(theirs)} tokens, not {len(ours)}, alike until one ends"
    return f"message {message}: token {position} is {theirs[position]}, not {ours[position]}"
