"""What a monitor found, as JSON with stable names and as lines."""

from __future__ import annotations

__all__ = ["Monitored", "alert_words", "monitor_json", "monitor_lines"]

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.monitor import Alert, Judgement, SurgeRule, Window, WindowPoint

_STATES = {"open": "goes on", "ended": "has ended", "settled": "has become what is usual"}


@dataclass(frozen=True)
class Monitored:
    """What a call of the monitor found.

    Attributes:
        judgement: of all windows that are closed.
        windows: those, as counted.
        asked: messages that were classified by this call.
        open: messages in the window that may still get some, which is not judged yet.
        rule: what counted as a surge.
    """

    judgement: Judgement
    windows: tuple[Window, ...]
    asked: int
    open: int
    rule: SurgeRule


def monitor_json(found: Monitored) -> dict[str, Any]:
    """The result; shares are fractions, times are of the stream's clock."""
    judgement, rule = found.judgement, found.rule
    return {
        "verdict": judgement.verdict,
        "negative": rule.negative,
        "window_s": rule.window_s,
        "false_alarm_days": rule.false_alarm_days,
        "limit": rule.limit,
        "classified": found.asked,
        "open_messages": found.open,
        "learning_windows": judgement.learning,
        "windows": [
            _point_json(point) | {"counts": _counts(window.counts)}
            for point, window in zip(judgement.points, found.windows, strict=True)
        ],
        "alerts": [_alert_json(alert) for alert in judgement.alerts],
    }


def monitor_lines(found: Monitored) -> list[str]:
    """The result in words, a line for each alert and one for all, the last."""
    judgement, windows = found.judgement, found.windows
    if not windows:
        return [f"{found.open:,} messages in a window that is not over: nothing to judge yet"]
    messages = sum(point.messages for point in judgement.points)
    negatives = sum(point.negatives for point in judgement.points)
    span = f"{_when(windows[0].start)} to {_when(windows[-1].start)}"
    lines = [
        f"{messages:,} messages in {len(windows):,} windows, {span}:"
        f" {_share(negatives, messages)} {found.rule.negative}"
    ]
    if found.open:
        lines.append(f"{found.open:,} messages in the newest window, which is not over")
    lines += [alert_words(alert) for alert in judgement.alerts]
    if judgement.verdict == "inconclusive":
        need = f"{judgement.learning:,} more windows" if judgement.learning else "more messages"
        return [*lines, f"what is usual is not known yet: it takes {need}"]
    every = f"by chance at most once in {found.rule.false_alarm_days:g} days, in the mean"
    found_words = {"pass": "no surge", "fail": "a surge of negatives"}[judgement.verdict]
    return [*lines, f"{found_words} (an alert comes {every})"]


def alert_words(alert: Alert) -> str:
    """An alert in one line."""
    when = f"since {_when(alert.began)}" if alert.state == "open" else f"from {_when(alert.began)}"
    if alert.ended is not None:
        when += f" until {_when(alert.ended)}"
    topics = ", ".join(f"{each.topic} ({each.negatives} for {each.usual:.0f})" for each in alert.topics)
    return (
        f"surge {when}, found with the window of {_when(alert.found)}: {alert.negatives:,} negatives where"
        f" {alert.usual:.0f} are usual ({alert.ratio:.1f}x){f'; {topics}' if topics else ''}; it {_STATES[alert.state]}"
    )


def _point_json(point: WindowPoint) -> dict[str, Any]:
    low, high = None, None
    if point.usual is not None and point.half_width is not None:
        low, high = max(0.0, point.usual - point.half_width), min(1.0, point.usual + point.half_width)
    return {
        "start": point.start.isoformat(),
        "messages": point.messages,
        "negatives": point.negatives,
        "share": point.share,
        "usual": point.usual,
        "usual_low": low,
        "usual_high": high,
        "evidence": point.evidence,
    }


def _alert_json(alert: Alert) -> dict[str, Any]:
    return {
        "state": alert.state,
        "began": alert.began.isoformat(),
        "found": alert.found.isoformat(),
        "ended": None if alert.ended is None else alert.ended.isoformat(),
        "windows": alert.windows,
        "messages": alert.messages,
        "negatives": alert.negatives,
        "usual": alert.usual,
        "ratio": alert.ratio,
        "evidence": alert.evidence,
        "leading_topic": alert.leading,
        "topics": [
            {"topic": each.topic, "messages": each.messages, "negatives": each.negatives, "usual": each.usual,
             "evidence": each.evidence}
            for each in alert.topics
        ],
    }  # fmt: skip


def _counts(counts: Any) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (topic, sentiment), count in counts.items():
        nested.setdefault(topic, {})[sentiment] = count
    return nested


def _when(time: datetime) -> str:
    return f"{time:%Y-%m-%d}" if (time.hour, time.minute) == (0, 0) else f"{time:%Y-%m-%d %H:%M}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
