"""Walks two models layer by layer on the same messages and says where they part."""

from __future__ import annotations

__all__ = ["walk"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.parity.activations import Trace, Values
from deploykit.parity.breaking import find_breaking
from deploykit.parity.causes import Evidence, explain
from deploykit.parity.localize import (
    Batch,
    Breaking,
    Finding,
    LayerFigures,
    Localization,
    compare_points,
    sqnr_db,
    suspects,
)
from deploykit.parity.places import aligned, place_of

_MOST_SHARES = 24
"""Points at most whose share in the output's error is measured: each takes a run of the reference."""
_TELLING = 0.1
"""The share in the output's error from which an int8 product that stands out is named."""
Feed = Mapping[str, NDArray[np.int64]]


def walk(
    reference: Trace,
    candidate: Trace,
    feeds: Sequence[Feed],
    output: str,
    *,
    candidate_feeds: Sequence[Feed] | None = None,
    kept: Mapping[int, int] | None = None,
    samples: Sequence[int] = (),
) -> Localization:
    """Find the first module whose error its inputs don't explain.

    Args:
        reference: what to live up to.
        candidate: what differs.
        feeds: batches of token ids, mask and token types; some with padding, as some faults show only there.
        output: the name of the models' output.
        candidate_feeds: where the candidate's token ids are others; token by token the same messages.
        kept: the candidate's layers by number, with the reference's that each was; None where none was dropped.
        samples: what the messages' positions in the data are.

    Returns:
        at most one finding, and the figures of all modules.

    Raises:
        ModelError: one of them can't run.
    """
    theirs = candidate_feeds or feeds
    runs = [(reference.run(ours), candidate.run(own)) for ours, own in zip(feeds, theirs, strict=True)]
    points = aligned(runs[0][0], runs[0][1], kept)
    points.pop(output, None)
    wanted, free = runs[0]
    points = {point: named for point, named in points.items() if _fitted(wanted[named], free[point]) is not None}
    batches = []
    for (wanted, free), feed, own_feed in zip(runs, feeds, theirs, strict=True):
        given = {point: _fitted(wanted[named], free[point]) for point, named in points.items()}
        fitting = {point: value for point, value in given.items() if value is not None}
        own = candidate.run(own_feed, fitting)
        mask = np.asarray(feed["attention_mask"], dtype=np.bool_)
        batches.append(Batch({**fitting, output: wanted[output]}, free, own, mask))
    points[output] = output
    layers = compare_points(points, batches, output)
    found = suspects(layers, candidate.precision)
    wholes = [wanted for wanted, _ in runs]
    layers = _with_shares(reference, points, batches, feeds, wholes, layers, found, candidate.precision, output)
    if candidate.precision == "int8":  # what is not a number has no share
        found = [number for number in found if (share := layers[number].share) is None or share >= _TELLING]
    missing = _missing_layers(runs[0][0], runs[0][1], kept)
    chosen = _chosen(layers, found, candidate.precision)
    findings: list[Finding] = []
    if chosen is not None:
        evidence = Evidence(
            points=tuple(points),
            position=chosen,
            layers=tuple(layers),
            suspects=tuple(found),
            batches=tuple(batches),
            reference=reference.facts,
            candidate=candidate.facts,
            precision=candidate.precision,
            missing=missing,
            everything={name: np.concatenate([_flat(run[0][name]) for run in runs]) for name in runs[0][0]},
        )
        findings.append(explain(evidence))
    return Localization(
        findings=tuple(findings),
        precision=candidate.precision,
        layers=tuple(layers),
        samples=tuple(samples),
        breaking=_breaking(reference, points, batches, feeds, wholes, layers, output) if findings else None,
    )


def _breaking(
    reference: Trace,
    points: Mapping[str, str],
    batches: Sequence[Batch],
    feeds: Sequence[Feed],
    wholes: Sequence[Values],
    layers: Sequence[LayerFigures],
    output: str,
) -> Breaking | None:
    """The smallest set of modules at fault; None where one of them gives no numbers, and the finding says it all."""
    errors: list[dict[str, NDArray[Any]]] = []
    for batch, whole in zip(batches, wholes, strict=True):
        errors.append({})
        for point, named in points.items():
            own = np.asarray(batch.own[point])
            if point != output and not np.isfinite(own).all():
                return None
            injected = None if point == output else _injected(whole[named], own)
            if injected is not None:
                errors[-1][named] = injected - whole[named]
    likeliest = sorted(layers[:-1], key=lambda layer: (-(layer.share or 0.0), layer.own_sqnr_db))
    return find_breaking(reference, [layer.module for layer in likeliest], errors, batches, feeds, output)


def _chosen(layers: Sequence[LayerFigures], found: Sequence[int], precision: str) -> int | None:
    """The point to name: the first that is at fault; in int8, where all have some error, the one that costs most."""
    if precision != "int8":
        return found[0] if found else None
    broken = [number for number in found if layers[number].share is None]
    weighed = [number for number, each in enumerate(layers) if each.share is not None]
    return broken[0] if broken else max(found or weighed, key=lambda number: layers[number].share or 0.0)


def _with_shares(
    reference: Trace,
    points: Mapping[str, str],
    batches: Sequence[Batch],
    feeds: Sequence[Feed],
    wholes: Sequence[Values],
    layers: Sequence[LayerFigures],
    found: Sequence[int],
    precision: str,
    output: str,
) -> list[LayerFigures]:
    """The figures with each point's share in the output's error, for those whose own error is worth a look."""
    names = list(points)
    order = sorted(range(len(layers) - 1), key=lambda number: (number not in found, layers[number].own_sqnr_db))
    if precision != "int8":
        order = [number for number in order if number in found]
    noise: dict[int, float] = {}
    batch, feed, whole = max(zip(batches, feeds, wholes, strict=True), key=lambda each: each[0].mask.size)
    for number in order[:_MOST_SHARES]:
        point = names[number]
        injected = _injected(whole[points[point]], np.asarray(batch.own[point]))
        if injected is None:
            continue
        found_output = reference.run(feed, {points[point]: injected})[output]
        noise[number] = 10 ** (-sqnr_db(batch.reference[output], found_output) / 10)
    last = len(layers) - 1
    noise[last] = 10 ** (-layers[last].own_sqnr_db / 10)
    total = sum(noise.values()) or 1.0
    return [
        layer.model_copy(update={"share": noise[number] / total}) if number in noise else layer
        for number, layer in enumerate(layers)
    ]


def _injected(wanted: NDArray[Any], own: NDArray[Any]) -> NDArray[Any] | None:
    """The reference's value with what the candidate computed of it put in; None where they don't fit."""
    if not np.isfinite(own).all():
        return None
    if own.shape == wanted.shape:
        return own
    if own.ndim != wanted.ndim or own.shape[1:2] != (1,):
        return None
    injected = wanted.copy()
    injected[:, :1] = own
    return injected


def _fitted(wanted: NDArray[Any], like: NDArray[Any]) -> NDArray[Any] | None:
    """The reference's value as the candidate computes it: of the first token alone, or once for all messages.

    None where the candidate's is of another form, as in a model of fewer heads or columns.
    """
    if wanted.shape == like.shape:
        return wanted
    if wanted.ndim == like.ndim and wanted.shape[-1] == like.shape[-1]:
        if wanted.ndim == 3 and like.shape == (wanted.shape[0], 1, wanted.shape[2]):
            return wanted[:, :1]
        if wanted.shape[0] == 1 and wanted.shape[1:] == like.shape[1:]:
            return np.broadcast_to(wanted, like.shape)
        if like.shape[0] == 1 and wanted.shape[1:] == like.shape[1:] and (wanted == wanted[:1]).all():
            return wanted[:1]
    return None


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)


def _missing_layers(ours: Values, theirs: Values, kept: Mapping[int, int] | None) -> tuple[int, ...]:
    """Layers of the reference that the candidate has not."""
    there = {place_of(point).layer for point in theirs} - {None}
    have = {kept.get(layer, -1) for layer in there if layer is not None} if kept is not None else there
    wanted = {place_of(point).layer for point in ours} - {None}
    return tuple(sorted(layer for layer in wanted - have if layer is not None)) if there else ()
