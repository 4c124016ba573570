"""What tuning measured: trials, kept in a file of JSON lines so that a search goes on where it was cut off."""

from __future__ import annotations

__all__ = ["Point", "Trial", "TuneHistory", "Tuned", "settings_words"]

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from deploykit.artifacts.atomic import disk_errors
from deploykit.triton.package import PackageSettings


@dataclass(frozen=True)
class Point:
    """One run of the open loop.

    Attributes:
        rate_per_s: at which messages were due.
        answered_per_s: answers a second.
        p99_ms: of all latencies; None without an answer.
        outcome: as judged against the limit.
        n: answers.
        split_ms: where the mean latency went.
    """

    rate_per_s: float
    answered_per_s: float
    p99_ms: float | None
    outcome: Literal["pass", "fail", "inconclusive", "invalid"]
    n: int
    split_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Settings, and what a fresh server did with them.

    Attributes:
        settings: of the package.
        points: of each rate that was tried, ascending; none where the server did not start.
        changed_answers: whether some message got another answer than with the first settings.
    """

    settings: PackageSettings
    points: tuple[Point, ...]
    changed_answers: bool = False

    @property
    def best_per_s(self) -> float | None:
        """The highest rate that held; None where none did."""
        return max((point.rate_per_s for point in self.points if point.outcome == "pass"), default=None)

    @property
    def score(self) -> float | None:
        """What a model of rates is told: below every rate that was tried where none held; None without a run."""
        if self.best_per_s is not None or not self.points:
            return self.best_per_s
        return self.points[0].rate_per_s / 2

    @property
    def lowest_p99_ms(self) -> float | None:
        """The least p99 at any rate; None without an answer."""
        return min((point.p99_ms for point in self.points if point.p99_ms is not None), default=None)

    @property
    def words(self) -> str:
        """The settings in one line."""
        return settings_words(self.settings)


@dataclass(frozen=True)
class Tuned:
    """How a search ended.

    Attributes:
        best: the settings that are delivered, with the measurement at the end.
        before: those that were in use, likewise.
        trials: all that were measured.
        met: whether some rate held the limit.
        written: whether the package was changed.
    """

    best: Trial
    before: Trial
    trials: tuple[Trial, ...]
    met: bool
    written: bool

    @property
    def verdict(self) -> Literal["pass", "fail", "inconclusive"]:
        """Inconclusive where rates held during the search, and none when it was measured again."""
        if self.met:
            return "pass"
        return "inconclusive" if any(trial.best_per_s is not None for trial in self.trials) else "fail"


def settings_words(settings: PackageSettings) -> str:
    """Settings in one line."""
    words = [
        settings.layout,
        f"{settings.instances} instance{'s' if settings.instances > 1 else ''}",
        f"{settings.threads or 'all'} thread{'' if settings.threads == 1 else 's'}",
        f"batches to {settings.max_batch_size}",
    ]
    if settings.queue_delay_us:
        preferred = ", ".join(map(str, settings.preferred_batch_size))
        words.append(f"{settings.queue_delay_us} us delay" + (f", preferring {preferred}" if preferred else ""))
    return ", ".join(words)


class TuneHistory:
    """A file of trials.

    Args:
        path: the file; made, with its folder, at the first trial.
        key: of what the trials were measured on: those of another key are passed over.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key

    def read(self) -> Sequence[Trial]:
        """The trials of this key, the last of each settings; a line that was cut off is passed over.

        Raises:
            ArtifactError: the file can't be read.
        """
        if not self.path.exists():
            return []
        with disk_errors(self.path):
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        found: dict[PackageSettings, Trial] = {}
        for line in lines:
            trial = self._trial(line)
            if trial is not None:
                found[trial.settings] = trial
        return list(found.values())

    def append(self, trial: Trial) -> None:
        """Keeps a trial, durably.

        Raises:
            ArtifactError: the file can't be written.
        """
        line = json.dumps({"key": self._key, "trial": asdict(trial)})
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(("\n" if torn else "") + line + "\n")
                stream.flush()
                os.fsync(stream.fileno())

    def _trial(self, line: str) -> Trial | None:
        try:
            value: Any = json.loads(line)
            if not isinstance(value, dict) or value.get("key") != self._key:
                return None
            return _TRIALS.validate_python(value["trial"])
        except (ValueError, KeyError, ValidationError):
            return None


_TRIALS: TypeAdapter[Trial] = TypeAdapter(Trial)
