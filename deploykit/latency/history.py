"""Latency over versions: which baselines belong together, and where it changed. Pure but for reading the files."""

from __future__ import annotations

__all__ = ["History", "Version", "history_of", "read_history", "sparkline"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from deploykit.errors import LatencyError
from deploykit.latency.baseline import Baseline, read_baseline

_Z = 3.0
_LEAST = 0.03
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Version:
    """One baseline among others.

    Attributes:
        baseline: its figures.
        changed: its p50 over that of the versions since the last change, where it is a change; else None.
    """

    baseline: Baseline
    changed: float | None

    @property
    def label(self) -> str:
        """What the user calls it, or when it was made."""
        return self.baseline.version or self.baseline.created


@dataclass(frozen=True)
class History:
    """The versions that can be compared, oldest first, and how many others were left out."""

    versions: tuple[Version, ...]
    elsewhere: int


def read_history(path: Path) -> list[Baseline]:
    """The baselines of a folder (every .json in it), or of a file of JSON lines.

    Raises:
        LatencyError: one is no baseline, or there is none.
    """
    if path.is_dir():
        found = [read_baseline(each) for each in sorted(path.glob("*.json"))]
    else:
        found = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LatencyError(f"{path} can't be read: {error}", "name a folder of baselines, or JSON lines") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    found.append(Baseline.model_validate_json(line))
                except ValidationError as error:
                    first = error.errors(include_url=False)[0]["msg"]
                    raise LatencyError(f"{path}, line {number}: no baseline of this version: {first}") from error
    if not found:
        raise LatencyError(
            f"{path} holds no baseline", "make one: deploykit bench TARGET --data FILE --save-baseline FILE"
        )
    return found


def history_of(baselines: Sequence[Baseline]) -> History:
    """Those made as the newest was (machine, settings, messages), oldest first, with the changes marked.

    A version is a change where its p50 differs from the mean of those since the last change by over 3 standard errors,
    the drift of its session among them, and over 3 %.

    Raises:
        LatencyError: there are none.
    """
    if not baselines:
        raise LatencyError("there is no baseline")
    ordered = sorted(baselines, key=lambda each: each.created)
    newest = ordered[-1]
    alike = [
        each
        for each in ordered
        if (each.machine, each.settings, each.data) == (newest.machine, newest.settings, newest.data)
    ]
    versions: list[Version] = []
    segment: list[Baseline] = []
    for each in alike:
        change = _change(segment, each)
        if change is not None:
            segment = []
        segment.append(each)
        versions.append(Version(each, change))
    return History(tuple(versions), len(ordered) - len(alike))


def _change(segment: Sequence[Baseline], new: Baseline) -> float | None:
    if not segment:
        return None
    logs = np.log([each.metrics["p50"].value for each in segment])
    errors = np.array([_error(each) for each in segment])
    apart = float(np.log(new.metrics["p50"].value) - logs.mean())
    error = float(np.hypot(_error(new), np.sqrt((errors**2).sum()) / len(errors)))
    return float(np.exp(apart)) if abs(apart) > max(_Z * error, np.log1p(_LEAST)) else None


def _error(baseline: Baseline) -> float:
    figure = baseline.metrics["p50"]
    return float(np.hypot(figure.error, figure.drift))


def sparkline(values: Sequence[float]) -> str:
    """The values as bars from the least to the greatest, a character each."""
    least, greatest = min(values), max(values)
    if greatest == least:
        return _BARS[0] * len(values)
    return "".join(_BARS[round((value - least) / (greatest - least) * (len(_BARS) - 1))] for value in values)
