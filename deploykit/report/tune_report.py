"""A search of Triton settings for people and machines."""

from __future__ import annotations

__all__ = ["tune_json", "tune_lines", "tune_page"]

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from deploykit.report.load_page import Curve, curve_page, picture
from deploykit.report.load_report import split_words

if TYPE_CHECKING:
    from deploykit.latency.tune_history import Point, Trial, Tuned

_BAR = 30


def tune_json(tuned: Tuned, p99_limit_ms: float) -> dict[str, Any]:
    """Plain JSON values, with names that stay."""
    return {
        "verdict": tuned.verdict,
        "p99_limit_ms": p99_limit_ms,
        "written": tuned.written,
        "best": _trial(tuned.best),
        "before": _trial(tuned.before),
        "trials": [_trial(each) for each in tuned.trials],
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "settings": asdict(trial.settings),
        "best_per_s": trial.best_per_s,
        "changed_answers": trial.changed_answers,
        "points": [asdict(point) for point in trial.points],
    }


def tune_lines(tuned: Tuned, p99_limit_ms: float) -> list[str]:
    """What was found, the curve of the settings that are delivered, and what would have to give."""
    best, before = tuned.best, tuned.before
    lines = [f"{number:>3}. {_rate(each)}: {each.words}" for number, each in enumerate(tuned.trials, 1)]
    lines += ["", f"p99 against rate, {best.words} (limit {p99_limit_ms:g} ms):"]
    lines += [_bar(point, p99_limit_ms) for point in best.points]
    highest = next((point for point in reversed(best.points) if point.outcome == "pass"), None)
    if tuned.met:
        gain = f", {_ratio(best, before)} of those in use" if before.settings != best.settings else ""
        lines.append(f"the highest rate that holds: {best.best_per_s:.0f} a second{gain}")
        if highest is not None and highest.split_ms:
            lines.append(f"  of a mean request there: {split_words(highest.split_ms)}")
        return lines
    if tuned.verdict == "inconclusive":
        lines.append("rates held during the search, and none when it was measured again: this machine is disturbed")
        lines.append("the package stays as it is; run it again when the machine is quiet: no trial is measured twice")
        return lines
    lines.append(f"no settings hold p99 below {p99_limit_ms:g} ms; these come nearest: {best.lowest_p99_ms:.3g} ms")
    split_ms = best.points[0].split_ms if best.points else {}
    if split_ms:
        most = max(split_ms, key=lambda name: split_ms[name])
        lines.append(f"  of a mean request: {split_words(split_ms)}")
        lines.append(f"  what would have to give: the limit (--p99 {_above(best)}), or {_REMEDIES[most]}")
    return lines


_REMEDIES = {
    "client": "the client's load: run it on another machine",
    "network": "the way to the server and its protocol: try the other one (--protocol), or move the client nearer",
    "queue": "the number of cores: messages wait for an instance",
    "batch_wait": "the delay: messages wait for company",
    "compute": "the model: a smaller one is faster (deploykit prune, goal.p99_ms in a recipe)",
}


def _above(trial: Trial) -> str:
    return f"{1.2 * (trial.lowest_p99_ms or 0.0):.2g}ms"


def _rate(trial: Trial) -> str:
    if trial.changed_answers:
        return "changes answers"
    if trial.best_per_s is None:
        return f"p99 {trial.lowest_p99_ms:.3g} ms at best" if trial.lowest_p99_ms is not None else "did not run"
    return f"{trial.best_per_s:.0f} a second"


def _ratio(best: Trial, before: Trial) -> str:
    if not before.best_per_s or not best.best_per_s:
        return "where none held with the settings"
    return f"{best.best_per_s / before.best_per_s:.2f}x"


def _bar(point: Point, limit_ms: float) -> str:
    if point.p99_ms is None:
        return f"{point.rate_per_s:>8.0f} a second: no answer"
    bar = "█" * max(1, min(2 * _BAR, round(_BAR * point.p99_ms / limit_ms)))
    return f"{point.rate_per_s:>8.0f} a second {bar} {point.p99_ms:.1f} ms, {point.outcome}"


def tune_page(name: str, tuned: Tuned, p99_limit_ms: float) -> str:
    """The curves of the settings that are delivered and of those in use, and every trial; HTML that loads nothing."""
    shown = [tuned.best] if tuned.before.settings == tuned.best.settings else [tuned.best, tuned.before]
    curves = [
        Curve(
            label,
            tuple((point.rate_per_s, point.p99_ms) for point in trial.points if point.p99_ms is not None),
        )
        for label, trial in zip(("found", "in use"), shown, strict=False)
    ]
    rows = [
        (
            _rate(each),
            str(len(each.points)),
            each.words + (" (delivered)" if each.settings == tuned.best.settings else ""),
        )
        for each in tuned.trials
    ]
    return curve_page(
        f"Settings of {name}",
        f"p99 against the rate of messages, limit {p99_limit_ms:g} ms. Delivered: {tuned.best.words}.",
        [picture([curve for curve in curves if curve.points], across="messages a second", up="ms", limit=p99_limit_ms)],
        ("highest rate that holds", "runs", "settings"),
        rows,
    )
