"""How often `deploykit compare` errs: one file against itself, and against itself with planted delays.

    python benchmarks/latency_gate.py --model INT8_FOLDER --test test.csv --save

Live comparisons, each at most --seconds; besides, comparisons resampled from the rounds that the live ones of A/A
recorded, with the delays added to one side. Every live comparison is kept in --work as it ends: the same command goes
on where it stopped. The steal time of each is kept beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from scipy.stats import binomtest

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.latency.comparison import NEW, OLD, Comparison, compare_live
from deploykit.latency.paired import Measured
from deploykit.latency.ratios import Round, ratios
from deploykit.latency.regression import Regression, Rule, judge
from deploykit.runners import Target

SLICES = 4


@dataclass(frozen=True)
class Case:
    """What is planted, and what the gate is asked."""

    name: str
    margin: float
    share: float = 0.0
    tail_ms: float = 0.0
    tail_rate: float = 0.0

    @property
    def planted(self) -> bool:
        return bool(self.share or self.tail_rate)


AA = (Case("A/A, margin 10 %", 0.10), Case("A/A, margin 5 %", 0.05))
PLANTED = (
    Case("5 % slower, margin 3 %", 0.03, share=0.05),
    Case("10 % slower, margin 5 %", 0.05, share=0.10),
    Case("25 % slower, margin 10 %", 0.10, share=0.25),
    Case("25 % slower, margin 5 %", 0.05, share=0.25),
    Case("20 ms on 3 % of calls, margin 10 %", 0.10, tail_ms=20.0, tail_rate=0.03),
    Case("20 ms on 3 % of calls, margin 5 %", 0.05, tail_ms=20.0, tail_rate=0.03),
    Case("10 % slower, margin 10 %", 0.10, share=0.10),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an ONNX folder of an encoder, int8 or pruned")
    parser.add_argument("--test", required=True, help="real messages: a data file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a comparison, starting included")
    parser.add_argument("--aa", type=int, default=60, help="live comparisons of the file with itself")
    parser.add_argument("--planted", type=int, default=6, help="live comparisons of each planted delay")
    parser.add_argument("--resampled", type=int, default=200, help="of each case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("latency_gate.work"), help="where live ones are kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    messages = list(read_rows(options.test, Columns(options.text, None)).texts)
    target = Target("onnxruntime", str(options.model), threads=options.threads)

    live = {case: [_live(options, target, messages, case, number) for number in range(options.aa)] for case in AA[:1]}
    live |= {
        case: [_live(options, target, messages, case, number) for number in range(options.planted)] for case in PLANTED
    }
    recorded = _recorded(options.work)
    figures: dict[str, Any] = {
        "model": options.model.name,
        "seconds_at_most": options.seconds,
        "p50_ms": float(np.median([found["old_p50_ms"] for found in live[AA[0]]])),
        "stolen": _range([found["stolen"] for runs in live.values() for found in runs]),
        "took_s": _range([found["seconds"] for runs in live.values() for found in runs]),
        "one_file_in_two_processes": _between_pairs(recorded),
        "live": {case.name: _counts(case, [found["outcome"] for found in runs]) for case, runs in live.items()},
        "resampled": {
            case.name: _counts(case, _resampled(recorded, case, options.resampled)) for case in (*AA, *PLANTED)
        },
    }
    finish("latency_gate", figures, as_json=options.json, save=options.save)


def _live(
    options: argparse.Namespace, target: Target, messages: Sequence[str], case: Case, number: int
) -> dict[str, Any]:
    """One comparison, or what was kept of it."""
    name = f"{options.model.name}-{case.margin:g}-{case.share:g}-{case.tail_rate:g}-{number}"
    note = options.work / f"{name}.json"
    if not note.is_file():
        commands = {}
        if case.planted:
            delay = [str(case.share), str(case.tail_ms), str(case.tail_rate)]
            commands[NEW] = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("slow_worker.py")), *delay]
        rule = Rule(margin=case.margin)
        found = compare_live(target, target, messages, rule, budget_s=options.seconds, commands=commands)
        if not case.planted:
            _keep_rounds(options.work / f"{name}.npz", found.measured)
        note.write_text(json.dumps(_kept(found)), encoding="utf-8")
        print(f"{case.name} {number}: {found.regression.outcome}", file=sys.stderr)
    kept: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return kept


def _kept(found: Comparison) -> dict[str, Any]:
    return {
        "outcome": found.regression.outcome,
        "seconds": found.measured.seconds,
        "stolen": found.measured.stolen,
        "old_p50_ms": found.regression.metrics[0].ratio.old,
        "logs": {each.ratio.metric: [each.ratio.log, each.ratio.error] for each in found.regression.metrics},
    }


def _keep_rounds(path: Path, measured: Measured) -> None:
    arrays = {f"{number}-{pair}-{OLD}": times[OLD] for number, (pair, times) in enumerate(measured.rounds)}
    arrays |= {f"{number}-{pair}-{NEW}": times[NEW] for number, (pair, times) in enumerate(measured.rounds)}
    np.savez(path, seconds=measured.seconds, **arrays)


def _recorded(work: Path) -> list[tuple[float, list[list[Round]]]]:
    """Every recorded comparison: its seconds, and its rounds by pair of processes."""
    found = []
    for path in sorted(work.glob("*.npz")):
        with np.load(path) as arrays:
            names = [name.rsplit("-", 1)[0] for name in arrays.files if name.endswith(f"-{OLD}")]
            rounds = [
                Round(int(name.split("-")[1]), arrays[f"{name}-{OLD}"], arrays[f"{name}-{NEW}"]) for name in names
            ]
            pairs = [list(group) for _, group in itertools.groupby(rounds, key=lambda each: each.pair)]
            found.append((float(arrays["seconds"]), pairs))
    return found


def _resampled(recorded: list[tuple[float, list[list[Round]]]], case: Case, count: int) -> list[str]:
    """Outcomes of comparisons put together from the pairs of processes of one or several recorded ones."""
    random = np.random.default_rng(0)
    pool = [pair for _, pairs in recorded for pair in pairs]
    rule, outcomes = Rule(margin=case.margin), []
    for _ in range(count):
        chosen = [pool[index] for index in random.permutation(len(pool))[:SLICES]]
        rounds: list[Round] = []
        for number, pair in enumerate(chosen):
            for each in pair:
                old, new = (each.old_ms, each.new_ms) if random.random() < 0.5 else (each.new_ms, each.old_ms)
                slow = new * (1 + case.share) + case.tail_ms * (random.random(len(new)) < case.tail_rate)
                rounds.append(Round(number, old, slow))
        outcomes.append(_sequential(rounds, rule).outcome)
    return outcomes


def _between_pairs(recorded: list[tuple[float, list[list[Round]]]]) -> dict[str, float]:
    """How far pairs of processes of one file lie apart, as the standard deviation of the logarithm of new/old."""
    pairs = [pair for _, found in recorded for pair in found]
    old = [np.concatenate([each.old_ms for each in pair]) for pair in pairs]
    new = [np.concatenate([each.new_ms for each in pair]) for pair in pairs]
    both = list(zip(old, new, strict=True))
    return {
        "pairs": len(pairs),
        "median of messages' ratios": float(np.std([np.median(np.log(b / a)) for a, b in both], ddof=1)),
        "ratio of medians": float(np.std([np.log(np.median(b) / np.median(a)) for a, b in both], ddof=1)),
        "ratio of means": float(np.std([np.log(b.mean() / a.mean()) for a, b in both], ddof=1)),
    }


def _sequential(rounds: Sequence[Round], rule: Rule) -> Regression:
    """The verdict at the first look that has one."""
    fractions: list[float] = []
    for number in range(SLICES):
        fractions.append((number + 1) / SLICES)
        verdict = judge(ratios(rounds[: max(2, len(rounds) * (number + 1) // SLICES)]), rule, fractions)
        if verdict.final:
            break
    return verdict


def _counts(case: Case, outcomes: Sequence[str]) -> dict[str, Any]:
    """How often each verdict, its 95 % interval, and whether the target lies within or is beaten."""
    counts, n = Counter(outcomes), len(outcomes)
    if not n:
        return {"n": 0}
    found: dict[str, Any] = {"n": n, **{name: counts[name] for name in ("pass", "fail", "inconclusive")}}
    for name in ("pass", "fail"):
        interval = binomtest(counts[name], n).proportion_ci()
        found[f"{name}_interval"] = [round(float(interval.low), 4), round(float(interval.high), 4)]
    if not case.planted:
        targets = {"fails in at most 2 %": found["fail_interval"][0] <= 0.02}
        if case.margin == 0.10:
            targets["passes in at least 80 %"] = found["pass_interval"][1] >= 0.80
    elif case.share == 0.05:
        targets = {"never passes": counts["pass"] == 0}
    else:
        targets = {"fails in at least 95 %": found["fail_interval"][1] >= 0.95}
    return found | {"within the target": targets}


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"least": min(values), "median": float(np.median(values)), "greatest": max(values)}


if __name__ == "__main__":
    main()
