"""Searches the Triton settings of a package for the highest rate that holds a limit on p99."""

from __future__ import annotations

__all__ = ["TuneRule", "candidates", "recipe_section", "tune_folder", "tune_package"]

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploykit.artifacts.digest import digest_json, digest_tree
from deploykit.errors import LatencyError, ServerError
from deploykit.events import Listener, Note, Warn, ignore
from deploykit.latency.load import judge_load, next_rate
from deploykit.latency.scenarios import run_concurrency, run_server
from deploykit.latency.surrogate import propose
from deploykit.latency.tune_history import Point, Trial, Tuned, TuneHistory, settings_words
from deploykit.machine import fingerprint, usable_cores
from deploykit.pipeline.alone import package_alone
from deploykit.recipe import Package
from deploykit.runners import Target, infer_all, open_runner
from deploykit.triton.config import CONFIG
from deploykit.triton.embedded import EmbeddedServer
from deploykit.triton.package import PackageSettings
from deploykit.triton.repository import RECORD
from deploykit.triton.settings import apply_settings, can_hold, copy_package, read_settings

_STEP = 1.35
_PRECISION = 0.1
_BELOW_CAPACITY = 0.6
"""Where a search begins, as a share of what a closed loop of clients gets."""
_CLIENTS = 16
_CLOSED_S = 2.0
_ANSWERS = 700
"""Of each run at least: 662 allow one above the limit (MLPerf's early stopping)."""
_LOWEST_STEPS = 5
_LEAST_GAIN = 0.02
"""The search ends where the model expects less of any settings left."""
_ASKED = 64
_KEPT_UP = 0.9
_OTHER_SEED = 100


@dataclass(frozen=True)
class TuneRule:
    """What to search for, and for how long.

    Attributes:
        p99_ms: the limit.
        trials: settings to measure at most, those measured before among them.
        seconds: of one run at a rate, at least.
        protocol: what the client speaks.
        most_per_s: a rate that is enough; none above it is tried.
    """

    p99_ms: float
    trials: int = 12
    seconds: float = 4.0
    protocol: str = "http"
    most_per_s: float = math.inf


def candidates(start: PackageSettings, p99_ms: float, cores: int, *, hold: bool) -> list[PackageSettings]:
    """The settings to choose from, those in use first.

    Instances and threads that together are more than twice the cores are left out, delays above a quarter of the
    limit, and preferred sizes where nothing waits for them.

    Args:
        start: in use.
        p99_ms: the limit.
        cores: of the machine.
        hold: whether the package can hold its model.
    """
    counts = [count for count in (1, 2, 4, 8, 16) if count <= max(2, cores)]
    layouts: tuple[Literal["call", "hold"], ...] = ("hold", "call") if hold and start.device == "cpu" else ("call",)
    delays = [delay for delay in (0, 300, 1000, 3000) if delay <= p99_ms * 250]
    found = [start]
    for layout, instances, threads, largest, delay in product(layouts, counts, counts, (8, 16, 64), delays):
        if instances * threads > 2 * cores:
            continue
        for preferred in ((), (largest // 2,)) if delay else ((),):
            found.append(replace(
                start, layout=layout, instances=instances, threads=threads, max_batch_size=largest,
                queue_delay_us=delay, preferred_batch_size=preferred,
            ))  # fmt: skip
    return list(dict.fromkeys(found))


def tune_package(
    repository: Path,
    name: str,
    messages: Sequence[str],
    rule: TuneRule,
    *,
    history: Path,
    task: str = "text-classification",
    write: bool = True,
    listener: Listener = ignore,
) -> Tuned:
    """Measure settings of a package in a repository, and write the best of them into its configurations.

    Each trial copies the package, serves it anew, asks what it answers, and searches the highest rate that holds.
    The best settings and those in use are measured twice more at the end, in turn, on fresh servers: what was the
    luckiest of many is not believed.

    Args:
        repository: the model repository; only its two configurations are changed, and those at the end.
        name: the package.
        messages: real ones, to ask.
        rule: what to search for.
        history: the file that keeps every trial; those of the same package, messages, rule and machine count again.
        task: what the model does.
        write: False to leave the package as it is.
        listener: hears of each trial.

    Raises:
        RepositoryError: the repository has no such package.
        LatencyError: there are no messages, or no settings gave an answer.
        ServerError: the package does not start with the settings in use.
    """
    if not messages:
        raise LatencyError("there is nothing to time", "give a data file with at least one row")
    in_use = read_settings(repository, name)
    choice = candidates(in_use, rule.p99_ms, usable_cores(), hold=can_hold(repository, name))
    record = TuneHistory(history, _key(repository, name, messages, rule))
    with tempfile.TemporaryDirectory(prefix="deploykit-tune-") as scratch:
        bench = _Bench(repository, name, list(messages), rule, task, Path(scratch), listener)
        trials = _search(choice, record, bench, rule, listener)
        held = [trial for trial in trials if trial.best_per_s is not None]
        if not held:
            return _missed(trials, in_use, repository, name, write=write)
        best = max(held, key=lambda trial: trial.best_per_s or 0.0)
        before, after = _again(bench, in_use, best)
    kept = after if (after.best_per_s or 0.0) > (before.best_per_s or 0.0) else before
    if kept is before and best.settings != in_use:
        listener(Note("measured again, the best settings do not beat those in use: they stay"))
    if write and kept.settings != in_use:
        apply_settings(repository, name, kept.settings)
    return Tuned(kept, before, tuple(trials), met=kept.best_per_s is not None, written=write and kept is not before)


def tune_folder(
    folder: Path,
    repository: Path,
    name: str,
    messages: Sequence[str],
    rule: TuneRule,
    *,
    history: Path,
    task: str,
    target: str,
    write: bool = True,
    listener: Listener = ignore,
) -> Tuned:
    """Tune an ONNX folder: packaged on the side, measured there, and published with the settings that were found.

    Args:
        folder: the ONNX folder.
        repository: where it is published, as `deploykit package` does.
        name: of the package.
        messages, rule, history, task, write, listener: as for `tune_package`.
        target: the Triton release that must load it.

    Raises:
        As `tune_package` and `package_alone`.
    """
    with tempfile.TemporaryDirectory(prefix="deploykit-tune-") as scratch:
        aside = Path(scratch) / "repository"
        package_alone(folder, aside, name, Package(), task=task, target=target, listener=listener)
        tuned = tune_package(aside, name, messages, rule, history=history, task=task, write=False, listener=listener)
    if not write:
        return tuned
    section = Package.model_validate(recipe_section(tuned.best.settings))
    package_alone(folder, repository, name, section, task=task, target=target, listener=listener)
    return replace(tuned, written=True)


def recipe_section(settings: PackageSettings) -> dict[str, object]:
    """The settings as the recipe's `package` section has them."""
    return asdict(settings)


def _key(repository: Path, name: str, messages: Sequence[str], rule: TuneRule) -> str:
    """Of what must be the same for a trial to count again: the package's files, the messages, rule and machine."""
    files = {
        model: {
            path: digest
            for path, digest in digest_tree(repository / model).items()
            if path.rpartition("/")[2] not in (CONFIG, RECORD)
        }
        for model in (name, f"{name}_onnx")
    }
    asked = [rule.p99_ms, rule.seconds, rule.protocol, min(rule.most_per_s, 1e9)]
    return digest_json(json.dumps([files, list(messages), asked, fingerprint()], sort_keys=True))


def _search(
    choice: list[PackageSettings], record: TuneHistory, bench: _Bench, rule: TuneRule, listener: Listener
) -> list[Trial]:
    """Measure what the model proposes until the trials are used up or it expects little of the rest."""
    features = np.array([_features(each) for each in choice])
    known = {each: number for number, each in enumerate(choice)}
    trials = [trial for trial in record.read() if trial.settings in known]
    if trials:
        listener(Note(f"{len(trials)} trials were measured before, in {record.path}"))
    while len(trials) < rule.trials:
        floor = min((trial.score for trial in trials if trial.score is not None), default=1.0)
        proposal = propose(features, {known[trial.settings]: trial.score or floor for trial in trials})
        if proposal is None or (proposal.gain is not None and proposal.gain < _LEAST_GAIN):
            break
        best = max((trial.best_per_s or 0.0 for trial in trials), default=0.0)
        trial = bench.measure(choice[proposal.index], best or None)
        record.append(trial)
        trials.append(trial)
        expected = "" if proposal.gain is None else f" (expected gain {proposal.gain:.0%})"
        held = f"{trial.best_per_s:.0f} a second" if trial.best_per_s is not None else "no rate holds"
        listener(Note(f"trial {len(trials)}: {trial.words}: {held}{expected}"))
    return trials


def _again(bench: _Bench, in_use: PackageSettings, best: Trial) -> tuple[Trial, Trial]:
    """The settings in use and the best ones measured again: the better of two each, in the order old, new, new, old."""
    if best.settings == in_use:
        found = bench.measure(in_use, best.best_per_s)
        return found, found
    sides: dict[PackageSettings, Trial] = {}
    for settings in (in_use, best.settings, best.settings, in_use):
        trial = bench.measure(settings, best.best_per_s)
        if settings not in sides or (trial.best_per_s or 0.0) > (sides[settings].best_per_s or 0.0):
            sides[settings] = trial
    return sides[in_use], sides[best.settings]


def _missed(trials: list[Trial], in_use: PackageSettings, repository: Path, name: str, *, write: bool) -> Tuned:
    """Nothing held the limit: what came nearest is delivered."""
    answered = [trial for trial in trials if trial.lowest_p99_ms is not None]
    if not answered:
        raise LatencyError("no settings gave an answer", "serve the package and ask it: deploykit serve, deploykit ask")
    nearest = min(answered, key=lambda trial: trial.lowest_p99_ms or 0.0)
    before = next((trial for trial in trials if trial.settings == in_use), nearest)
    changed = write and nearest.settings != in_use
    if changed:
        apply_settings(repository, name, nearest.settings)
    return Tuned(nearest, before, tuple(trials), met=False, written=changed)


def _features(settings: PackageSettings) -> list[float]:
    return [
        float(settings.layout == "hold"),
        float(np.log2(settings.instances)),
        float(np.log2(settings.threads or usable_cores())),
        float(np.log2(settings.max_batch_size)),
        float(np.log1p(settings.queue_delay_us / 300)),
        float(bool(settings.preferred_batch_size)),
    ]


class _Bench:
    """Measures settings of one package, each on a fresh server.

    Args:
        repository, name: the package, which is copied.
        messages: to ask.
        rule: the limit, and how long.
        task: what the model does.
        scratch: a folder for the copy.
        listener: hears of what goes wrong.
    """

    def __init__(
        self, repository: Path, name: str, messages: list[str], rule: TuneRule, task: str, scratch: Path,
        listener: Listener,
    ) -> None:  # fmt: skip
        self._name, self._messages, self._rule, self._task = name, messages, rule, task
        self._repository, self._listener = scratch / "repository", listener
        self._answers: NDArray[np.object_] | None = None
        copy_package(repository, name, self._repository)

    def measure(self, settings: PackageSettings, near_per_s: float | None) -> Trial:
        """The highest rate that holds with these settings.

        Args:
            settings: to serve with.
            near_per_s: a rate to begin at; from a closed loop where None.

        Raises:
            ServerError: the first server does not start.
        """
        try:
            return self._served(settings, near_per_s)
        except ServerError as error:
            if self._answers is None:
                raise
            self._listener(Warn(f"{settings_words(settings)}: {error.message}"))
            return Trial(settings, ())

    def _served(self, settings: PackageSettings, near_per_s: float | None) -> Trial:
        apply_settings(self._repository, self._name, settings)
        with EmbeddedServer(self._repository) as server:
            url = server.urls.http if self._rule.protocol == "http" else server.urls.grpc
            target = Target("triton", f"{url}/{self._name}", task=self._task)
            if not self._answers_as_before(target):
                self._listener(Warn(f"{settings_words(settings)}: answers change, so it is left out"))
                return Trial(settings, (), changed_answers=True)
            return Trial(settings, tuple(self._runs(target, near_per_s)))

    def _answers_as_before(self, target: Target) -> bool:
        """Whether the first server's answers come again, message by message."""
        asked = self._messages[:_ASKED]
        with open_runner(target) as runner:
            found = infer_all(runner, asked, [[number] for number in range(len(asked))])["answer"]
        if self._answers is None:
            self._answers = found
        return bool((found == self._answers).all())

    def _runs(self, target: Target, near_per_s: float | None) -> list[Point]:
        rule, points = self._rule, dict[float, Point]()
        if near_per_s is None:
            closed = run_concurrency(target, self._messages, clients=_CLIENTS, seconds=_CLOSED_S)
            near_per_s = max(1.0, closed.answered_per_s * _BELOW_CAPACITY)
        near_per_s = min(near_per_s, rule.most_per_s)
        lowest = near_per_s / _STEP**_LOWEST_STEPS
        while True:
            rate = next_rate(
                {each: point.outcome == "pass" for each, point in points.items()}, near_per_s, _PRECISION, step=_STEP
            )
            if rate is not None and rate > rule.most_per_s:
                rate = rule.most_per_s
            if rate is None or rate < lowest or rate in points:
                break
            point = self._point(target, rate, seed=len(points))
            if point.outcome != "pass" and point.answered_per_s > _KEPT_UP * rate:
                # The server kept up, so this may have been a burst of the machine's others: a rate fails twice.
                again = self._point(target, rate, seed=len(points) + _OTHER_SEED)
                point = again if again.outcome == "pass" else point
            points[rate] = point
        return [points[rate] for rate in sorted(points)]

    def _point(self, target: Target, rate_per_s: float, seed: int) -> Point:
        seconds = max(self._rule.seconds, _ANSWERS / rate_per_s)
        result = run_server(target, self._messages, rate_per_s=rate_per_s, seconds=seconds, seed=seed)
        verdict = judge_load(result, p99_limit_ms=self._rule.p99_ms)
        n = len(result.latencies_ms)
        return Point(rate_per_s, result.answered_per_s, verdict.p99_ms, verdict.outcome, n, result.split_ms)
