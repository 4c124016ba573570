"""The verdict on a latency regression for people and machines in CI: Markdown, JUnit, JSON."""

from __future__ import annotations

__all__ = ["regression_json", "regression_junit", "regression_lines", "regression_markdown"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from deploykit.latency.comparison import Comparison
    from deploykit.latency.regression import MetricVerdict


def regression_json(old: str, new: str, found: Comparison) -> dict[str, Any]:
    """Plain JSON values, with names that stay."""
    verdict = found.regression
    return {
        "verdict": verdict.outcome,
        "old": old,
        "new": new,
        "live": found.live,
        "margin": verdict.rule.margin,
        "required": list(verdict.rule.required),
        "metrics": {
            each.ratio.metric: {
                "verdict": each.outcome,
                "old": each.ratio.old,
                "new": each.ratio.new,
                "ratio": each.ratio.value,
                "lower": each.lower,
                "upper": each.upper,
                "required": each.required,
                "noise_floor": each.floor,
                "note": each.note,
            }
            for each in verdict.metrics
        },
        "n": verdict.metrics[0].ratio.n,
        "rounds": verdict.metrics[0].ratio.rounds,
        "processes": verdict.metrics[0].ratio.pairs,
        "seconds": found.measured.seconds,
        "needed_s": found.needed_s,
        "stolen": found.measured.stolen,
    }


def regression_lines(found: Comparison) -> list[str]:
    """The verdict, why, and what to do, in words."""
    verdict, measured = found.regression, found.measured
    failed = [each.ratio.metric for each in verdict.metrics if each.outcome == "fail"]
    open_ones = [each.ratio.metric for each in verdict.metrics if each.outcome == "inconclusive"]
    why = {
        "pass": f"{', '.join(verdict.rule.required)} shown to be less than {verdict.rule.margin:.0%} slower",
        "fail": f"{', '.join(failed)} shown to be slower",
        "inconclusive": f"{', '.join(verdict.rule.required)} shown to be neither slower nor within "
        f"{verdict.rule.margin:.0%}",
    }[verdict.outcome]
    lines = [f"{verdict.outcome}: {why}"]
    lines += [f"{each.ratio.metric}: {each.note}" for each in verdict.metrics if each.note and each.required]
    if verdict.outcome == "pass" and open_ones:
        lines.append(f"nothing is claimed for {', '.join(open_ones)}: too few messages, or too much noise, to tell")
    if verdict.outcome == "inconclusive":
        lines.append(_remedy(found))
    floors = [f"{each.floor:.1%} in {each.ratio.metric}" for each in verdict.metrics if each.required]
    lines.append(f"noise floor: a slow-down of less than {', '.join(floors)} would not have been shown")
    lines.append(
        f"{verdict.metrics[0].ratio.n:,} messages a side in {verdict.metrics[0].ratio.rounds} rounds,"
        f" {measured.seconds:.0f} s, {measured.stolen:.0%} of the CPU time stolen by others meanwhile"
    )
    return lines


def _remedy(found: Comparison) -> str:
    if not found.live:
        return "the machine drifts more than the margin: time the old artefact in turn, with --rebase OLD"
    if found.needed_s is None:
        return "the estimate lies on the margin: no time would tell"
    return f"it would take about --budget {max(found.needed_s * 1.2, found.measured.seconds * 1.2):.0f}"


def regression_markdown(old: str, new: str, found: Comparison) -> str:
    """A section for a pull request."""
    first, *rest = regression_lines(found)
    rows = [
        f"| {each.ratio.metric}{'' if each.required else ' (may only fail)'} | {each.ratio.old:.3g} |"
        f" {each.ratio.new:.3g} | {each.ratio.value:.3f} | {_interval(each)} | {each.outcome} |"
        for each in found.regression.metrics
    ]
    return "\n".join(
        [
            f"### Latency: {first}",
            "",
            f"`{new}` against `{old}`, {'timed in turn' if found.live else 'a baseline'},"
            f" margin {found.regression.rule.margin:.0%}.",
            "",
            "| metric | old | new | slow-down | bounds | verdict |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
            *rows,
            "",
            "ms; throughput in messages a second, its slow-down in time per message.",
            "",
            *[f"- {line}" for line in rest],
            "",
        ]
    )


def _interval(each: MetricVerdict) -> str:
    return f"{each.lower:.3f} to {each.upper:.3f}"


def regression_junit(old: str, new: str, found: Comparison) -> str:
    """JUnit XML: a case for each metric; a required one that is inconclusive is an error, another one is skipped."""
    cases: list[tuple[ElementTree.Element, Mapping[str, int]]] = []
    for each in found.regression.metrics:
        case = ElementTree.Element("testcase", classname="deploykit.latency", name=each.ratio.metric)
        text = f"{each.ratio.value:.3f} times as slow ({_interval(each)}). {each.note}".strip()
        if each.outcome == "fail":
            ElementTree.SubElement(case, "failure", message="slower").text = text
        elif each.outcome == "inconclusive" and each.required:
            ElementTree.SubElement(case, "error", message="inconclusive").text = text
        elif each.outcome == "inconclusive":
            ElementTree.SubElement(case, "skipped", message="inconclusive, and not required")
        cases.append((case, {kind: len(case.findall(kind)) for kind in ("failure", "error", "skipped")}))
    total = {kind: sum(counts[kind] for _, counts in cases) for kind in ("failure", "error", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        name=f"latency of {new} against {old}",
        tests=str(len(cases)),
        failures=str(total["failure"]),
        errors=str(total["error"]),
        skipped=str(total["skipped"]),
        time=f"{found.measured.seconds:.1f}",
    )
    suite.extend(case for case, _ in cases)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
