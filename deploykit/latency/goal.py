"""Whether measured latency, speed-up and size meet a recipe's goal. Pure."""

from __future__ import annotations

__all__ = ["GoalCheck", "judge_goal"]

from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploykit.latency.measure import Samples
from deploykit.recipe import Goal


@dataclass(frozen=True)
class GoalCheck:
    """One limit of the goal, and whether it is met.

    Attributes:
        limit: the recipe's key.
        wanted: its value.
        reached: the figure.
        outcome: `inconclusive` where there are too few samples for the percentile.
        note: in words.
    """

    limit: str
    wanted: float
    reached: float
    outcome: Literal["pass", "fail", "inconclusive"]
    note: str


def judge_goal(goal: Goal, reference: Samples, shipped: Samples, size_mb: float) -> tuple[GoalCheck, ...]:
    """Every limit of the goal on speed and size, judged.

    Args:
        goal: the recipe's `goal` section.
        reference: latencies of the PyTorch model.
        shipped: latencies of what ships, in process, measured in turn with the reference.
        size_mb: of the ONNX file and the tokenizer's files.
    """
    checks = []
    if goal.speedup is not None:
        speedup = reference.p50_ms / shipped.p50_ms
        checks.append(_simple("speedup", goal.speedup, speedup, speedup >= goal.speedup, f"{speedup:.1f}x at p50"))
    if goal.p50_ms is not None:
        p50 = shipped.p50_ms
        checks.append(_simple("p50_ms", goal.p50_ms, p50, p50 <= goal.p50_ms, f"p50 {p50:.2f} ms"))
    if goal.p99_ms is not None:
        checks.append(_percentile("p99_ms", goal.p99_ms, shipped, 0.99, goal.confidence))
    if goal.size_mb is not None:
        checks.append(_simple("size_mb", goal.size_mb, size_mb, size_mb <= goal.size_mb, f"{size_mb:.1f} MB"))
    return tuple(checks)


def _simple(limit: str, wanted: float, reached: float, met: bool, note: str) -> GoalCheck:
    return GoalCheck(limit, wanted, reached, "pass" if met else "fail", note)


def _percentile(limit: str, wanted: float, samples: Samples, q: float, confidence: float) -> GoalCheck:
    """A limit on a percentile: too few samples above it for a true rate of 1 - q (MLPerf's early-stopping rule)."""
    from scipy.stats import binom

    values = np.concatenate(samples.blocks)
    over = int(np.sum(values > wanted))
    reached = samples.quantile_ms(q)
    if binom.cdf(over, len(values), 1 - q) <= 1 - confidence:
        return GoalCheck(limit, wanted, reached, "pass", f"{over} of {len(values)} above {wanted:g} ms")
    if binom.sf(over - 1, len(values), 1 - q) <= 1 - confidence:
        return GoalCheck(limit, wanted, reached, "fail", f"{over} of {len(values)} above {wanted:g} ms")
    needed = max(int(np.ceil(np.log(1 - confidence) / np.log(q))), 4 * len(values))
    note = f"{over} of {len(values)} above {wanted:g} ms: too few messages to tell; set latency.messages to {needed}"
    return GoalCheck(limit, wanted, reached, "inconclusive", note)
