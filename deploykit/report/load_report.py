"""Runs under load for people and machines."""

from __future__ import annotations

__all__ = ["cost_per_million", "load_json", "load_lines", "split_words"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from deploykit.latency.scenarios import Tried


def cost_per_million(hourly_price: float, answered_per_s: float) -> float:
    """What a million messages cost on a machine of this hourly price that answers so many a second."""
    return hourly_price * 1e6 / (answered_per_s * 3600)


def load_json(best_per_s: float | None, tried: Sequence[Tried], hourly_price: float | None) -> dict[str, Any]:
    """Plain JSON values, with names that stay."""
    return {"best_per_s": best_per_s, "runs": [_run(each, hourly_price) for each in tried]}


def _run(each: Tried, hourly_price: float | None) -> dict[str, Any]:
    result, verdict = each.result, each.verdict
    quantiles = (
        {f"p{100 * q:g}_ms": float(np.quantile(result.latencies_ms, q)) for q in (0.5, 0.95, 0.99)}
        if len(result.latencies_ms)
        else {}
    )
    found = {
        "scenario": result.scenario,
        "clients": result.clients or None,
        "offered_per_s": result.offered_per_s,
        "answered_per_s": result.answered_per_s,
        "verdict": verdict.outcome,
        "note": verdict.note,
        **quantiles,
        "claimed_p99_ms": verdict.claimed_p99_ms,
        "service_p50_ms": float(np.median(result.service_ms)) if len(result.service_ms) else None,
        "client_lag_p99_ms": float(np.quantile(result.lags_ms, 0.99)) if len(result.lags_ms) else None,
        "n": len(result.latencies_ms),
        "rejected": result.rejected,
        "errors": result.errors,
        "split_ms": result.split_ms,
        "breakdown_ms": result.breakdown_ms,
        "flags": list(result.flags),
    }
    if hourly_price is not None and result.answered_per_s:
        found["cost_per_million"] = cost_per_million(hourly_price, result.answered_per_s)
    return found


def split_words(split_ms: Mapping[str, float]) -> str:
    """Where a mean request's time went, in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in split_ms.items()) + " ms"


def _curve(points: Sequence[tuple[int, float]]) -> list[str]:
    """Answers a second against clients, as bars."""
    most = max(rate for _, rate in points) or 1.0
    return [
        f"{clients:>5} clients {'█' * max(1, round(40 * rate / most))} {rate:.0f} a second" for clients, rate in points
    ]


def load_lines(best_per_s: float | None, tried: Sequence[Tried], hourly_price: float | None) -> list[str]:
    """What happened, in words."""
    lines = []
    for each in tried:
        found = _run(each, hourly_price)
        rate = f"{found['offered_per_s']:.0f} offered, " if found["scenario"] == "server" else ""
        rate = f"{found['clients']} clients: " if found["clients"] else rate
        times = f"p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms" if found["n"] else "no answer"
        if found["scenario"] == "offline":
            times = f"{found['n']} messages"
        lines.append(
            f"{rate}{found['answered_per_s']:.0f} answered a second, {times}: {found['verdict']}, {found['note']}"
        )
        if "cost_per_million" in found:
            lines.append(f"  a million messages cost {found['cost_per_million']:.2f} at {hourly_price:g} an hour")
        if each.result.split_ms:
            lines.append(f"  of a mean request: {split_words(each.result.split_ms)}")
    if len(tried) > 1 and all(each.result.clients for each in tried):
        lines += _curve([(each.result.clients, each.result.answered_per_s) for each in tried])
    last = tried[-1].result
    if last.breakdown_ms:
        lines.append("in the server: " + ", ".join(f"{name} {value:.2f}" for name, value in last.breakdown_ms.items()))
    lines += [f"flag: {flag}" for flag in last.flags]
    if best_per_s is not None:
        lines.append(f"the highest rate that holds the limit: {best_per_s:.0f} a second")
    return lines
