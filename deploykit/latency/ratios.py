"""New over old: ratios of latency quantiles and of throughput, with errors from a block bootstrap. Pure."""

from __future__ import annotations

__all__ = ["METRICS", "QUANTILES", "Metric", "Ratio", "Round", "ratios", "statistics_of"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import LatencyError

Metric = Literal["p50", "p95", "p99", "throughput"]
METRICS: tuple[Metric, ...] = get_args(Metric)
QUANTILES: dict[Metric, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

_RESAMPLES = 300
_CHUNK = 50
_SEED = 20


@dataclass(frozen=True)
class Round:
    """The same messages timed on both sides, one block right after the other.

    Attributes:
        pair: which pair of processes timed them.
        old_ms: milliseconds of each message, by the old side.
        new_ms: by the new side, in the same order.
    """

    pair: int
    old_ms: NDArray[np.float64]
    new_ms: NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How much slower the new side is in one metric.

    Attributes:
        metric: a quantile of latency, or `throughput`, whose ratio is the time per message.
        old: milliseconds; messages a second where it is throughput.
        new: likewise.
        log: natural logarithm of the slow-down, above 0 where the new side is slower.
        error: its standard error.
        n: messages timed on each side.
        rounds: that they were timed in.
        pairs: of processes.
    """

    metric: Metric
    old: float
    new: float
    log: float
    error: float
    n: int
    rounds: int
    pairs: int

    @property
    def value(self) -> float:
        """New over old: above 1 is slower."""
        return float(np.exp(self.log))


def ratios(rounds: Sequence[Round]) -> dict[Metric, Ratio]:
    """Every metric of the new side over the old one.

    p50 is the median over messages of new/old, each message against itself a moment before or after: what a burst of
    another's load does to one side alone then counts for one message among many, and falls on either side alike. p95
    and p99 are ratios of the quantiles of all messages, throughput that of the time per message. Errors are standard
    deviations over resampled rounds (block bootstrap: Kuensch, *The jackknife and the bootstrap for general stationary
    observations*, Ann. Statist. 17 (1989), 1217-1241): messages within a round are not independent, rounds nearly.
    Where pairs of processes differ among themselves in p50 by more than that explains, their spread is its error; the
    tail of so few messages as a pair has would say nothing.

    Raises:
        LatencyError: there are fewer than two rounds, or one has no messages, unequal sides, or times that are not
            above 0.
    """
    _check(rounds)
    weights = _weights(len(rounds))
    everything = {metric: _logs(rounds, weights, metric) for metric in METRICS}
    pairs = sorted({each.pair for each in rounds})
    once = [[each for each in rounds if each.pair == pair] for pair in pairs]
    n = sum(len(each.old_ms) for each in rounds)
    found: dict[Metric, Ratio] = {}
    for metric, (old, new, logs) in everything.items():
        error = float(np.std(logs[1:], ddof=1))
        if metric == "p50" and len(pairs) > 1:
            by_pair = [float(_logs(part, np.ones((1, len(part)), dtype=np.int64), metric)[2][0]) for part in once]
            error = max(error, float(np.std(by_pair, ddof=1)) / np.sqrt(len(pairs)))
        found[metric] = Ratio(metric, old, new, float(logs[0]), error, n, len(rounds), len(pairs))
    return found


def statistics_of(blocks: Sequence[NDArray[np.float64]]) -> dict[Metric, tuple[float, float]]:
    """Every metric of one side alone, with the standard error of its logarithm.

    Args:
        blocks: milliseconds of each message, by block.

    Raises:
        LatencyError: as `ratios`.
    """
    _check([Round(0, block, block) for block in blocks])
    weights = _weights(len(blocks))
    found: dict[Metric, tuple[float, float]] = {}
    for metric in METRICS:
        resampled = _resampled(blocks, weights, metric)
        found[metric] = float(resampled[0]), float(np.std(np.log(resampled[1:]), ddof=1))
    return found


def _check(rounds: Sequence[Round]) -> None:
    if len(rounds) < 2:
        raise LatencyError("there are fewer than two blocks to judge by", "give it more time or more messages")
    for each in rounds:
        if not len(each.old_ms) or len(each.old_ms) != len(each.new_ms):
            raise LatencyError(f"a round of {len(each.old_ms)} against {len(each.new_ms)} messages can't be compared")
        for side in (each.old_ms, each.new_ms):
            if not (np.isfinite(side).all() and (side > 0).all()):
                raise LatencyError("a time that is not above 0 was measured", "check the worker's clock")


def _logs(
    rounds: Sequence[Round], weights: NDArray[np.int64], metric: Metric
) -> tuple[float, float, NDArray[np.float64]]:
    """The metric of both sides, and the logarithm of the slow-down in every resample."""
    old, new = [each.old_ms for each in rounds], [each.new_ms for each in rounds]
    was, now = _resampled(old, weights, metric), _resampled(new, weights, metric)
    if metric == "p50":
        logs = _quantile([np.log(b / a) for a, b in zip(old, new, strict=True)], weights, 0.5)
    else:
        logs = np.log(was / now) if metric == "throughput" else np.log(now / was)
    return float(was[0]), float(now[0]), logs


def _weights(rounds: int) -> NDArray[np.int64]:
    """How often each resample has each round, [1 + resamples, rounds]; the first is the sample itself."""
    drawn = np.random.default_rng(_SEED).multinomial(rounds, np.full(rounds, 1 / rounds), size=_RESAMPLES)
    return np.vstack([np.ones((1, rounds), dtype=np.int64), drawn])


def _resampled(
    blocks: Sequence[NDArray[np.float64]], weights: NDArray[np.int64], metric: Metric
) -> NDArray[np.float64]:
    if metric == "throughput":
        counts, totals_ms = np.array([len(block) for block in blocks]), np.array([block.sum() for block in blocks])
        return np.asarray(1e3 * (weights @ counts) / (weights @ totals_ms))
    return _quantile(blocks, weights, QUANTILES[metric])


def _quantile(blocks: Sequence[NDArray[np.float64]], weights: NDArray[np.int64], q: float) -> NDArray[np.float64]:
    """The q-quantile of every resample: the least value with at least a share q at or below it."""
    values = np.concatenate(blocks)
    order = np.argsort(values, kind="stable")
    ranked, origin = values[order], np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])[order]
    found = np.empty(len(weights))
    for start in range(0, len(weights), _CHUNK):
        below = np.cumsum(weights[start : start + _CHUNK].astype(np.int32)[:, origin], axis=1)
        wanted = np.ceil(q * below[:, -1])
        places = (below < wanted[:, None]).sum(axis=1)
        found[start : start + _CHUNK] = ranked[places]
    return found
