"""Whether negatives surge: an e-detector over the windows of a stream, and what an alert says."""

from __future__ import annotations

__all__ = ["Alert", "Judgement", "SurgeRule", "TopicShare", "WindowPoint", "judge_stream"]

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import UsageError
from deploykit.monitor.usual import Usual, log_ratio, usual
from deploykit.monitor.windows import WEEK_S, Window, phase_of

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

ODDS: Final = (1.5, 2.0, 3.0, 5.0)
"""What the odds of a negative message may have been multiplied by: the test is for all of them at once."""
_DAY_S = 86400
_GUARD_S = WEEK_S
"""The newest windows are not yet usual: a surge that builds up slowly would hide itself."""
_KEPT = 2
"""How many times the reference is kept at most, so that slow changes become usual."""
_ENDED: Final = float(np.log(30.0))
"""How much likelier the usual rate has to be than the surge, since some window, for the surge to have ended."""
_LARGEST_LOG = 300.0
"""Of evidence, so that it stays a number."""
_NAMED = 0.05
"""A topic is named in an alert where chance would do so this often, over all topics."""


@dataclass(frozen=True)
class SurgeRule:
    """What counts as a surge.

    Attributes:
        negative: the sentiment that is watched.
        window_s: seconds of a window; a week is a whole number of them.
        false_alarm_days: days between two false alarms, in the mean and at least.
        reference_days: days that are learnt from before anything is judged.

    Raises:
        UsageError: a value makes no sense.
    """

    negative: str = "negative"
    window_s: int = _DAY_S
    false_alarm_days: float = 365.0
    reference_days: int = 28

    def __post_init__(self) -> None:
        if self.window_s < 60 or WEEK_S % self.window_s:
            raise UsageError(
                f"a window of {self.window_s} s does not divide a week", "take 1h, 6h, 1d or 7d, for instance"
            )
        if self.reference_days * _DAY_S < 2 * WEEK_S:
            raise UsageError(f"{self.reference_days} days are too few to learn from", "take 14 or more, better 28")
        if not self.false_alarm_days * _DAY_S >= self.window_s:
            raise UsageError(f"a false alarm every {self.false_alarm_days:g} days is more than one a window")

    @property
    def reference(self) -> int:
        """Windows that are learnt from first."""
        return self.reference_days * _DAY_S // self.window_s

    @property
    def limit(self) -> float:
        """What the evidence must reach: the mean number of windows between two false alarms, at least."""
        return max(1.0, self.false_alarm_days * _DAY_S / self.window_s)


@dataclass(frozen=True)
class WindowPoint:
    """A window as it was judged.

    Attributes:
        start: when it began.
        messages: that came.
        negatives: of them.
        usual: the expected share of negatives; None while the stream is learnt.
        half_width: of the interval around it that 95 % of the shares lie in; None likewise.
        evidence: of a surge by its end; an alert is found where it reaches the rule's limit. 0 while learning.
    """

    start: datetime
    messages: int
    negatives: int
    usual: float | None = None
    half_width: float | None = None
    evidence: float = 0.0

    @property
    def share(self) -> float | None:
        """Of the negatives; None where no message came."""
        return self.negatives / self.messages if self.messages else None


@dataclass(frozen=True)
class TopicShare:
    """What a topic adds to a surge.

    Attributes:
        topic: its name.
        messages: about it in the surge's windows.
        negatives: of them.
        usual: negatives among as many, as it usually is.
        evidence: an e-value; chance comes to E or more once in E times.
    """

    topic: str
    messages: int
    negatives: int
    usual: float
    evidence: float


@dataclass(frozen=True)
class Alert:
    """A surge of negatives.

    Attributes:
        began: the first window of it, as far as can be told.
        found: the window at whose end there was enough evidence.
        state: whether it goes on, has ended, or has lasted so long that it is what is usual now.
        ended: the first window that was usual again.
        windows: of the surge so far, to the last that is not usual again.
        messages: in them.
        negatives: of them.
        usual: negatives among as many, as it usually is.
        evidence: when it was found.
        leading: the topic whose own series shows it best; None where all messages together do.
        topics: those whose negatives rose, the most additional ones first.
    """

    began: datetime
    found: datetime
    state: Literal["open", "ended", "settled"]
    ended: datetime | None
    windows: int
    messages: int
    negatives: int
    usual: float
    evidence: float
    leading: str | None
    topics: tuple[TopicShare, ...]

    @property
    def ratio(self) -> float:
        """How many times as many negatives came as usual."""
        return self.negatives / max(self.usual, 1e-9)


@dataclass(frozen=True)
class Judgement:
    """What a stream shows.

    Attributes:
        verdict: fail, where an alert is open or was found in the new windows; inconclusive, while it is being learnt.
        points: every window.
        alerts: in order.
        learning: windows that are still needed before anything is judged.
    """

    verdict: Literal["pass", "fail", "inconclusive"]
    points: tuple[WindowPoint, ...]
    alerts: tuple[Alert, ...]
    learning: int


def judge_stream(windows: Sequence[Window], rule: SurgeRule, *, new: int | None = None) -> Judgement:
    """Whether negatives surge in a stream; the same for the same windows, whenever they were counted.

    All messages together are one series, the messages about each topic are another; each has what is usual of it by
    the window of the week (`usual`). In each the Shiryaev-Roberts statistic R <- (1 + R) L runs for every factor that
    the odds may have been multiplied by, L being the likelihood ratio of the window's counts given how many messages
    came. Half of the weight goes to all messages, the rest to the topics. Where nothing has changed L is 1 in the mean,
    so that a weighted mean of all R less the number of windows is a martingale: an alert at R >= A has a mean time to a
    false alarm of at least A windows, whatever the volumes are and however the series hang together (Shin, Ramdas and
    Rinaldo, "E-detectors", New England Journal of Statistics in Data Science, 2023, sections 2 and 4). That the rate is
    learnt and not known is part of the law, but in the mean over what it may be only.

    Args:
        windows: one after the other, without a gap.
        rule: what counts as a surge.
        new: how many of the last windows count for the verdict; all where None.
    """
    topics = sorted({topic for window in windows for topic, _ in window.counts})
    messages, negatives = _counts(windows, topics, rule.negative)
    phases = np.array([phase_of(window.start, rule.window_s) for window in windows], dtype=np.int64)
    detector = _Detector(topics, rule, messages, negatives, phases)
    points, alerts, learned = [], list[_Found](), list[int]()
    for number, window in enumerate(windows):
        law = detector.law(learned, number)
        point = WindowPoint(window.start, int(messages[number, 0]), int(negatives[number, 0]))
        if law is None:
            learned.append(number)
            points.append(point)
            continue
        surge = alerts[-1] if alerts and alerts[-1].state == "open" else None
        evidence = 0.0
        if surge is None:
            found, evidence = detector.watch(law, number)
            if found is not None:
                alerts.append(found)
                learned = [each for each in learned if each < found.began]
            else:
                learned.append(number)
        else:
            detector.follow(law, number, surge)
            if surge.state == "ended":
                learned += range(surge.last + 1, number + 1)
            elif surge.state == "settled":
                learned = list(range(surge.began, number + 1))
        width = float(law.half_width(messages[number])[0])
        points.append(replace(point, usual=float(law.rate[0]), half_width=width, evidence=evidence))
    said = tuple(detector.alert(found, windows) for found in alerts)
    learning = max(0, rule.reference - len(windows))
    recent = windows[0 if new is None else len(windows) - new].start if windows and new != 0 else None
    failing = any(alert.state == "open" or (recent is not None and alert.found >= recent) for alert in said)
    judged = any(point.usual is not None for point in points)
    return Judgement("fail" if failing else "pass" if judged else "inconclusive", tuple(points), said, learning)


def _counts(windows: Sequence[Window], topics: Sequence[str], negative: str) -> tuple[Counts, Counts]:
    """Messages and negatives [windows, 1 + topics]: all together first, then by topic; one topic is no series."""
    own = topics if len(topics) > 1 else ()
    messages = np.zeros((len(windows), 1 + len(own)), dtype=np.int64)
    negatives = np.zeros_like(messages)
    places = {topic: place for place, topic in enumerate(own, start=1)}
    for number, window in enumerate(windows):
        for (topic, sentiment), count in window.counts.items():
            for place in {0, places.get(topic, 0)}:
                messages[number, place] += count
                negatives[number, place] += count if sentiment == negative else 0
    return messages, negatives


@dataclass
class _Found:
    """An alert while it is followed: windows by their number."""

    began: int
    found: int
    evidence: float
    series: int
    factor: int
    laws: dict[int, Usual]
    state: Literal["open", "ended", "settled"] = "open"
    last: int = 0
    back: float = 0.0


class _Detector:
    """The statistics of every series and factor."""

    def __init__(
        self, topics: Sequence[str], rule: SurgeRule, messages: Counts, negatives: Counts, phases: Counts
    ) -> None:
        self._topics, self._rule = topics, rule
        self._messages, self._negatives, self._phases = messages, negatives, phases
        series = messages.shape[1]
        weights = np.full((series, 1), 1.0) if series == 1 else np.full((series, 1), 0.5 / (series - 1))
        weights[0] = 1.0 if series == 1 else 0.5
        self._odds = np.array(ODDS)
        self._log_weights = np.log(np.broadcast_to(weights / len(ODDS), (series, len(ODDS))))
        self._restart()

    def _restart(self) -> None:
        shape = self._log_weights.shape
        self._log_r = np.full(shape, -np.inf)
        self._sums, self._since = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        self._laws: dict[int, Usual] = {}

    def law(self, learned: Sequence[int], number: int) -> Usual | None:
        """What is usual in a window by what was learnt; None while that is too little."""
        first = self._rule.reference
        guard = _GUARD_S // self._rule.window_s
        past = learned[: bisect_left(learned, number - guard)]
        rows = np.array((past if len(past) >= first else learned[:first])[-_KEPT * first :], dtype=np.int64)
        if len(rows) < first and number < first:
            return None
        law = usual(self._messages[rows], self._negatives[rows], self._phases[rows], int(self._phases[number]))
        return law if law.known[0] else None

    def watch(self, law: Usual, number: int) -> tuple[_Found | None, float]:
        """Take a window in, and give the alert that it completes, and the evidence so far."""
        ratio = log_ratio(law, self._odds, self._messages[number], self._negatives[number])
        self._laws[number] = law
        self._log_r = np.logaddexp(0.0, self._log_r) + ratio
        fresh = self._sums <= 0
        self._since = np.where(fresh, number, self._since)
        self._sums = np.where(fresh, 0.0, self._sums) + ratio
        weighed = self._log_weights + self._log_r
        evidence = float(np.exp(min(np.logaddexp.reduce(weighed.ravel()), _LARGEST_LOG)))
        if evidence < self._rule.limit:
            return None, evidence
        series, factor = np.unravel_index(int(weighed.argmax()), weighed.shape)
        began = int(self._since[series, factor])
        laws = {each: self._laws[each] for each in range(began, number + 1)}
        found = _Found(began, number, evidence, int(series), int(factor), laws, last=number)
        self._restart()
        return found, evidence

    def follow(self, law: Usual, number: int, surge: _Found) -> None:
        """Take a window in while an alert is open, and see whether it has ended or become what is usual."""
        ratio = log_ratio(law, self._odds, self._messages[number], self._negatives[number])
        back = -float(ratio[surge.series, max(0, surge.factor - 1)])  # a surge that has become weaker goes on
        surge.laws[number] = law
        surge.back = max(0.0, surge.back) + back
        if surge.back <= 0:
            surge.last = number
        if surge.back >= _ENDED:
            surge.state = "ended"
        elif number - surge.began + 1 >= self._rule.reference:
            surge.state, surge.last = "settled", number

    def alert(self, found: _Found, windows: Sequence[Window]) -> Alert:
        """What is said of an alert."""
        rows = list(range(found.began, found.last + 1))
        messages, negatives = self._messages[rows], self._negatives[rows]
        expected = np.sum([found.laws[row].rate * self._messages[row] for row in rows], axis=0)
        ratios = np.sum(
            [log_ratio(found.laws[row], self._odds, self._messages[row], self._negatives[row]) for row in rows], axis=0
        )
        evidence = np.exp(np.minimum(np.logaddexp.reduce(ratios, axis=1) - np.log(len(ODDS)), _LARGEST_LOG))
        shares = [
            TopicShare(topic, int(messages[:, place].sum()), int(negatives[:, place].sum()), float(expected[place]),
                       float(evidence[place]))
            for place, topic in enumerate(self._topics if messages.shape[1] > 1 else (), start=1)
        ]  # fmt: skip
        named = [share for share in shares if share.evidence >= len(shares) / _NAMED]
        return Alert(
            began=windows[found.began].start,
            found=windows[found.found].start,
            state=found.state,
            ended=windows[found.last + 1].start if found.state == "ended" else None,
            windows=len(rows),
            messages=int(messages[:, 0].sum()),
            negatives=int(negatives[:, 0].sum()),
            usual=float(expected[0]),
            evidence=found.evidence,
            leading=self._topics[found.series - 1] if found.series else None,
            topics=tuple(sorted(named, key=lambda share: share.usual - share.negatives)),
        )
