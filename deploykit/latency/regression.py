"""The verdict on a latency regression: pass, fail, or inconclusive with the time it would take. Pure."""

from __future__ import annotations

__all__ = ["MetricVerdict", "Outcome", "Regression", "Rule", "judge"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploykit.errors import LatencyError
from deploykit.latency.early_stopping import samples_needed
from deploykit.latency.ratios import METRICS, QUANTILES, Metric, Ratio
from deploykit.latency.sequential import boundaries

Outcome = Literal["pass", "fail", "inconclusive"]
_FAR = 50.0
"""A logarithm beyond which a bound says nothing anyway."""
PROCESS_FLOOR = 0.01
"""One file in two processes is 0.3 to 2 % apart in p50 (int8 encoders of 1 and 3 ms on two shared cores)."""


@dataclass(frozen=True)
class Rule:
    """What decides.

    Attributes:
        margin: the slow-down that is too much, as a fraction.
        required: the metrics that must be shown to be within the margin; the others can only fail.
        pass_error: the chance of a pass for what is slower by the margin, in each required metric.
        fail_error: the chance of a fail for what is not slower, in all metrics together.
        floor: how much two processes that run the same file differ, as the standard deviation of a logarithm.
    """

    margin: float = 0.05
    required: tuple[Metric, ...] = ("p50",)
    pass_error: float = 0.02
    fail_error: float = 0.01
    floor: float = PROCESS_FLOOR

    def __post_init__(self) -> None:
        if not 0 < self.margin < 10 or not self.required or not set(self.required) <= set(METRICS):
            raise LatencyError(f"a margin of {self.margin:g} on {list(self.required)} can't be judged")


@dataclass(frozen=True)
class MetricVerdict:
    """The verdict on one metric.

    Attributes:
        ratio: new over old, with its error.
        lower: the bound that says fail where it is above 1.
        upper: the bound that says pass where it is below 1 + margin.
        outcome: of this metric alone.
        required: whether a pass of the whole needs it.
        more: how many times the time spent so far would settle it; 1 where it is settled, None where nobody can tell.
        note: why it is inconclusive, in words.
    """

    ratio: Ratio
    lower: float
    upper: float
    outcome: Outcome
    required: bool
    more: float | None
    note: str = ""

    @property
    def floor(self) -> float:
        """The noise floor: the slow-down, as a fraction, that would just have been shown."""
        return self.ratio.value / self.lower - 1


@dataclass(frozen=True)
class Regression:
    """The verdict on the new side.

    Attributes:
        outcome: fail where a metric fails, pass where all required ones pass.
        metrics: each metric's.
        rule: what decided.
        final: whether looking on would be of no use.
    """

    outcome: Outcome
    metrics: tuple[MetricVerdict, ...]
    rule: Rule
    final: bool

    @property
    def more(self) -> float | None:
        """How many times the time spent so far would settle every required metric; None where nobody can tell."""
        factors = [each.more for each in self.metrics if each.required]
        return None if any(factor is None for factor in factors) else max(factor for factor in factors if factor)


def judge(ratios: Mapping[Metric, Ratio], rule: Rule, fractions: Sequence[float] = (1.0,)) -> Regression:
    """Judge what was measured so far.

    A metric passes where its upper bound is below 1 + margin, and else fails where its lower bound is above 1. Passing
    comes first: a slow-down that is real but shown to be within the margin is none that matters. The bounds are as many
    standard errors away as the spending rule asks at this look. A fail takes all metrics' error together (Bonferroni);
    a pass needs every required one, so that each has the whole error (intersection-union: Berger, Technometrics 24
    (1982), 295-300). A pass ends the measuring early only where no other metric looks slower than the margin: a tail
    takes longer to show than a median.

    Args:
        ratios: of every metric.
        rule: what decides.
        fractions: of the budget used at each look so far, this one last.

    Raises:
        LatencyError: a required metric was not measured, or the fractions do not rise.
    """
    if missing := set(rule.required) - set(ratios):
        raise LatencyError(f"{', '.join(sorted(missing))} was not measured, so there is no verdict")
    last = fractions[-1] >= 1
    pass_z = boundaries(fractions, rule.pass_error)[-1]
    fail_z = boundaries(fractions, rule.fail_error / len(ratios))[-1]
    metrics = tuple(_metric(ratio, rule, pass_z, fail_z, last) for ratio in ratios.values())
    failed = any(each.outcome == "fail" for each in metrics)
    passed = all(each.outcome == "pass" for each in metrics if each.required)
    outcome: Outcome = "fail" if failed else "pass" if passed else "inconclusive"
    suspected = any(each.ratio.value >= 1 + rule.margin or each.ratio.n < _needed(each.ratio) for each in metrics)
    return Regression(outcome, metrics, rule, final=last or outcome == "fail" or (outcome == "pass" and not suspected))


def _metric(ratio: Ratio, rule: Rule, pass_z: float, fail_z: float, last: bool) -> MetricVerdict:
    lower, upper = _bounds(ratio, rule, pass_z, fail_z)
    limit = 1 + rule.margin
    required = ratio.metric in rule.required
    needed = _needed(ratio)
    if ratio.n < needed:
        note = f"{ratio.n} messages a side; {ratio.metric} takes {needed} at least"
        return MetricVerdict(ratio, lower, upper, "inconclusive", required, needed / ratio.n, note)
    outcome: Outcome = "inconclusive"
    if upper < limit:
        outcome = "pass"
    elif lower > 1 and (last or ratio.value >= limit):
        # Before the end, what may yet turn out to be within the margin is not failed for being above 1.
        outcome = "fail"
    more = 1.0 if outcome != "inconclusive" else _more(ratio, rule)
    note = "" if outcome != "inconclusive" else "the interval holds both 1 and the margin"
    return MetricVerdict(ratio, lower, upper, outcome, required, more, note)


def _needed(ratio: Ratio) -> int:
    return samples_needed(QUANTILES[ratio.metric]) if ratio.metric in QUANTILES else 1


def _error(ratio: Ratio, rule: Rule) -> float:
    return float(np.hypot(ratio.error, rule.floor / np.sqrt(ratio.pairs)))


def _bounds(ratio: Ratio, rule: Rule, pass_z: float, fail_z: float) -> tuple[float, float]:
    """The bounds, farther out where the error itself is known from few rounds (Student's t)."""
    from scipy.stats import norm, t

    error, free = _error(ratio, rule), ratio.rounds - 1
    low, high = (min(float(t.isf(norm.sf(z), free)) * error, _FAR) for z in (fail_z, pass_z))
    return float(np.exp(ratio.log - low)), float(np.exp(ratio.log + high))


def _more(ratio: Ratio, rule: Rule) -> float | None:
    """The factor on the time that shrinks the interval to one side of 1 or of the margin, errors falling as 1/sqrt."""
    from scipy.stats import norm

    factors, error = [], _error(ratio, rule)
    if (room := np.log1p(rule.margin) - ratio.log) > 0:
        factors.append((norm.isf(rule.pass_error) * error / room) ** 2)
    if ratio.log > 0:
        factors.append((norm.isf(rule.fail_error / len(METRICS)) * error / ratio.log) ** 2)
    return max(1.0, float(min(factors))) if factors else None
