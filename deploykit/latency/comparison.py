"""Two artefacts, or one and a baseline, measured until the rule has its verdict."""

from __future__ import annotations

__all__ = ["Comparison", "compare_with_baseline", "compare_live"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.events import Listener, ignore
from deploykit.latency.baseline import Baseline, BaselineMetric, drift_of
from deploykit.latency.paired import Measured, measure_rounds
from deploykit.latency.ratios import Metric, Ratio, Round, ratios, statistics_of
from deploykit.latency.regression import Regression, Rule, judge
from deploykit.runners import Message, Target

OLD, NEW = "old", "new"


@dataclass(frozen=True)
class Comparison:
    """The verdict, and what it rests on.

    Attributes:
        regression: the verdict.
        measured: what was timed.
        live: whether the old side was timed in turn with the new one; else it is a baseline's.
    """

    regression: Regression
    measured: Measured
    live: bool

    @property
    def needed_s(self) -> float | None:
        """Seconds that a verdict would take at what was seen; None where it is there, or no time would do."""
        if self.regression.outcome != "inconclusive" or self.regression.more is None:
            return None
        return self.regression.more * self.measured.seconds


def compare_live(
    old: Target,
    new: Target,
    messages: Sequence[Message],
    rule: Rule,
    *,
    budget_s: float,
    commands: Mapping[str, Sequence[str]] | None = None,
    listener: Listener = ignore,
) -> Comparison:
    """Time both in turn until the verdict is clear or the budget is used.

    Args:
        old: what to live up to.
        new: what is on trial.
        messages: real ones.
        rule: what decides.
        budget_s: seconds, starting included.
        commands: of `old` and `new` where another program runs them.
        listener: hears of progress.

    Raises:
        LatencyError: there is nothing to time, or a target could not be run.
    """
    verdicts: list[Regression] = []

    def enough(measured: Measured) -> bool:
        verdicts.append(judge(ratios(rounds_of(measured)), rule, measured.fractions))
        return verdicts[-1].final

    measured = measure_rounds(
        {OLD: old, NEW: new}, messages, enough, budget_s=budget_s, commands=commands, listener=listener
    )
    return Comparison(verdicts[-1], measured, live=True)


def rounds_of(measured: Measured) -> list[Round]:
    """The rounds of a measurement of `old` and `new`."""
    return [Round(pair, times[OLD], times[NEW]) for pair, times in measured.rounds]


def compare_with_baseline(
    baseline: Baseline,
    new: Target,
    messages: Sequence[Message],
    rule: Rule,
    *,
    budget_s: float,
    listener: Listener = ignore,
) -> Comparison:
    """Time the new side alone, against what was written down.

    Raises:
        LatencyError: as `compare_live`.
    """
    verdicts: list[Regression] = []

    def enough(measured: Measured) -> bool:
        verdicts.append(judge(_against(baseline.metrics, measured), rule, measured.fractions))
        return verdicts[-1].final

    measured = measure_rounds({NEW: new}, messages, enough, budget_s=budget_s, listener=listener)
    return Comparison(verdicts[-1], measured, live=False)


def _against(baseline: Mapping[Metric, BaselineMetric], measured: Measured) -> dict[Metric, Ratio]:
    """Ratios whose error holds how far the machine drifts, on either day: no alternation has cancelled that."""
    blocks = [times[NEW] for _, times in measured.rounds]
    drift = drift_of(blocks)
    found: dict[Metric, Ratio] = {}
    for metric, (value, error) in statistics_of(blocks).items():
        then = baseline[metric]
        change = np.log(value / then.value)
        found[metric] = Ratio(
            metric,
            then.value,
            value,
            log=float(-change if metric == "throughput" else change),
            error=float(np.sqrt(error**2 + drift**2 + then.error**2 + then.drift**2)),
            n=min(then.n, sum(map(len, blocks))),
            rounds=min(then.blocks, len(blocks)),
            pairs=1,
        )
    return found
