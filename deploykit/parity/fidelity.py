"""Whether the same weights in another form still give the same numbers."""

from __future__ import annotations

__all__ = [
    "RELATIVE_RMS", "TOLERANCES", "Fidelity", "TensorFigures", "compare_outputs", "tolerance_of", "within_rounding",
]  # fmt: skip

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ParityError
from deploykit.parity.verdict import Outcome, Part, Verdict
from deploykit.runners.anatomy import Precision
from deploykit.runners.base import Outputs

TOLERANCES: Final[Mapping[Precision, float | None]] = MappingProxyType(
    {"fp32": 1e-4, "fp16": 0.1, "bf16": 0.8, "int8": None, "int4": None}
)
"""The largest absolute difference of a logit from fp32 that a precision explains.

fp16 and bf16 are about three times the largest seen with MiniLM-L6 and a 77-class head on 514 BANKING77 messages in
padded batches (0.029 and 0.31, logits up to 19; PyTorch 2.13, x86-64 CPU). int8 and int4 are None: single values of
them may be far off where the answers are not (`RELATIVE_RMS`).
"""

RELATIVE_RMS: Final[Mapping[Precision, float | None]] = MappingProxyType(
    {"fp32": None, "fp16": None, "bf16": None, "int8": 0.25, "int4": 0.5}
)
"""The root mean square difference from fp32, as a share of the logits' spread, that a precision explains.

It finds what is broken, not what is a little worse: that is asked at the task. Good int8 forms of MiniLM-L6 have 0.03
to 0.05 on BANKING77, a signal to noise ratio of 26 to 30 dB, weights alone 0.01 in 8 bits and 0.05 in 4; 0.25 is
12 dB, 0.5 is 6 dB.
"""
_ROUNDINGS: Final = 4.0
"""How many times the reference's own rounding a sample may differ, where that is more than the tolerance.

Some texts lie where a network is steep, and float32 itself is far from float64 there. The reference and the candidate
both round, in other places: were each as far off, the one would be twice as far from the other, and neither knows how
unlucky its own order of sums is. So it is twice that.
"""
_LOGITS = 20.0
"""Logits up to here were behind `TOLERANCES`; rounding grows with their size, and so does what is tolerated."""

_SHOWN = 6
_ALIKE = "name the outputs alike"
_LARGEST = float(np.finfo(np.float64).max)
_SMALLEST = float(np.finfo(np.float32).tiny)
_SINGLE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class TensorFigures:
    """How far one output of the candidate is from the reference's.

    Attributes:
        name: the output.
        dtype: the candidate's.
        shape: of both, the batch axis first.
        max_abs: largest absolute difference; `p50_abs`, `p99_abs` its quantiles over all values.
        max_rel: largest difference relative to the largest absolute reference value of its sample; `p50_rel`,
            `p99_rel` its quantiles.
        relative_rms: root mean square difference as a share of the root mean square of the reference's values; of
            logits each less its sample's mean, which a softmax does not see.
        min_cosine: smallest cosine between the two values of a sample, flattened; None where they are no numbers.
        mean_kl: mean over samples of KL(reference || candidate) of the softmax over the last axis, nats; None where
            the output is not logits. `max_kl`: the largest.
        worst_sample: the index of the sample with the largest absolute difference.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    p50_abs: float
    p99_abs: float
    max_rel: float
    p50_rel: float
    p99_rel: float
    relative_rms: float
    min_cosine: float | None
    mean_kl: float | None
    max_kl: float | None
    worst_sample: int


@dataclass(frozen=True)
class Fidelity:
    """The comparison of two sets of outputs.

    Attributes:
        verdict: its details show the worst sample.
        tensors: figures of each output that could be compared number by number.
        worst_sample: its index; None when every sample is at fault alike (a missing output).
        by_sample: float64 [n], largest absolute difference of each sample; None when there are no numbers.
    """

    verdict: Verdict
    tensors: tuple[TensorFigures, ...]
    worst_sample: int | None
    by_sample: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class _Fault:
    """Something that no tolerance excuses, and the sample that shows it."""

    message: str
    remedy: str
    sample: int | None = None
    part: Part = "model"


def tolerance_of(precision: Precision, reference: Outputs) -> float | None:
    """What a precision explains (`TOLERANCES`) where the reference's values are as large as they are."""
    base = TOLERANCES[precision]
    floats = [values for values in reference.values() if values.dtype.kind == "f" and np.isfinite(values).any()]
    largest = max((float(np.max(np.abs(values[np.isfinite(values)]))) for values in floats), default=0.0)
    return None if base is None else base * max(1.0, largest / _LOGITS)


def compare_outputs(
    reference: Outputs,
    candidate: Outputs,
    tolerance: float | None,
    *,
    logits: Collection[str] = ("logits",),
    relative_rms: float | None = None,
    rounding: NDArray[np.float64] | None = None,
) -> Fidelity:
    """Compare outputs number by number: names, dtypes, shapes, NaN and infinities, then differences.

    Args:
        reference: named arrays, the first axis the samples.
        candidate: the same for the candidate, in the same order.
        tolerance: the largest absolute difference that passes (`TOLERANCES`); None does not judge the differences,
            only what no precision explains: a missing output, another dtype or shape, NaN, infinity.
        logits: the outputs that a softmax over the last axis turns into probabilities.
        relative_rms: the largest `TensorFigures.relative_rms` that passes (`RELATIVE_RMS`); None does not judge it.
        rounding: how far the reference is from itself in float64, [n]; a sample may differ by 4 times that.

    Raises:
        ParityError: the reference has no outputs or no samples, or the tolerance is not a positive number.
    """
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise ParityError(f"tolerance {tolerance} is not a positive number", "1e-4 is right for fp32")
    n = _sample_count(reference)
    faults = [
        *(_Fault(f"output {name!r} is missing", _ALIKE, None, "output") for name in reference if name not in candidate),
        *(
            _Fault(f"output {name!r} is not in the reference", _ALIKE, None, "output")
            for name in candidate
            if name not in reference
        ),
    ]
    tensors: list[TensorFigures] = []
    by_sample: NDArray[np.float64] | None = None
    allowed = None
    if tolerance is not None:
        allowed = np.full(n, tolerance) if rounding is None else np.maximum(tolerance, _ROUNDINGS * rounding)
    for name in reference:
        if name not in candidate:
            continue
        ours, theirs = reference[name], candidate[name]
        faults += _form_faults(name, ours, theirs)
        if ours.shape == theirs.shape and _is_finite(ours).all() and _is_finite(theirs).all():
            differences = _differences(ours, theirs)
            tensors.append(_tensor_figures(name, ours, theirs, differences, name in logits))
            largest = differences.reshape(n, -1).max(axis=1)
            by_sample = largest if by_sample is None else np.maximum(by_sample, largest)
            faults += _value_faults(name, ours, theirs, largest, allowed)
    if relative_rms is not None:
        faults += [
            _Fault(
                f"{tensor.name!r} differs by {tensor.relative_rms:.3g} of its spread (root mean square)",
                "this is more than rounding: find the layer, and keep it in float",
                tensor.worst_sample,
            )
            for tensor in tensors
            if tensor.relative_rms > relative_rms
        ]
    return _conclude(
        reference,
        candidate,
        tolerance=tolerance,
        n=n,
        faults=faults,
        tensors=tuple(tensors),
        by_sample=by_sample,
        allowed=allowed,
        rounding=rounding,
    )


def within_rounding(
    reference: NDArray[Any], candidate: NDArray[Any], rounding: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    """Which samples differ by what the reference's own rounding explains: bool [n]; none where it is not known.

    Args:
        reference: [n, ...].
        candidate: the same for the candidate.
        rounding: how far the reference is from itself in float64, [n].
    """
    if rounding is None:
        return np.zeros(len(reference), dtype=np.bool_)
    largest = _differences(reference, candidate).reshape(len(reference), -1).max(axis=1)
    near: NDArray[np.bool_] = largest <= _ROUNDINGS * rounding
    return near


def _sample_count(reference: Outputs) -> int:
    counts = {len(values) if values.ndim else 0 for values in reference.values()}
    if not counts or 0 in counts or not all(values.size for values in reference.values()):
        raise ParityError("the reference has no outputs to compare", "run it over at least one message")
    if len(counts) > 1:
        raise ParityError(f"the reference's outputs have {sorted(counts)} samples", "run all over the same messages")
    return counts.pop()


def _form_faults(name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> list[_Fault]:
    """What is wrong with an output whatever its values' differences."""
    faults = []
    if ours.dtype != theirs.dtype:
        message = f"{name!r} is {theirs.dtype}, not {ours.dtype}"
        faults.append(_Fault(message, f"cast the output to {ours.dtype}", None, "output"))
    if ours.shape != theirs.shape:
        # Of a shorter batch the first sample without a partner is shown; where all have another shape, the first.
        rows = len(theirs) if theirs.ndim else 0
        sample = 0 if rows == len(ours) else min(rows, len(ours) - 1)
        remedy = "check the number of labels and the batch axis of the export"
        faults.append(
            _Fault(f"{name!r} has shape {list(theirs.shape)}, not {list(ours.shape)}", remedy, sample, "output")
        )
    for side, values in (("reference", ours), ("candidate", theirs)):
        finite = np.atleast_1d(_is_finite(values))
        bad = np.flatnonzero(~finite.all(axis=tuple(range(1, finite.ndim))))
        if bad.size:
            message = f"{name!r} of the {side} has NaN or infinity in {len(bad)} samples, first in {bad[0]}"
            remedy = "keep the overflowing layers in fp32, and check the attention mask of padded rows"
            faults.append(_Fault(message, remedy, int(bad[0])))
    return faults


def _value_faults(
    name: str,
    ours: NDArray[Any],
    theirs: NDArray[Any],
    largest: NDArray[np.float64],
    allowed: NDArray[np.float64] | None,
) -> list[_Fault]:
    """What a difference of values tells by itself, given the largest of each sample, and what that may be."""
    if not largest.any():
        return []
    if ours.dtype.kind != "f":
        message = f"{name!r} is {ours.dtype} and not equal in {np.count_nonzero(largest)} samples"
        return [_Fault(message, "find what computes it", int(largest.argmax()))]
    if allowed is None or not (largest > allowed).any():
        return []
    tolerance = float(allowed.min())
    if _is_permuted(ours, theirs, tolerance):
        message = f"{name!r} has the reference's values in another label order"
        return [_Fault(message, "compare id2label in both config.json", int(largest.argmax()), "output")]
    factor = _factor(ours, theirs, tolerance)
    if factor is not None:
        message = f"{name!r} is the reference's times {factor:.4g}"
        return [_Fault(message, "take the factor, a temperature, out of the graph", int(largest.argmax()), "output")]
    if _is_softmax(ours, theirs):
        message = f"{name!r} holds probabilities, the reference's softmax"
        return [_Fault(message, "export the logits: the softmax comes after them", int(largest.argmax()), "output")]
    return []


def _is_finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are neither NaN nor infinite; whatever is not a float is neither."""
    return np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=np.bool_)


def _differences(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    """Absolute differences; 0 and 1 for what is not a number. Finite, whatever overflows."""
    if ours.dtype.kind not in "fiu" or theirs.dtype.kind not in "fiu":
        return np.asarray(ours != theirs, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.minimum(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)), _LARGEST)


def _tensor_figures(
    name: str, ours: NDArray[Any], theirs: NDArray[Any], differences: NDArray[np.float64], is_logits: bool
) -> TensorFigures:
    n = len(ours)
    numbers = ours.dtype.kind in "fiu" and theirs.dtype.kind in "fiu"
    rows = differences.reshape(n, -1)
    scale = np.abs(ours.astype(np.float64)).reshape(n, -1).max(axis=1, keepdims=True) if numbers else np.ones((n, 1))
    with np.errstate(over="ignore"):
        relative = np.minimum(rows / np.maximum(scale, _SMALLEST), _LARGEST)
    kl = _kl(ours, theirs) if is_logits and numbers else None
    return TensorFigures(
        name=name,
        dtype=str(theirs.dtype),
        shape=theirs.shape,
        max_abs=float(rows.max()),
        p50_abs=float(np.quantile(rows, 0.5)),
        p99_abs=float(np.quantile(rows, 0.99)),
        max_rel=float(relative.max()),
        p50_rel=float(np.quantile(relative, 0.5)),
        p99_rel=float(np.quantile(relative, 0.99)),
        relative_rms=_relative_rms(ours, theirs, is_logits) if numbers else float(rows.mean()),
        min_cosine=_min_cosine(ours, theirs) if numbers else None,
        mean_kl=None if kl is None else float(kl.mean()),
        max_kl=None if kl is None else float(kl.max()),
        worst_sample=int(rows.max(axis=1).argmax()),
    )


def _min_cosine(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The smallest cosine of a sample; two zero vectors agree, a zero and another one don't."""
    units = []
    for values in (ours, theirs):
        rows = values.reshape(len(values), -1).astype(np.float64)
        rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), _SMALLEST)
        units.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SMALLEST))
    cosines = (units[0] * units[1]).sum(axis=1)
    both_zero = ~(units[0].any(axis=1) | units[1].any(axis=1))
    return float(np.clip(np.where(both_zero, 1.0, cosines), -1, 1).min())


def _kl(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    """KL(reference || candidate) of each sample, the mean over any axes between batch and classes; nats."""
    from scipy.special import log_softmax

    log_p, log_q = (log_softmax(values.astype(np.float64), axis=-1) for values in (ours, theirs))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    means: NDArray[np.float64] = np.maximum(divergence.reshape(len(ours), -1).mean(axis=1), 0.0)
    return means


def _is_permuted(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> bool:
    """Whether the candidate has the reference's values in another order along the last axis, the same in all rows."""
    if ours.ndim < 2 or theirs.dtype.kind != "f":
        return False
    a, b = (values.reshape(-1, values.shape[-1]).astype(np.float64) for values in (ours, theirs))
    telling = np.ptp(a, axis=1).argmax()
    order = b[telling].argsort()[a[telling].argsort().argsort()]
    return bool(_differences(a, b[:, order]).max() <= tolerance)


def _factor(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> float | None:
    """The number by which the reference's values would have to be multiplied to give the candidate's, if there is."""
    if theirs.dtype.kind != "f":
        return None
    a, b = (values.astype(np.float64).ravel() for values in (ours, theirs))
    at = int(np.abs(a).argmax())
    factor = float(np.clip(b[at] / a[at], -_SINGLE, _SINGLE)) if a[at] else 0.0
    if factor == 0:
        return None
    with np.errstate(over="ignore"):
        return factor if float(np.abs(a * factor - b).max()) <= tolerance * max(1.0, abs(factor)) else None


def _is_softmax(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Whether the candidate holds the probabilities that the reference's values mean."""
    from scipy.special import softmax

    if ours.ndim < 2 or theirs.dtype.kind != "f":
        return False
    return bool(np.abs(softmax(ours.astype(np.float64), axis=-1) - theirs).max() < 1e-3)


def _relative_rms(ours: NDArray[Any], theirs: NDArray[Any], is_logits: bool) -> float:
    a, b = (values.astype(np.float64) for values in (ours, theirs))
    if is_logits and a.ndim > 1:
        a, b = (values - values.mean(axis=-1, keepdims=True) for values in (a, b))
    with np.errstate(over="ignore"):
        spread, difference = (float(np.sqrt(np.mean(np.square(values)))) for values in (a, a - b))
    return min(difference / max(spread, _SMALLEST), _LARGEST)


def _conclude(
    reference: Outputs,
    candidate: Outputs,
    *,
    tolerance: float | None,
    n: int,
    faults: list[_Fault],
    tensors: tuple[TensorFigures, ...],
    by_sample: NDArray[np.float64] | None,
    allowed: NDArray[np.float64] | None,
    rounding: NDArray[np.float64] | None,
) -> Fidelity:
    largest = max((tensor.max_abs for tensor in tensors), default=None)
    beyond, excused = False, 0
    if tolerance is not None and by_sample is not None and allowed is not None:
        beyond = bool((by_sample > allowed).any())
        excused = int(((by_sample > tolerance) & (by_sample <= allowed)).sum())
    outcome: Outcome = "fail" if faults or beyond else "pass"
    worst = next((fault.sample for fault in faults if fault.sample is not None), None)
    if worst is None and by_sample is not None:
        worst = int((by_sample if allowed is None else by_sample / allowed).argmax())
    details = [fault.message for fault in faults]
    if excused and rounding is not None:
        details.append(
            f"{excused} of {n} differ by more than {tolerance:.2g} where float32 itself is up to {rounding.max():.2g} "
            f"from float64; {_ROUNDINGS:g} times that is let pass"
        )
    if worst is not None:
        shared = (name for name in reference if name in candidate)
        details += [f"worst sample {worst}: {_shown(name, worst, reference, candidate)}" for name in shared]
    remedies = list(dict.fromkeys(fault.remedy for fault in faults))
    if beyond and not remedies:
        remedies = ["compare the worst sample alone and unpadded, then layer by layer"]
    verdict = Verdict(
        check="fidelity",
        outcome=outcome,
        figure=largest,
        bound=None,
        limit=tolerance,
        n=n,
        unit="absolute difference",
        next_step=_sentence("; ".join(remedies)),
        details=tuple(details),
        part=next((fault.part for fault in faults if fault.part != "model"), "model"),
    )
    return Fidelity(verdict=verdict, tensors=tensors, worst_sample=worst, by_sample=by_sample)


def _shown(name: str, sample: int, reference: Outputs, candidate: Outputs) -> str:
    """One sample of an output on both sides: the values that differ most, with their positions."""
    ours, theirs = reference[name], candidate[name]
    if theirs.ndim == 0 or sample >= len(theirs) or sample >= len(ours):
        return f"{name!r} has no such sample in the candidate"
    a, b = ours[sample].ravel(), theirs[sample].ravel()
    if a.shape != b.shape:
        return f"{name!r} has {a.size} values in the reference, {b.size} in the candidate"
    order = np.argsort(-np.nan_to_num(_differences(a, b), nan=np.inf), kind="stable")[:_SHOWN]
    values = ", ".join(f"[{index}] {_value(a[index])} -> {_value(b[index])}" for index in order)
    return f"{name!r} {values}"


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, np.floating) else repr(value)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
