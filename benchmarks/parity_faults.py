"""Planted faults that the parity check must catch and place, and harmless changes that it must pass.

    python benchmarks/parity_faults.py --model CHECKPOINT --test test.csv --train train.csv --label category

Each fault of `parity_plants.py` has the check that must catch it, and the place that must be named, written beside it.
Requests that are mixed up under concurrency are planted in a stand-in for the connection to a server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from machine_facts import finish
from parity_plants import CLEAN, FAULTS, TASK, Clean, Fault, Workbench, torch_target

from deploykit import __version__
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.parity.flips import judge_flips
from deploykit.parity.report import ParityReport
from deploykit.pipeline.comparison import compare_models
from deploykit.pipeline.localization import with_location
from deploykit.pipeline.measuring import OutputCache
from deploykit.pipeline.pairs import labels_of
from deploykit.pipeline.served import answers_under_load
from deploykit.runners import Target

MAX_DROP = 0.03


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        name: the case.
        verdict: of the comparison.
        expected: the check, of which one had to fail.
        caught_by: all that failed.
        where: the place that had to be named; None where there is none.
        named: what was named.
        right: caught by what was expected; or passed, for a harmless change.
        placed: named what was expected; None where there is no place.
        seconds: it took.
        enough: the smallest set of modules that was found enough to break it.
    """

    name: str
    verdict: str
    expected: tuple[str, ...]
    caught_by: tuple[str, ...]
    where: str | None
    named: str
    right: bool
    placed: bool | None
    seconds: float
    enough: tuple[str, ...] = ()


def compared(
    bench: Workbench, reference: Target, candidate: Target, labels: Sequence[str], cache: OutputCache
) -> ParityReport:
    names = labels_of(torch_target(bench.checkpoint)) or ()
    report = compare_models(
        reference, candidate, bench.texts, labels, TASK, labels=names, max_drop=MAX_DROP, cache=cache
    )
    return with_location(report, reference, candidate, bench.texts, TASK)


def try_fault(
    fault: Fault, bench: Workbench, labels: Sequence[str], scratch: Path, cache: OutputCache, layers: int
) -> Outcome:
    """Plant one fault, compare, and hold what was found against what was written down."""
    start = time.perf_counter()
    candidate = fault.plant(bench, scratch / "candidate")
    report = compared(bench, torch_target(bench.checkpoint), candidate, labels, cache)
    failed = tuple(check.check for check in report.checks if check.outcome == "fail")
    first = report.localized.findings[0] if report.localized and report.localized.findings else None
    said = f"{report.suspect}" + (f"; {first.part} {first.layer if first.layer is not None else ''}" if first else "")
    breaking = report.localized.breaking if report.localized else None
    placed: bool | None = None
    where = None
    if fault.where is not None:
        part, layer = fault.where
        layer = layers + layer if layer is not None and layer < 0 else layer
        where = part if layer is None else f"{part} {layer}"
        found = first is not None and first.part == part and (layer is None or first.layer == layer)
        placed = found or report.suspect == part
    return Outcome(
        fault.name, report.verdict, fault.check, failed, where, said.strip(), report.verdict == "fail"
        and any(check in failed for check in fault.check), placed, time.perf_counter() - start,
        breaking.modules if breaking else (),
    )  # fmt: skip


def try_clean(clean: Clean, bench: Workbench, labels: Sequence[str], scratch: Path, cache: OutputCache) -> Outcome:
    """Make one harmless change and compare: it has to pass."""
    start = time.perf_counter()
    report = compared(bench, clean.reference(bench), clean.make(bench, scratch / "candidate"), labels, cache)
    doubted = tuple(f"{check.check}: {check.outcome}" for check in report.checks if check.outcome != "pass")
    return Outcome(
        clean.name, report.verdict, (), doubted, None, "", report.verdict != "fail", None, time.perf_counter() - start
    )


class MixedUp:
    """A connection that answers well, but gives an answer to the wrong one of two that ask at once, now and then."""

    _lock = threading.Lock()
    _asking = 0

    def __init__(self, answers: dict[str, str], every: int) -> None:
        self._answers, self._every = answers, every
        self._texts = list(answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def infer(self, messages: Sequence[str]) -> dict[str, Any]:
        with self._lock:
            MixedUp._asking += 1
            number = zlib.crc32(messages[0].encode())
            crossed = MixedUp._asking > 1 and number % self._every == 0
        time.sleep(0.001)
        with self._lock:
            MixedUp._asking -= 1
        text = self._texts[number % len(self._texts)] if crossed else messages[0]
        return {"answer": np.array([self._answers[text]], dtype=np.object_)}


def try_mixed_up(answers: Sequence[str], texts: Sequence[str], every: int) -> Outcome:
    """Requests mixed up under concurrency, at the seam where answers under load are taken."""
    start = time.perf_counter()
    known = dict(zip(texts, answers, strict=True))
    loaded = answers_under_load(lambda: MixedUp(known, every), list(texts))
    verdict = judge_flips(answers, loaded, MAX_DROP)
    caught = verdict.outcome == "fail"
    return Outcome(
        "requests mixed up under concurrency", verdict.outcome, ("answers under 16 clients against given singly",),
        ("answers under 16 clients against given singly",) if caught else (), "server", "server" if caught else "",
        caught, caught, time.perf_counter() - start,
    )  # fmt: skip


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shown(outcome: Outcome) -> str:
    mark = "ok " if outcome.right and outcome.placed is not False else "BAD"
    placed = "" if outcome.placed is None else f" | wanted {outcome.where}, named {outcome.named}"
    by = ", ".join(outcome.caught_by) or "-"
    enough = f" | enough: {', '.join(outcome.enough)}" if outcome.enough else ""
    return f"{mark} {outcome.name}: {outcome.verdict} by {by}{placed}{enough} ({outcome.seconds:.0f} s)"


def chosen(name: str, only: Sequence[str] | None) -> bool:
    """Whether a case is asked for."""
    return not only or any(part in name for part in only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a fine-tuned checkpoint folder of the BERT kind")
    parser.add_argument("--test", required=True)
    parser.add_argument("--train", required=True, help="for calibration")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--only", action="append", help="cases whose name holds this; may be repeated")
    parser.add_argument("--work", type=Path, help="keeps exported forms and outcomes: run it again to go on")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    columns = Columns(arguments.text, arguments.label)
    test, train = read_rows(arguments.test, columns), read_rows(arguments.train, columns)
    step = max(1, len(test.texts) // arguments.messages)
    texts, labels = test.texts[::step], list((test.labels or ())[::step])
    with contextlib.ExitStack() as stack:
        work = arguments.work or stack.enter_context(scratch_folder(Path(tempfile.gettempdir())))
        work.mkdir(parents=True, exist_ok=True)
        bench = Workbench.made(arguments.model, work, texts, train.texts[:: max(1, len(train.texts) // 200)])
        cache = OutputCache(work / "outputs")
        layers = int(json.loads((arguments.model / "config.json").read_text())["num_hidden_layers"])
        done = work / f"outcomes-{__version__}-{len(texts)}.json"
        known = json.loads(done.read_text()) if done.is_file() else {}

        def outcome_of(name: str, tried: Callable[[Path], Outcome]) -> Outcome:
            """What was found before, or is now."""
            if name not in known:
                with scratch_folder(work) as scratch:
                    known[name] = asdict(tried(scratch))
                done.write_text(json.dumps(known))
            found = Outcome(
                **{key: tuple(each) if isinstance(each, list) else each for key, each in known[name].items()}
            )
            print(shown(found), file=sys.stderr, flush=True)
            return found

        faults = [
            outcome_of(fault.name, partial(try_fault, fault, bench, labels, cache=cache, layers=layers))
            for fault in FAULTS
            if chosen(fault.name, arguments.only)
        ]
        if not arguments.only:
            faults.append(outcome_of("requests mixed up", lambda scratch: try_mixed_up(labels, texts, every=10)))
        cleans = [
            outcome_of(f"clean: {clean.name}", partial(try_clean, clean, bench, labels, cache=cache))
            for clean in CLEAN
            if chosen(clean.name, arguments.only)
        ]
    placed = [outcome.placed for outcome in faults if outcome.placed is not None]
    figures = {
        "messages": len(texts),
        "faults": len(faults),
        "caught": sum(outcome.verdict == "fail" for outcome in faults),
        "caught_by_the_check_expected": sum(outcome.right for outcome in faults),
        "with_a_place": len(placed),
        "placed_rightly": sum(placed),
        "clean": len(cleans),
        "false_alarms": sum(outcome.verdict == "fail" for outcome in cleans),
        "inconclusive": sum(outcome.verdict == "inconclusive" for outcome in cleans),
        "cases": [asdict(outcome) for outcome in (*faults, *cleans)],
    }
    finish("parity_faults", figures, as_json=arguments.json, save=arguments.save)
    missed = figures["caught"] < len(faults) or figures["false_alarms"] or figures["inconclusive"] > 3
    sys.exit(1 if missed or (placed and sum(placed) < 0.9 * len(placed)) else 0)


if __name__ == "__main__":
    main()
