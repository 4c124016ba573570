"""How often the gate on the drop passes a model that is worse by just the margin, and one that is as good.

    python benchmarks/parity_statistics.py --save

Pairs of models are simulated whose true drop is exactly the margin: what share of them passes must be 5 % at most. For
models without a drop the share that passes is held against the power that the tool computes.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from machine_facts import finish

from deploykit.parity.intervals import clopper_pearson
from deploykit.parity.noninferiority import judge_drop, pass_probability

ITEMS = (50, 100, 200, 300, 600, 1000, 3080)
MARGINS = (0.005, 0.01, 0.02, 0.03, 0.05)
DISCORDANT = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
LIMIT = 0.055


def passed(n: int, lost: float, won: float, margin: float, draws: int, generator: np.random.Generator) -> int:
    """How many of so many simulated pairs of models the gate passes."""
    drawn = generator.multinomial(n, [lost, won, 1 - lost - won], size=draws)[:, :2]
    outcomes, counts = np.unique(drawn, axis=0, return_counts=True)
    total = 0
    for (b, c), count in zip(outcomes.tolist(), counts.tolist(), strict=True):
        if (b - c) / n >= margin:  # never passes: not worth a bootstrap
            continue
        reference = np.arange(n) >= c
        candidate = reference.copy()
        candidate[:c] = True
        candidate[n - b :] = False
        total += count * (judge_drop(reference, candidate, margin).outcome == "pass")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000, help="simulated pairs for each setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    wrong: list[dict[str, Any]] = []
    power: list[dict[str, Any]] = []
    for n in ITEMS:
        for rate in DISCORDANT:
            for margin in (margin for margin in MARGINS if margin <= rate):
                lost, won = (rate + margin) / 2, (rate - margin) / 2
                count = passed(n, lost, won, margin, arguments.draws, generator)
                low, high = clopper_pearson(count, arguments.draws)
                share = count / arguments.draws
                wrong.append({"n": n, "discordant": rate, "margin": margin, "passed": share, "low": low, "high": high})
                print(f"n {n} discordant {rate:.1%} margin {margin:.1%}: {share:.2%}", file=sys.stderr)
        for rate, margin in ((0.02, 0.01), (0.04, 0.01), (0.04, 0.02)):
            draws = arguments.draws // 5
            count = passed(n, rate / 2, rate / 2, margin, draws, generator)
            low, high = clopper_pearson(count, draws)
            computed = pass_probability(rate / 2, rate / 2, n, margin)
            power.append(
                {"n": n, "discordant": rate, "margin": margin, "passed": count / draws, "low": low, "high": high,
                 "computed": computed}
            )  # fmt: skip
    worst = max(wrong, key=lambda each: each["high"])
    largest = max(abs(each["passed"] - each["computed"]) for each in power)
    figures = {
        "draws": arguments.draws,
        "settings": len(wrong),
        "worst_false_pass": worst,
        "limit": LIMIT,
        "within": worst["high"] < LIMIT,
        "power_differs_by_at_most": largest,
        "false_passes": wrong,
        "power": power,
    }
    finish("parity_statistics", figures, as_json=arguments.json, save=arguments.save)
    sys.exit(0 if worst["high"] < LIMIT and largest < 0.02 else 1)


if __name__ == "__main__":
    main()
