"""Why a module's output differs, and what to do, in words: told from the values and what stands in the models."""

from __future__ import annotations

__all__ = ["Evidence", "explain"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit.parity.activations import Facts
from deploykit.parity.localize import FLOORS_DB, GROSS_DB, Batch, Finding, LayerFigures, sqnr_db
from deploykit.parity.places import bare_name

_EXPLAINED_DB = 15.0
"""How much less is left of an error for a relation to explain it..."""
_FITS_DB = 20.0
"""...and how well it has to fit at least."""
_FP16_LARGEST = 65504.0
_OUTLIER = 20.0
"""From how many times the median feature's largest value another's counts as an outlier."""
Rows = NDArray[np.floating]


@dataclass(frozen=True)
class Evidence:
    """All that a cause is told from.

    Attributes:
        points: the candidate's, in order.
        position: of the one that is named, in `points` and `layers`.
        layers: the figures.
        suspects: the positions of all points whose own error is too large.
        batches: what the models gave.
        reference: what stands in the reference.
        candidate: and in the candidate.
        precision: that the candidate computes in.
        missing: layers of the reference that the candidate has not.
        everything: the reference's values at all of its points, padding included.
    """

    points: tuple[str, ...]
    position: int
    layers: tuple[LayerFigures, ...]
    suspects: tuple[int, ...]
    batches: tuple[Batch, ...]
    reference: Facts
    candidate: Facts
    precision: str
    missing: tuple[int, ...]
    everything: Mapping[str, Rows]

    @property
    def figures(self) -> LayerFigures:
        """Of the point that is named."""
        return self.layers[self.position]

    def rows(self) -> tuple[Rows, Rows]:
        """Both models' values at the point, padding left out: the reference's, and the candidate's own."""
        point = self.points[self.position]
        return (
            np.concatenate([batch.rows(point, batch.reference) for batch in self.batches]),
            np.concatenate([batch.rows(point, batch.own) for batch in self.batches]),
        )


def explain(evidence: Evidence) -> Finding:
    """The finding on a point: the first cause that fits, from the most telling."""
    figures = evidence.figures
    dropped = [layer for layer in evidence.missing if _is_behind(figures, layer)]
    if dropped:
        return _finding_of_missing(evidence, dropped)
    cause, next_step = next(_causes(evidence))
    share = (
        f" It makes {figures.share:.0%} of the output's error."
        if evidence.precision == "int8" and figures.share
        else ""
    )
    return Finding(
        part=figures.part,
        layer=figures.layer,
        module=figures.module.partition(":")[0],
        name=figures.name,
        own_sqnr_db=figures.own_sqnr_db,
        cosine=figures.cosine,
        cause=f"{cause}.{share}",
        next_step=f"{next_step[0].upper()}{next_step[1:]}.",
    )


def _is_behind(figures: LayerFigures, layer: int) -> bool:
    return figures.part != "embeddings" and (figures.layer is None or figures.layer > layer)


def _finding_of_missing(evidence: Evidence, dropped: Sequence[int]) -> Finding:
    figures = evidence.figures
    which = f"layer {dropped[0]}" if len(dropped) == 1 else f"layers {dropped[0]} to {dropped[-1]}"
    return Finding(
        part="layer",
        layer=dropped[0],
        module="",
        name=which,
        own_sqnr_db=figures.own_sqnr_db,
        cosine=figures.cosine,
        cause=f"{which} of the reference {'is' if len(dropped) == 1 else 'are'} not in the candidate.",
        next_step="Export the whole model; a pruned one is judged by its metric, not by its numbers.",
    )


def _causes(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Causes that fit with what to do, the most telling first; the last always fits."""
    yield from _of_numbers(evidence)
    yield from _of_parameters(evidence)
    yield from _of_padding(evidence)
    yield from _of_relation(evidence)
    yield from _of_activation(evidence)
    yield from _of_ranges(evidence)
    yield from _of_outliers(evidence)
    yield from _of_many(evidence)
    yield from _ordinary(evidence)


def _of_numbers(evidence: Evidence) -> Iterator[tuple[str, str]]:
    wanted, own = evidence.rows()
    name = evidence.figures.name
    if wanted.shape != own.shape:
        yield (
            f"{name} has {own.shape[-1]} features where the reference has {wanted.shape[-1]}",
            "check which model was exported",
        )
        return
    bad = ~np.isfinite(own)
    if bad.any():
        rows = int(bad.any(axis=-1).sum())
        if evidence.precision == "fp16" and np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0) > _FP16_LARGEST / 4:
            cause = f"{name} overflows float16: the reference reaches {np.abs(wanted).max():.3g}"
        else:
            cause = f"{name} gives NaN or infinity in {rows} of {len(own)} rows, from finite inputs"
        yield cause, "keep this layer in float32, and check its weights for NaN"


def _of_parameters(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What stands in the models: epsilons, and parameters that are another module's."""
    figures = evidence.figures
    module = figures.module.partition(":")[0]
    theirs = {bare_name(path): epsilon for path, epsilon in evidence.candidate.epsilons.items()}
    if figures.part in ("layer norm", "embeddings") and module in evidence.reference.epsilons:
        wanted, found = evidence.reference.epsilons[module], theirs.get(bare_name(module))
        if found is not None and not np.isclose(wanted, found, rtol=1e-3, atol=0):
            yield (
                f"the normalization's epsilon is {found:.3g} where the reference has {wanted:.3g}",
                "export again with the model's own config.json (layer_norm_eps)",
            )
    if figures.layer is None:
        return
    elsewhere = _layer_of_weights(evidence, figures.layer)
    if elsewhere is not None:
        yield (
            f"layer {figures.layer} has the weights of layer {elsewhere}",
            "export again from the checkpoint, and check the order of its layers",
        )
    turned = _turned_weights(evidence, figures.layer)
    if turned is not None:
        yield f"the weight of {turned} is transposed", "export again from the checkpoint"


def _layer_of_weights(evidence: Evidence, layer: int) -> int | None:
    """The reference's layer whose small parameters the candidate's layer has; None for its own, or for none's."""
    ours = {bare_name(name): value for name, value in evidence.reference.parameters.items()}
    theirs = {bare_name(name): value for name, value in evidence.candidate.parameters.items()}
    prefix = f"layer.{layer}."
    own = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
    telling = {name: value for name, value in own.items() if np.ptp(value) > 0}
    layers = sorted({int(name.split(".")[1]) for name in ours if name.startswith("layer.")})

    def agreeing(other: int) -> int:
        pairs = ((ours.get(f"layer.{other}.{name}"), value) for name, value in telling.items())
        return sum(a is not None and a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs)

    found = {other: agreeing(other) for other in layers}
    if not found or not telling:
        return None
    best = max(found, key=lambda other: found[other])
    return best if best != layer and found[best] > max(len(telling) / 2, found.get(layer, 0)) else None


def _turned_weights(evidence: Evidence, layer: int) -> str | None:
    ours = {bare_name(name): (name, value) for name, value in evidence.reference.parameters.items()}
    for name, value in evidence.candidate.parameters.items():
        bare = bare_name(name)
        if value.ndim != 2 or bare not in ours or not bare.startswith(f"layer.{layer}."):
            continue
        path, wanted = ours[bare]
        if wanted.shape == value.shape[::-1] and not np.allclose(wanted, value) and np.allclose(wanted.T, value):
            return path.removesuffix(".weight")
    return None


def _of_padding(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Right on messages without padding, wrong beside longer ones."""
    point = evidence.points[evidence.position]
    sides: dict[bool, list[tuple[Rows, Rows]]] = {True: [], False: []}
    for batch in evidence.batches:
        for row, mask in enumerate(batch.mask):
            one = Batch(
                {point: batch.reference[point][row : row + 1]}, {}, {point: batch.own[point][row : row + 1]}, mask[None]
            )
            sides[bool(mask.all())].append((one.rows(point, one.reference), one.rows(point, one.own)))
    if not sides[True] or not sides[False]:
        return
    alone, padded = (
        sqnr_db(*(np.concatenate([pair[side] for pair in sides[whole]]) for side in (0, 1))) for whole in (True, False)
    )
    if alone >= FLOORS_DB["fp16"] and padded < alone - 20:
        yield (
            f"right on messages without padding ({alone:.0f} dB), wrong on padded ones ({padded:.0f} dB): the "
            "attention mask does not reach it",
            "export with `deploykit export` (the TorchScript exporter loses the mask), and feed attention_mask",
        )


def _of_relation(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A simple relation between the two values: zeros, another order, a factor, a shift along the message."""
    wanted, own = evidence.rows()
    figures = evidence.figures
    fits_from = max(figures.own_sqnr_db + _EXPLAINED_DB, _FITS_DB)
    export_again = "export again from the checkpoint, and compare this module's weights"
    zero = ~own.any(axis=0) & (np.abs(wanted).max(axis=0) > 1e-6)
    if zero.all():
        yield f"{figures.name} is zero in the candidate: it is ignored", export_again
    elif zero.any():
        begin, end = np.flatnonzero(zero)[[0, -1]]
        yield f"{_channels(evidence, int(begin), int(end), int(zero.sum()))} zero in the candidate", export_again
    different = np.square(wanted - own).sum(axis=0)
    if evidence.reference.heads and figures.part == "attention" and evidence.precision != "int8":
        size = wanted.shape[-1] // evidence.reference.heads
        by_head = different.reshape(evidence.reference.heads, size).sum(axis=1) if size else different
        worst = int(by_head.argmax())
        if figures.name.endswith(("attention", "query", "key", "value")) and by_head[worst] > 0.99 * by_head.sum():
            yield f"head {worst} alone differs", export_again
    order = _order(wanted, own)
    if order is not None and sqnr_db(wanted[:, order], own) > fits_from:
        yield "the reference's values in another order", "compare id2label in both config.json, and the weights' order"
    power = float(np.square(wanted).sum())
    factor = float((wanted * own).sum()) / power if power else 1.0
    if abs(factor - 1) > 1e-3 and sqnr_db(factor * wanted, own) > fits_from:
        yield f"the reference's values times {factor:.4g}", "look for a scale that is applied twice, or not at all"
    if figures.part == "embeddings":
        yield from _of_positions(evidence)


def _of_positions(evidence: Evidence) -> Iterator[tuple[str, str]]:
    point = evidence.points[evidence.position]
    if "position" not in evidence.figures.name:
        return
    for batch in evidence.batches:
        wanted, own = batch.reference[point], batch.own[point]
        if wanted.ndim < 2 or wanted.shape[-2] < 3:
            continue
        for by in (1, 2):
            later = sqnr_db(wanted[..., by:, :], own[..., :-by, :]), f"begin at {by} where the reference begins at 0"
            sooner = sqnr_db(wanted[..., :-by, :], own[..., by:, :]), f"are {by} behind the reference's"
            for agreement, words in (later, sooner):
                if agreement > FLOORS_DB["int8"]:
                    yield f"position ids {words}", "check position_ids, and padding_idx in models of the RoBERTa kind"
                    return


def _of_activation(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Another function between the two FFN products."""
    from scipy.special import erf, expit

    figures = evidence.figures
    entering = figures.module.rpartition(".")[0] + ".dense"
    if not figures.name.endswith("activation") or entering not in evidence.everything:
        return
    x = evidence.everything[entering].astype(np.float64)
    point = evidence.points[evidence.position]
    own = np.concatenate([np.asarray(batch.own[point]).reshape(-1, x.shape[-1]) for batch in evidence.batches])
    if own.shape != x.shape:
        return
    functions = {
        "GELU by erf": x * (1 + erf(x / np.sqrt(2))) / 2,
        "GELU by tanh": x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        "ReLU": np.maximum(x, 0),
        "SiLU": x * expit(x),
        "quick GELU": x * expit(1.702 * x),
    }
    fits = {name: sqnr_db(values, own) for name, values in functions.items()}
    best = max(fits, key=lambda name: fits[name])
    if fits[best] > max(FLOORS_DB["int8"], figures.own_sqnr_db + _EXPLAINED_DB):
        yield f"the activation is {best}, not the reference's", "export again with the model's own hidden_act"


def _of_ranges(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Static int8 scales that don't fit the values, of the points that this one is computed from."""
    remedy = "calibrate with messages like those to be served, or keep this product in float"
    for position in range(evidence.position - 1, max(evidence.position - 7, -1), -1):
        point = evidence.points[position]
        if point not in evidence.candidate.ranges:
            continue
        values = np.concatenate([batch.rows(point, batch.reference) for batch in evidence.batches])
        low, high = evidence.candidate.ranges[point]
        least, most = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        held, needed = high - low, most - least
        name = evidence.layers[position].name
        words = (
            f"what enters it ({name}) runs from {least:.3g} to {most:.3g}, "
            f"and its int8 scale holds {low:.3g} to {high:.3g}"
        )
        lost = float(np.mean((values < low) | (values > high)))
        if most <= least:
            continue
        if least < low - 0.25 * needed or most > high + 0.25 * needed:
            shifted = 0.8 < held / needed < 1.25
            yield f"{words}: {'a wrong zero point' if shifted else f'{lost:.1%} of it saturates'}", remedy
            return
        if held > 4 * needed:
            times = held / needed
            yield f"{words}: its steps are {times:.0f} times too coarse, as with another node's scale", remedy
            return


def _of_outliers(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A few values that take all steps of an int8 scale, in what this product is computed from."""
    if evidence.precision != "int8" or evidence.position not in evidence.suspects:
        return
    for position in range(evidence.position - 1, max(evidence.position - 4, -1), -1):
        point = evidence.points[position]
        values = np.abs(np.concatenate([batch.rows(point, batch.reference) for batch in evidence.batches]))
        by_feature = values.max(axis=0)
        most, usual = float(by_feature.max()), float(np.median(by_feature))
        if most > _OUTLIER * usual:
            feature, name = int(by_feature.argmax()), evidence.layers[position].name
            yield (
                f"what enters it ({name}) reaches {most:.3g} in feature {feature}, and half of the features stay "
                f"within {usual:.3g}: the outlier leaves int8 steps of about {most / 127:.2g} to all",
                "keep this product in float: `deploykit quantize` does where it has to (quantize.mend)",
            )
            return


def _of_many(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The same fault all over the model."""
    if evidence.precision == "int8":
        return
    at_fault = {evidence.layers[number].layer for number in evidence.suspects} - {None}
    all_layers = {layer.layer for layer in evidence.layers} - {None}
    parts = {evidence.layers[number].part for number in evidence.suspects}
    if len(at_fault) > 2 and len(at_fault) >= 0.8 * len(all_layers) and len(parts) > 1:
        yield (
            f"{len(at_fault)} of {len(all_layers)} layers differ by themselves: these are other weights",
            "check which checkpoint (which epoch) was exported; another model is judged by its metric, not its numbers",
        )


def _ordinary(evidence: Evidence) -> Iterator[tuple[str, str]]:
    figures = evidence.figures
    if evidence.precision == "int8":
        keep = "keep the worst products in float: `deploykit quantize` finds the fewest that do"
        if evidence.position in evidence.suspects and figures.own_sqnr_db < GROSS_DB:
            yield f"it gives other values than rounding explains ({figures.own_sqnr_db:.0f} dB): a scale is wrong", keep
        if evidence.position in evidence.suspects:
            yield f"rounding to int8 costs {figures.name} more than its like ({figures.own_sqnr_db:.0f} dB)", keep
        yield "no module stands out: the rounding of all adds up, most of it here", keep
    given = "" if figures.input_sqnr_db is None else "given the reference's values "
    yield (
        f"{given}it gives others ({figures.own_sqnr_db:.0f} dB, {evidence.precision} rounding stays above "
        f"{FLOORS_DB[evidence.precision]:.0f}): its weights or its operator differ",
        "export again from the checkpoint; with fusions, compare plain.onnx too",
    )


def _channels(evidence: Evidence, begin: int, end: int, count: int) -> str:
    width = evidence.rows()[0].shape[-1]
    heads = evidence.reference.heads or evidence.candidate.heads
    if evidence.figures.part == "attention" and heads and width % heads == 0:
        size = width // heads
        if count % size == 0 and begin % size == 0 and end - begin + 1 == count:
            first, last = begin // size, end // size
            return f"head {first} is" if first == last else f"heads {first} to {last} are"
    if end - begin + 1 == count:
        return f"features {begin} to {end} of {width} are"
    return f"{count} of {width} features are"


def _order(wanted: Rows, own: Rows) -> NDArray[np.intp] | None:
    """The order of the reference's features that may give the candidate's: by their values in one telling row."""
    if wanted.shape[-1] < 2 or not len(wanted):
        return None
    row = int(np.ptp(wanted, axis=1).argmax())
    ranks = own[row].argsort(kind="stable").argsort(kind="stable")
    order: NDArray[np.intp] = wanted[row].argsort(kind="stable")[ranks]
    return None if np.array_equal(order, np.arange(len(order))) else order
