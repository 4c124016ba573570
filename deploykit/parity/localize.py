"""Which part of a model a divergence begins in: a comparison of what each module gives, layer by layer.

A module is judged by its *own* error: what it makes of the reference's values, not of what reached it. Everything
here is pure; `deploykit.parity.walk` runs the models.
"""

from __future__ import annotations

__all__ = [
    "FLOORS_DB",
    "GROSS_DB",
    "Batch",
    "Breaking",
    "Finding",
    "LayerFigures",
    "Localization",
    "compare_points",
    "sqnr_db",
    "suspects",
]

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from deploykit.parity.places import Part, place_of

Values = Mapping[str, NDArray[np.floating]]

FLOORS_DB = {"fp32": 90.0, "fp16": 45.0, "bf16": 25.0, "int8": 60.0}
"""Below these a module's own error is not rounding: float32 modules measure 120 to 145 dB, float16 ones 65 to 75.

For int8 it holds for what int8 graphs compute in float (normalizations); its products are judged against each other.
"""
_WORSE_DB = 10.0
"""How far an int8 product has to be below the median of its kind to stand out."""
GROSS_DB = 8.0
"""An int8 product below this stands out by itself: its error is more than a third of its output."""
_LIMIT_DB = 200.0


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerFigures(_Model):
    """How one module's output differs; dB are signal to noise, over all messages and tokens that are not padding."""

    name: str = Field(description="for people: layer 3 attention output")
    part: Part
    layer: int | None = Field(description="of the reference, from 0; null outside of the stack")
    module: str = Field(description="path of the PyTorch module; with :in behind it, what enters it")
    input_sqnr_db: float | None = Field(description="at the point before; null for the first")
    sqnr_db: float = Field(description="as the candidate runs, with all errors before it")
    cosine: float
    own_sqnr_db: float = Field(description="of the module given the reference's values: its own error alone")
    share: float | None = Field(
        default=None, description="of the output's error, by putting this module's own error alone into the reference"
    )


class Finding(_Model):
    """Where a divergence begins, why, and what to do."""

    part: Part
    layer: int | None
    module: str
    name: str
    own_sqnr_db: float | None = Field(description="null where no module was compared")
    cosine: float | None
    cause: str
    next_step: str


class Breaking(_Model):
    """The fewest modules whose own errors are enough to change what the candidate changes."""

    modules: tuple[str, ...] = Field(description="for people, the one that costs most first")
    share: float = Field(description="of the changed answers that these alone change; of the error where none changed")
    answers: int = Field(description="changed answers among the messages walked through, token by token for some tasks")
    minimal: bool = Field(description="whether it is known that none of them can be left out")

    def line(self) -> str:
        """The set in words."""
        what = f"{self.answers} changed answers" if self.answers else "the output's error"
        fewer = "" if self.minimal else ", or fewer of these"
        return f"enough to break it, with {self.share:.0%} of {what}: {', '.join(self.modules)}{fewer}"


class Localization(_Model):
    """What the walk through both models showed."""

    findings: tuple[Finding, ...] = Field(description="in the order from text to answer; the first is where it begins")
    precision: str = Field(description="that the candidate computes in")
    layers: tuple[LayerFigures, ...] = Field(description="in the order in which they are computed")
    samples: tuple[int, ...] = Field(description="the messages walked through, positions in the data")
    breaking: Breaking | None = Field(default=None, description="the smallest set of modules at fault")


@dataclass(frozen=True)
class Batch:
    """What both models gave for one batch, by the candidate's points.

    Attributes:
        reference: the reference's values.
        free: the candidate's, as it runs.
        own: the candidate's, each module given the reference's values.
        mask: bool [messages, length]; False is padding.
    """

    reference: Values
    free: Values
    own: Values
    mask: NDArray[np.bool_]

    def rows(self, point: str, values: Values) -> NDArray[np.float64]:
        """A point's values of the tokens that are no padding, [tokens or messages, features]."""
        found = np.asarray(values[point], dtype=np.float64)
        if found.ndim >= 3 and found.shape[0] == len(self.mask) and found.shape[1] <= self.mask.shape[1]:
            return found[self.mask[:, : found.shape[1]]].reshape(-1, *found.shape[2:])
        return found.reshape(-1, found.shape[-1])


def compare_points(points: Mapping[str, str], batches: Sequence[Batch], output: str) -> list[LayerFigures]:
    """The figures of each point that both models have.

    Args:
        points: the candidate's, in order, each with the reference's, after which it is named.
        batches: what the models gave.
        output: the point behind the whole model.
    """
    found: list[LayerFigures] = []
    for point, named in points.items():
        place = place_of(named, output)
        wanted, free, own = (
            np.concatenate([batch.rows(point, getattr(batch, side)) for batch in batches])
            for side in ("reference", "free", "own")
        )
        found.append(
            LayerFigures(
                name=place.name,
                part=place.part,
                layer=place.layer,
                module=named,
                input_sqnr_db=found[-1].sqnr_db if found else None,
                sqnr_db=sqnr_db(wanted, free),
                cosine=_cosine(wanted, free),
                own_sqnr_db=sqnr_db(wanted, own),
            )
        )
    return found


def suspects(layers: Sequence[LayerFigures], precision: str) -> list[int]:
    """The positions of points whose own error is more than their precision explains, the first first."""
    floor = FLOORS_DB[precision]
    if precision != "int8":
        return [number for number, each in enumerate(layers) if each.own_sqnr_db < floor]
    ordinary: dict[tuple[str, str], float] = {}
    for each in layers:
        kind = _kind(each)
        alike = [other.own_sqnr_db for other in layers if _kind(other) == kind]
        ordinary[kind] = statistics.median(alike) if len(alike) > 2 else max(alike)
    found = []
    for number, each in enumerate(layers):
        usual = ordinary[_kind(each)]
        if each.part == "layer norm":
            stands_out = each.own_sqnr_db < floor
        else:
            stands_out = each.own_sqnr_db < min(usual - _WORSE_DB, floor) or each.own_sqnr_db < GROSS_DB
        if stands_out:
            found.append(number)
    return found


def sqnr_db(wanted: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    """Signal to noise in dB, from -200 (not a number) to 200 (equal)."""
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return -_LIMIT_DB
    signal = float(np.square(wanted, dtype=np.float64).sum())
    with np.errstate(over="ignore"):
        noise = float(np.square(wanted - found, dtype=np.float64).sum())
    if noise == 0:
        return _LIMIT_DB
    if signal == 0 or not np.isfinite(noise):
        return -_LIMIT_DB
    return float(np.clip(10 * np.log10(signal / noise), -_LIMIT_DB, _LIMIT_DB))


def _cosine(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return 0.0
    norms = float(np.linalg.norm(wanted)) * float(np.linalg.norm(found))
    if norms == 0:
        return float(not wanted.any() and not found.any())
    return float(np.clip((wanted * found).sum() / norms, -1.0, 1.0))


def _kind(each: LayerFigures) -> tuple[str, str]:
    """Points of the same kind in different layers have like errors."""
    if each.layer is None:
        return each.part, each.module
    return each.part, each.name.partition(f"layer {each.layer}")[2]
