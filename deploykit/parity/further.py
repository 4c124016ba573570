"""Metrics that judge a task beside its first one, as a report holds them."""

from __future__ import annotations

__all__ = ["FurtherMetric", "further_metrics"]

from pydantic import BaseModel, ConfigDict, Field

from deploykit.parity.noninferiority import score_drop_bounds, score_interval
from deploykit.tasks import Scores


class FurtherMetric(BaseModel):
    """A metric that is judged by a check of its own. Fractions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    reference: float
    candidate: float
    interval: tuple[float, float] | None = Field(description="two-sided, of the candidate's")
    drop: float
    drop_upper: float = Field(description="one-sided upper bound of the drop")


def further_metrics(reference: Scores, candidate: Scores, confidence: float) -> tuple[FurtherMetric, ...]:
    """What stands beside the first metric, of both models.

    Raises:
        ParityError: no items, or a confidence out of range.
    """
    return tuple(
        FurtherMetric(
            metric=metric,
            reference=ours.value,
            candidate=theirs.value,
            interval=score_interval(theirs, confidence) if theirs.possible.any() else None,
            drop=ours.value - theirs.value,
            drop_upper=score_drop_bounds(ours, theirs, confidence)[1],
        )
        for metric, ours in reference.beside.items()
        for theirs in (candidate.beside[metric],)
    )
