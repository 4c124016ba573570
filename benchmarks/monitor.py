"""How often the monitor raises a false alarm, and how soon it finds a surge, with a classifier's real errors.

    python benchmarks/monitor.py --sentiment SENTIMENT_MODEL --topics TOPIC_MODEL --save

Both models answer messages of the shipped shop that training never saw, some of each sentiment and topic. Streams of a
year are then simulated, with days of the week, days that differ, and sales, as `sample:stream` has them: a message's
answer is drawn from those that the models gave to its kind. Beside the monitor stand two rules that people use (a day
above 1.5 times the mean, a day above the mean and three standard deviations), and an ideal observer, the ceiling: it
sees true labels, knows every rate and the surge that may come, and has just one false alarm a year.

What is done is kept in --work, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from machine_facts import finish

from deploykit.artifacts.digest import digest_json
from deploykit.data.sample.feelings import TOPICS, UNSHOWN, FeltWriter
from deploykit.data.sample.stream import SURGE, StreamPlan, negative_share
from deploykit.monitor import SurgeRule, Window, judge_stream
from deploykit.pipeline.measuring import padded_batches, run_target
from deploykit.pipeline.monitoring import monitor_stream
from deploykit.runners import target_from_text
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import find_task

SENTIMENTS = ("negative", "neutral", "positive")
START = datetime(2026, 1, 5)
LEARN, YEAR = 28, 365
POSITIVE = 0.25
PLAN = StreamPlan()
SIX_HOURS = (0.04, 0.36, 0.4, 0.2)
"""The shares of a day's messages that come in its quarters."""
QUIET: dict[str, StreamPlan] = {
    "as shipped": PLAN,
    "a fifth of the volume": replace(PLAN, messages=tuple(mean / 5 for mean in PLAN.messages)),
    "ten times the volume": replace(PLAN, messages=tuple(mean * 10 for mean in PLAN.messages)),
    "days that differ by chance only": replace(PLAN, day_spread=0.0),
    "days that differ twice as much": replace(PLAN, day_spread=0.2),
    "Mondays with twice the odds": replace(PLAN, weekday_odds=(2.0, 1.1, 1.0, 1.0, 0.95, 0.7, 0.7)),
    "a sale every month": PLAN,
    "windows of six hours": PLAN,
}
SURGES: dict[str, StreamPlan] = {
    "as shipped": replace(PLAN, surge=SURGE),
    "twice the odds": replace(PLAN, surge=replace(SURGE, odds=2.0)),
    "five times the odds": replace(PLAN, surge=replace(SURGE, odds=5.0)),
    "in a small topic": replace(PLAN, surge=replace(SURGE, topic="service")),
    "a fifth of the volume": replace(QUIET["a fifth of the volume"], surge=SURGE),
}

Confusion = Mapping[tuple[str, str], Mapping[tuple[str, str], float]]
"""By true (topic, sentiment): the shares of the answers."""


def confusion_of(sentiment: Path, topics: Path, each: int) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """What both models answer to messages of each kind."""
    writer, task = FeltWriter("test", Random("pool")), find_task("text-classification")
    rows = [writer.row(feeling, topic) for topic in TOPICS for feeling in SENTIMENTS for _ in range(each)]
    texts = [row.text for row in rows]
    said = [
        run_target(target_from_text(str(model)), texts, task, labels_from_folder(model), padded_batches(texts)).answers
        for model in (sentiment, topics)
    ]
    counts: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for row, feeling, topic in zip(rows, *said, strict=True):
        counts.setdefault((row.topic, row.sentiment), Counter())[str(topic), str(feeling)] += 1
    return {kind: {answer: count / each for answer, count in found.items()} for kind, found in counts.items()}


def perfect() -> Confusion:
    return {(topic, feeling): {(topic, feeling): 1.0} for topic in TOPICS for feeling in SENTIMENTS}


def simulated(plan: StreamPlan, days: int, seed: int, sales: Sequence[int]) -> list[dict[tuple[str, str], int]]:
    """The true counts of each day by (topic, sentiment)."""
    rng = np.random.default_rng(seed)
    found = []
    for day in range(days):
        mean = plan.messages[day % 7] * (plan.sale[2] if any(0 <= day - sale < plan.sale[1] for sale in sales) else 1)
        mean *= math.exp(plan.volume_spread * rng.normal())
        own = plan.day_spread * rng.normal()
        counts = {}
        for topic, share in plan.topics:
            total = rng.poisson(mean * share)
            bad = rng.binomial(total, negative_share(plan, day, topic, own))
            good = rng.binomial(total - bad, POSITIVE)
            counts |= {(topic, "negative"): int(bad), (topic, "positive"): int(good)}
            counts[topic, "neutral"] = int(total - bad - good)
        found.append(counts)
    return found


def answered(
    days: Sequence[Mapping[tuple[str, str], int]], confusion: Confusion, seed: int, parts: Sequence[float] = (1.0,)
) -> list[Window]:
    """What a monitor counts of it, in windows that get these shares of a day."""
    rng = np.random.default_rng([seed, 1])
    windows = []
    for number, counts in enumerate(days):
        seen: Counter[tuple[str, str]] = Counter()
        for kind, count in counts.items():
            answers = list(confusion[kind])
            drawn = rng.multinomial(count, [confusion[kind][answer] for answer in answers])
            seen.update({answer: int(each) for answer, each in zip(answers, drawn, strict=True) if each})
        split = {answer: rng.multinomial(count, parts) for answer, count in seen.items()}
        for part in range(len(parts)):
            start = START + timedelta(days=number + part / len(parts))
            windows.append(Window(start, {answer: int(each[part]) for answer, each in split.items() if each[part]}))
    return windows


@dataclass(frozen=True)
class Ideal:
    """The Shiryaev-Roberts procedure for the one surge that may come, all rates known."""

    plan: StreamPlan
    limit: float

    def ratios(self, days: Sequence[Mapping[tuple[str, str], int]]) -> np.ndarray:
        from scipy.special import betaln

        surge = self.plan.surge
        assert surge is not None
        quiet, always = (
            replace(self.plan, surge=None),
            replace(self.plan, surge=replace(surge, first_day=0, days=10**9)),
        )
        found = []
        for day, counts in enumerate(days):
            bad = counts[surge.topic, "negative"]
            total = bad + counts[surge.topic, "positive"] + counts[surge.topic, "neutral"]
            logs = []
            for plan in (always, quiet):
                rate = negative_share(plan, day, surge.topic)
                size = 1 / max(plan.day_spread**2 * rate * (1 - rate), 1e-6) - 1
                alpha, beta = rate * size, (1 - rate) * size
                logs.append(betaln(bad + alpha, total - bad + beta) - betaln(alpha, beta))
            found.append(logs[0] - logs[1])
        return np.array(found)

    def first(self, ratios: np.ndarray, begin: int) -> int | None:
        value = -np.inf
        for day in range(begin, len(ratios)):
            value = np.logaddexp(0.0, value) + ratios[day]
            if value >= math.log(self.limit):
                return day
        return None


def ideal_observer(plan: StreamPlan, streams: int) -> Ideal:
    """The observer whose mean time to a false alarm is a year, by simulation."""
    quiet = replace(plan, surge=None)
    watcher = Ideal(plan, 1.0)
    runs = [watcher.ratios(simulated(quiet, 3 * YEAR, 50_000 + seed, ())) for seed in range(streams)]

    def mean_time(limit: float) -> float:
        found = [replace(watcher, limit=limit).first(run, 0) for run in runs]
        alarms = [day + 1 for day in found if day is not None]
        return (sum(alarms) + 3 * YEAR * (len(runs) - len(alarms))) / max(1, len(alarms))  # the others are cut off

    low, high = 1.0, float(YEAR)
    for _ in range(12):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if mean_time(middle) < YEAR else (low, middle)
    return Ideal(plan, high)


def plain_rules(windows: Sequence[Window]) -> dict[str, list[int]]:
    """The days on which a fixed threshold speaks."""
    shares = np.array([window.of(sentiment="negative") / max(1, window.messages) for window in windows])
    mean, spread = shares[:LEARN].mean(), shares[:LEARN].std(ddof=1)
    limits = {"1.5 times the mean": 1.5 * mean, "three standard deviations": mean + 3 * spread}
    return {
        name: [int(day) + LEARN for day in np.flatnonzero(shares[LEARN:] > limit)] for name, limit in limits.items()
    }


def quiet_stream(name: str, confusion: Confusion, seed: int) -> dict[str, Any]:
    """The days of the false alarms in a year, by observer."""
    sales = range(36, LEARN + YEAR, 30) if name == "a sale every month" else (36,)
    days = simulated(QUIET[name], LEARN + YEAR, seed, sales)
    whole = answered(days, confusion, seed)
    parts = SIX_HOURS if name == "windows of six hours" else (1.0,)
    rule = SurgeRule(window_s=86400 // len(parts))
    monitor = [
        (alert.found - START).days for alert in judge_stream(answered(days, confusion, seed, parts), rule).alerts
    ]
    return {"monitor": monitor, **plain_rules(whole)}


def surge_stream(name: str, confusion: Confusion, seed: int, ideal: Ideal) -> dict[str, Any]:
    """When each observer found the surge, in days from its begin (1: by the end of its first day); None: not."""
    plan = SURGES[name]
    surge = plan.surge
    assert surge is not None
    days = simulated(plan, plan.days, 10_000 + seed, (36,))
    span = range(surge.first_day, surge.first_day + surge.days)

    def delay(found: Sequence[int]) -> int | None:
        return next((day - surge.first_day + 1 for day in found if day in span), None)

    found: dict[str, Any] = {}
    for observer, seen in (("monitor", confusion), ("monitor, true labels", perfect())):
        windows = answered(days, seen, seed)
        alerts = judge_stream(windows, SurgeRule()).alerts
        hits = [alert for alert in alerts if (alert.found - START).days in span]
        found[observer] = delay([(alert.found - START).days for alert in alerts])
        if observer == "monitor":
            found |= {rule: delay(spoke) for rule, spoke in plain_rules(windows).items()}
            if hits:
                found["topic_named"] = surge.topic in [share.topic for share in hits[0].topics]
                found["begin_off_days"] = abs((hits[0].began - START).days - surge.first_day)
    spoke = ideal.first(ideal.ratios(days), LEARN)
    found["ideal"] = delay([] if spoke is None else [spoke])
    return found


def rate_of(count: int, years: float) -> dict[str, float]:
    """False alarms a year with their exact 95 % interval (Garwood)."""
    from scipy.stats import chi2

    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return {"a_year": count / years, "low": low / years, "high": chi2.ppf(0.975, 2 * count + 2) / 2 / years}


def summary(quiet: Mapping[str, list[dict[str, Any]]], surges: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"false_alarms": {}, "surges": {}}
    for name, rows in quiet.items():
        own: dict[str, Any] = {"streams": len(rows)}
        for observer in ("monitor", "1.5 times the mean", "three standard deviations"):
            alarms = [row[observer] for row in rows]
            own[observer] = rate_of(sum(map(len, alarms)), len(rows))
            own[observer]["quiet_30_days"] = sum(not any(day < LEARN + 30 for day in each) for each in alarms) / len(
                rows
            )
        figures["false_alarms"][name] = own
    for name, rows in surges.items():
        own = {"streams": len(rows)}
        for observer in ("ideal", "monitor, true labels", "monitor", "1.5 times the mean", "three standard deviations"):
            delays = [row[observer] for row in rows]
            there = [delay for delay in delays if delay is not None]
            own[observer] = {
                "found": len(there) / len(rows),
                "within_3_days": sum(delay <= 3 for delay in there) / len(rows),
                "mean_days": float(np.mean(there)) if there else None,
                "p90_days": float(np.quantile(there, 0.9)) if there else None,
            }
        named = [row["topic_named"] for row in rows if "topic_named" in row]
        off = [row["begin_off_days"] for row in rows if "begin_off_days" in row]
        own["topic_named"] = sum(named) / max(1, len(named))
        own["begin_off_by_a_day_at_most"] = sum(each <= 1 for each in off) / max(1, len(off))
        figures["surges"][name] = own
    return figures


def shipped(name: str, sentiment: Path, topics: Path) -> list[dict[str, Any]]:
    """The alerts of the monitor on a shipped stream, message by message."""
    judged = monitor_stream(str(sentiment), data=f"sample:stream/{name}", topics=str(topics)).judgement
    return [
        {"began": str(alert.began.date()), "found": str(alert.found.date()), "state": alert.state,
         "ended": None if alert.ended is None else str(alert.ended.date()), "ratio": alert.ratio,
         "topics": [share.topic for share in alert.topics]}
        for alert in judged.alerts
    ]  # fmt: skip


class Kept:
    """Results by their key in a file of JSON lines; a line that was cut off is left out."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._found: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                key, value = json.loads(line)
            except ValueError:
                continue
            self._found[key] = value

    def of(self, key: str, make: Any) -> Any:
        if key not in self._found:
            self._found[key] = make()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self._found[key]]) + "\n")
        return self._found[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentiment", type=Path, required=True, help="a model of recipes/sentiment.yaml")
    parser.add_argument("--topics", type=Path, required=True, help="one of the same with data.label=topic")
    parser.add_argument("--streams", type=int, default=200, help="of each kind")
    parser.add_argument("--pool", type=int, default=100, help="messages of each sentiment and topic")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "deploykit-monitor")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    kept = Kept(arguments.work / "results.jsonl")
    models = digest_json([str(arguments.sentiment), str(arguments.topics), arguments.pool])[:12]
    cells = kept.of(
        f"confusion/{models}",
        lambda: [
            [list(kind), [[*answer, share] for answer, share in found.items()]]
            for kind, found in confusion_of(arguments.sentiment, arguments.topics, arguments.pool).items()
        ],
    )
    confusion = {tuple(kind): {(topic, feeling): share for topic, feeling, share in found} for kind, found in cells}
    right = {
        part: float(np.mean([
            sum(share for answer, share in found.items() if answer[place] == kind[place])
            for kind, found in confusion.items()
        ]))
        for place, part in enumerate(("topic", "sentiment"))
    }  # fmt: skip
    quiet: dict[str, list[Any]] = {}
    for name in QUIET:
        quiet[name] = [
            kept.of(f"quiet/{models}/{name}/{seed}", lambda name=name, seed=seed: quiet_stream(name, confusion, seed))
            for seed in range(arguments.streams)
        ]
        print(f"{name}: {sum(len(row['monitor']) for row in quiet[name])} false alarms", file=sys.stderr)
    surges: dict[str, list[Any]] = {}
    for name, plan in SURGES.items():
        limit = kept.of(f"ideal/{name}", lambda plan=plan: ideal_observer(plan, 100).limit)
        ideal = Ideal(plan, limit)
        surges[name] = [
            kept.of(
                f"surge/{models}/{name}/{seed}",
                lambda name=name, seed=seed, ideal=ideal: surge_stream(name, confusion, seed, ideal),
            )
            for seed in range(arguments.streams)
        ]
        print(f"{name}: found {sum(row['monitor'] is not None for row in surges[name])}", file=sys.stderr)
    said_negative = {
        kind: sum(share for (_, feeling), share in found.items() if feeling == "negative")
        for kind, found in confusion.items()
    }
    figures = {
        "accuracy": right,
        "sentiment_ceiling": 1 - UNSHOWN * 2 / 3,  # two of three kinds of messages have a feeling to be kept back
        "negatives_found": float(np.mean([each for kind, each in said_negative.items() if kind[1] == "negative"])),
        "others_taken_for_negative": float(
            np.mean([each for kind, each in said_negative.items() if kind[1] != "negative"])
        ),
        **summary(quiet, surges),
        "shipped_streams": {
            name: kept.of(
                f"shipped/{models}/{name}", lambda name=name: shipped(name, arguments.sentiment, arguments.topics)
            )
            for name in ("quiet", "surge")
        },
    }
    finish("monitor", figures, as_json=arguments.json, save=arguments.save)


if __name__ == "__main__":
    main()
