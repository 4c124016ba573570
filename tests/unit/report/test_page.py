"""The page says what the figures say, whatever the data holds, and loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.data.suspects import LabelSuspect, PersonalData, Suspects
from deploykit.errors import ArtifactError, ExitCode
from deploykit.parity.report import ParityReport, Predictions, build_report
from deploykit.parity.verdict import Verdict
from deploykit.report.page import next_step, write_report
from deploykit.report.result import Figures, GoalOutcome, Learned, PrunedCandidate, RunResult, Shipped, exit_code_of
from deploykit.report.table import DASH, markdown_table

NAMES = ("card", "loan", "fees")
HOSTILE = "<script>alert('x')</script>"
TIMED = Verdict(
    "float32 ONNX against PyTorch", "pass", 7.15e-7, None, 1e-4, 1200, "absolute difference", "", ("worst",)
)
FAILED = Verdict("tokenizer", "fail", 3.0, None, 0.0, 1200, "items", "Use the model's own tokenizer.json.", ("row 7",))


def parity(
    wrong: int = 3, *, labelled: bool = True, checks: tuple[Verdict, ...] = (TIMED,), **given: Any
) -> ParityReport:
    """A comparison on 1,200 messages in which the candidate gets the first few wrong."""
    names = given.pop("names", NAMES)
    labels = [names[item % 3] for item in range(1200)]
    after = [names[(item + 1) % 3] if item < wrong else label for item, label in enumerate(labels)]
    correct = np.array([answer == label for answer, label in zip(after, labels, strict=True)])
    texts = given.pop("texts", [f"message {item}" for item in range(1200)])
    judged: dict[str, Any] = {"labels": labels, "margin": 0.01} if labelled else {"max_flips": 0.02}
    judged |= {"instruction_set": "avx512_vnni", "served": True, "checks": checks}
    return build_report(
        Predictions(labels, np.ones(1200, dtype=np.bool_) if labelled else None),
        Predictions(after, correct if labelled else None),
        texts,
        **(judged | given),
    )


def goal(outcome: Any = "pass", *, wanted: float = 6.0, note: str = "7.4x at p50") -> GoalOutcome:
    return GoalOutcome(limit="speedup", wanted=wanted, reached=7.41, outcome=outcome, note=note)


def run(compared: ParityReport, *goals: GoalOutcome, shipped: dict[str, Any] | None = None, **given: Any) -> RunResult:
    """A run with a figure of its own in every place."""
    code = exit_code_of(compared.verdict, goals)
    published = code == ExitCode.PASS
    figures: dict[str, Any] = {
        "name": "shipped", "value": compared.candidate, "p50_ms": 2.57, "p50_range_ms": (2.41, 2.73), "p99_ms": 5.31,
        "size_mb": 23.8, "drop": compared.drop, "drop_upper": compared.drop_upper, "discordant": compared.discordant,
        "flips": compared.flips, "speedup": 7.41, "served_p50_ms": 4.21, "served_p99_ms": 7.72, "served_speedup": 4.52,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "name": "support_intents", "verdict": compared.verdict, "statement": compared.statement, "n": compared.n,
        "metric": compared.metric, "goal": goals, "scheme": "int8_dynamic-fused", "messages": 400, "stolen": 0.0123,
        "reference": Figures(
            name="PyTorch fp32", value=compared.reference, p50_ms=19.04, p50_range_ms=(18.33, 20.61), p99_ms=31.25,
            size_mb=91.6,
        ),
        "onnx_fp32": Figures(
            name="ONNX fp32", value=compared.reference, p50_ms=5.03, p50_range_ms=(4.91, 5.44), p99_ms=9.92,
            size_mb=91.9,
        ),
        "shipped": Shipped(**(figures | (shipped or {}))), "machine": "A CPU of 2 cores", "kept": "store/package/7f3a",
        "package": "model_repository/support_intents/3" if published else None, "version": 3 if published else None,
        "parity": "store/parity/12ab/parity.json", "report": "reports/support_intents.html", "exit_code": int(code),
    }  # fmt: skip
    return RunResult(**(fields | given))


class Page(HTMLParser):
    """What a browser would read: the words, the tags with their attributes, the cells of each row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.styles, self._open, self._words = "", [""], [""]
        self.feed(html)
        self.words = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] == "style":
            self.styles += data
            return
        self._words.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0].split("\n")[0].startswith(name))

    def attributes(self, tag: str, kind: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag and kind in (found.get("class") or "").split()]


def page(result: RunResult, report: ParityReport, folder: Path) -> Page:
    return Page(write_report(result, report, folder / "page.html").read_text(encoding="utf-8"))


def test_every_figure_is_on_the_page(tmp_path: Path) -> None:
    report = parity()
    result = run(report, goal())
    shown = page(result, report, tmp_path)
    assert shown.row("PyTorch fp32")[1:] == ["100.00", DASH, DASH, "19.04 18.33 to 20.61", "31.25", "91.6", "1.0x"]
    assert shown.row("ONNX fp32")[1:] == ["100.00", "0.00", DASH, "5.03 4.91 to 5.44", "9.92", "91.9", "3.8x"]
    upper = f"{100 * (report.drop_upper or 0):.2f}"
    assert shown.row("What ships")[1:] == ["99.75", "0.25", upper, "2.57 2.41 to 2.73", "5.31", "23.8", "7.4x"]
    assert shown.row("Served")[1:] == ["99.75", "0.25", upper, "4.21", "7.72", "23.8", "4.5x"]
    assert shown.row("speedup") == ["speedup", "✓ pass", "at least 6x", "7.41x", "7.4x at p50"]
    assert shown.row("accuracy drop")[2:] == ["0.25 points", f"{upper} points", "below 1.00 points", "1,200"]
    assert shown.row("float32 ONNX")[1:] == ["✓ pass", "7.15e-07", DASH, "at most 0.0001", "1,200"]
    assert shown.row("card") == ["card", "400", "1", "100.00", "99.75", "−0.25"]
    assert shown.row("1") == ["1", "message 1", "loan", "loan", "fees"]
    for words in (
        "support_intents", "Passed", "fell by less than", "All 2 checks passed on 1,200 messages",
        "Published as version 3",
        "deploykit serve model_repository", "A CPU of 2 cores", "400 test messages per form", "alternating blocks",
        "1.23 % was taken by others", "int8_dynamic-fused", "avx512_vnni", "model_repository/support_intents/3",
        "store/package/7f3a", "store/parity/12ab/parity.json", "reports/support_intents.html", "3 of 1,200", "3 and 0",
        "3 right to wrong, 0 wrong to right of 1200", "0 of 3 classes kept every answer",
    ):  # fmt: skip
        assert words in shown.words, words


def test_what_the_data_holds_is_shown_and_never_run(tmp_path: Path) -> None:
    texts = [f"{HOSTILE} {item}" for item in range(1200)]
    report = parity(names=(HOSTILE, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"), texts=texts, checks=())
    evil = Verdict(HOSTILE, "fail", 1.0, None, 0.0, 9, "items", HOSTILE, (HOSTILE,))
    report = report.model_copy(update={"verdict": "fail", "checks": (*report.checks, evil), "instruction_set": HOSTILE})
    hostile: dict[str, Any] = dict.fromkeys(
        ("name", "statement", "scheme", "machine", "kept", "parity", "report"), HOSTILE
    )
    result = run(report, goal(note=HOSTILE), **hostile)
    html = write_report(result, report, tmp_path / "page.html").read_text(encoding="utf-8")
    shown = Page(html)
    assert html.count("<script") == 0
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script", "img"})
    assert [f"{HOSTILE} 0", HOSTILE, HOSTILE] == shown.row("0")[1:4]
    assert "{{ 7 * 7 }}" in shown.words
    assert shown.words.count(HOSTILE) >= 12


def test_an_image_is_shown_as_one(tmp_path: Path) -> None:
    texts = [f"data:image/png;base64,{item:04d}" for item in range(1200)]
    texts[1] = 'data:image/png;base64,"><script>alert(1)</script>'
    report = parity(texts=texts, checks=())
    shown = Page(write_report(run(report, goal()), report, tmp_path / "page.html").read_text(encoding="utf-8"))
    images = [found["src"] for tag, found in shown.tags if tag == "img"]
    assert images == [sample.text for sample in report.changed]
    assert images
    assert "script" not in {tag for tag, _ in shown.tags}


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    report = parity()
    path = write_report(run(report, goal()), report, tmp_path / "page.html")
    shown = Page(path.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//\w", path.read_text(encoding="utf-8"))
    assert not re.search(r"@import|url\(|@font-face", shown.styles)
    assert {tag for tag, _ in shown.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "base", "use"}
    )
    for tag, attributes in shown.tags:
        assert {"src", "href", "srcset", "action", "data", "xlink:href"}.isdisjoint(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    policies = [found["content"] for _, found in shown.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_both_themes_and_paper_are_styled(tmp_path: Path) -> None:
    report = parity()
    styles = page(run(report), report, tmp_path).styles
    assert "@media screen and (prefers-color-scheme: dark)" in styles
    assert "@media print" in styles
    assert set(re.findall(r"var\((--[a-z-]+)\)", styles)) <= set(re.findall(r"(--[a-z-]+):", styles))


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    report = parity(labelled=False, served=False)
    nothing: dict[str, Any] = dict.fromkeys(("value", "p50_ms", "p50_range_ms", "p99_ms", "size_mb"))
    unserved: dict[str, Any] = dict.fromkeys(("speedup", "served_p50_ms", "served_p99_ms", "served_speedup"))
    empty = Figures(name="PyTorch fp32", **nothing)
    result = run(report, reference=empty, onnx_fp32=Figures(name="ONNX fp32", **nothing), shipped=nothing | unserved)
    shown = page(result, report, tmp_path)
    for name in ("PyTorch fp32", "ONNX fp32", "What ships", "Served"):
        assert shown.row(name)[1:] == [DASH] * 7
        assert markdown_row(result, name)[1:] == [DASH] * 7
    assert shown.row("card") == ["card", "400", "1", DASH, DASH, DASH]
    assert shown.row("0") == ["0", "message 0", DASH, "card", "loan"]
    assert "None" not in shown.words
    assert "Not judged: the data has no labels" in shown.words
    assert "not served" in shown.words
    assert "accuracy not checked: the data has no labels; the way through a server" in shown.words
    assert not shown.attributes("rect", "bar")


def test_a_failed_run_says_what_failed_and_what_to_do(tmp_path: Path) -> None:
    report = parity(wrong=40, checks=(TIMED, FAILED))
    result = run(report, goal())
    shown = page(result, report, tmp_path)
    assert "Failed 2 of 3 checks failed: tokenizer, accuracy drop. Nothing was published." in shown.words
    assert shown.row("tokenizer")[1:] == ["✕ fail", "3 items", DASH, "at most 0 items", "1,200"]
    assert "row 7" in shown.words
    assert "→ Use the model's own tokenizer.json." in shown.words
    assert "next tokenizer: Use the model's own tokenizer.json." in shown.words
    assert "Published nothing" in shown.words
    assert shown.attributes("section", "fail")


def test_an_undecided_run_says_how_many_messages_would_decide_it(tmp_path: Path) -> None:
    report = parity(wrong=10)
    shown = page(run(report, goal()), report, tmp_path)
    assert report.verdict == "inconclusive"
    assert "Inconclusive 1 of 2 checks could not be decided on 1,200 messages: accuracy drop." in shown.words
    assert re.search(r"next accuracy drop: Needs about [\d,]+ items", shown.words)
    assert shown.attributes("section", "inconclusive")


def test_a_missed_goal_says_which_limit_and_by_how_much(tmp_path: Path) -> None:
    report = parity()
    result = run(report, goal("fail", wanted=20.0))
    shown = page(result, report, tmp_path)
    assert (
        "Goal missed Parity passed, the goal was not met: speedup 7.41x, 12.59x too low (at least 20x)." in shown.words
    )
    assert shown.row("speedup")[1:4] == ["✕ fail", "at least 20x", "7.41x, 12.59x too low"]
    assert next_step(result, report) == (
        "goal.speedup is at least 20x: reached 7.41x, 12.59x too low; the best so far is in store/package/7f3a"
    )
    slow = GoalOutcome(limit="p99_ms", wanted=5, reached=6.25, outcome="fail", note="9 of 400 above 5 ms")
    assert "goal.p99_ms is at most 5 ms: reached 6.25 ms, 1.25 ms too high" in next_step(
        run(report, goal(), slow), report
    )


def test_an_undecided_goal_is_no_pass(tmp_path: Path) -> None:
    report = parity()
    note = "1 of 400 above 8 ms: too few messages to tell; set latency.messages to 1600"
    undecided = GoalOutcome(limit="p99_ms", wanted=8, reached=6.5, outcome="inconclusive", note=note)
    result = run(report, goal(), undecided)
    assert f"Inconclusive Parity passed, the goal is undecided: p99_ms: {note}." in page(result, report, tmp_path).words
    assert note in next_step(result, report)


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("model_repository/support_intents/3", "deploykit serve model_repository"),
        ("my models/support_intents/3", "deploykit serve 'my models'"),
    ],
)
def test_what_was_published_is_served_next(package: str, command: str) -> None:
    report = parity()
    assert next_step(run(report, package=package, version=3), report) == command


def test_the_next_step_is_that_of_what_decided_the_verdict() -> None:
    unsure = Verdict("answers under load", "inconclusive", 0.001, 0.02, 0.01, 1200, "fraction", "Needs more items.")
    silent = Verdict("float32 ONNX against PyTorch", "fail", 1e-6, None, 1e-4, 1200, "absolute difference")
    first = parity(checks=(unsure, FAILED))
    assert next_step(run(first), first) == "tokenizer: Use the model's own tokenizer.json."
    second = parity(checks=(unsure, silent))
    expected = "float32 ONNX against PyTorch: its details are in reports/support_intents.html"
    assert next_step(run(second), second) == expected


def test_a_run_that_ended_before_publishing_says_so(tmp_path: Path) -> None:
    report = parity()
    result = run(report, goal(), package=None, version=None)
    assert "without --until" in next_step(result, report)
    assert "Nothing was published." in page(result, report, tmp_path).words


def test_the_drop_is_drawn_where_it_lies(tmp_path: Path) -> None:
    for wrong in (3, 10, 40, 0):
        report = parity(wrong=wrong)
        shown = page(run(report), report, tmp_path)
        point = number(shown.attributes("circle", "point")[0]["cx"])
        upper = number(shown.attributes("path", "span")[0]["d"], r"H([\d.]+)M")
        zero, limit = (number(shown.attributes("path", kind)[0]["d"]) for kind in ("zero", "limit"))
        scale = (limit - zero) / 0.01
        assert point == pytest.approx(zero + (report.drop or 0) * scale, abs=0.5)
        assert upper == pytest.approx(zero + (report.drop_upper or 0) * scale, abs=0.5)
        assert all(0 < place < 560 for place in (point, upper, zero, limit))


def test_the_bars_are_as_long_as_the_latencies(tmp_path: Path) -> None:
    report = parity()
    bars = page(run(report), report, tmp_path).attributes("rect", "bar")
    widths = [number(bar["width"]) for bar in bars]
    assert [width / widths[0] for width in widths] == pytest.approx(
        [1, 5.03 / 19.04, 2.57 / 19.04, 4.21 / 19.04], abs=1e-3
    )
    assert ["ships" in str(bar["class"]) for bar in bars] == [False, False, True, True]


def test_at_most_twenty_classes_are_listed_worst_first(tmp_path: Path) -> None:
    labels = [f"class {item % 30:02d}" for item in range(1200)]
    after = ["class 29" if item < 25 or item == 31 else label for item, label in enumerate(labels)]
    correct = np.array([answer == label for answer, label in zip(after, labels, strict=True)])
    report = build_report(
        Predictions(labels, np.ones(1200, dtype=np.bool_)), Predictions(after, correct), labels,
        instruction_set="avx2", served=True, labels=labels, margin=0.05,
    )  # fmt: skip
    shown = page(run(report), report, tmp_path)
    listed = [row[0] for row in shown.rows if row and row[0].startswith("class ") and "," not in row[0]]
    assert listed == ["class 01", "class 00", *(f"class {item:02d}" for item in range(2, 20))]
    assert "5 more classes changed. 5 of 30 classes kept every answer." in shown.words


def test_row_54_a_huge_message_is_cut_and_a_lone_surrogate_is_shown_as_a_question_mark(tmp_path: Path) -> None:
    report = parity(texts=["x" * 1_000_000, "bad \ud800 text", "مرحبا 👋", *("y" for _ in range(1197))])
    path = write_report(run(report), report, tmp_path / "page.html")
    shown = Page(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 100_000
    assert "… and 999,600 more characters" in shown.row("0")[1]
    assert shown.row("1")[1] == "bad ? text"
    assert shown.row("2")[1] == "مرحبا 👋"


def test_no_changed_answer_needs_no_table(tmp_path: Path) -> None:
    report = parity(wrong=0)
    assert "No answer changed. " in page(run(report), report, tmp_path).words


def test_the_page_replaces_an_older_one_in_a_folder_made_for_it(tmp_path: Path) -> None:
    report = parity()
    path = tmp_path / "new" / "reports" / "page.html"
    assert write_report(run(report), report, path) == path
    write_report(run(report, name="another_name"), report, path)
    assert "another_name" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_row_05_a_page_that_cannot_be_written_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    report = parity()
    with pytest.raises(ArtifactError, match="file"):
        write_report(run(report), report, tmp_path / "file" / "page.html")


def test_markdown_has_the_figures_of_the_page(tmp_path: Path) -> None:
    report = parity()
    result = run(report, goal())
    shown = page(result, report, tmp_path)
    for name in ("PyTorch fp32", "ONNX fp32", "What ships", "Served"):
        on_page = shown.row(name)[1:]
        p50, _, spread = on_page[3].partition(" ")
        assert markdown_row(result, name)[1:] == [*on_page[:3], f"{p50} ({spread})" if spread else p50, *on_page[4:]]
    text = markdown_table(result)
    assert text.startswith("**support\\_intents**: pass, 1,200 test messages\n\n| |")
    assert "- goal `speedup` at least 6x; reached 7.41x: pass\n" in text
    assert text.endswith("1.23 % of the CPU time stolen meanwhile.\n")


def test_markdown_shows_markup_as_it_is() -> None:
    report = parity()
    text = markdown_table(run(report, scheme="a|b\n<b>*[x](y)*", machine="`rm` | <i>"))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {9}
    assert "a\\|b \\<b\\>\\*\\[x\\](y)\\*" in text
    assert "\\`rm\\` \\| \\<i\\>" in text


def markdown_row(result: RunResult, name: str) -> list[str]:
    line = next(line for line in markdown_table(result).splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def number(text: str | None, pattern: str = r"([\d.]+)") -> float:
    found = re.search(pattern, text or "")
    assert found is not None
    return float(found[1])


def test_what_pruning_tried_is_on_the_page(tmp_path: Path) -> None:
    report = parity()
    tried = {"predicted_ms": 0.61, "size_mb": 7.32, "fits": True, "front": True, "chosen": False}
    candidates = (
        PrunedCandidate(keeps="layer 0: 12 heads", measured_ms=0.41, loss=1.1, metric=0.64, **tried),
        PrunedCandidate(
            keeps="layer 5: 8 heads", measured_ms=0.58, loss=0.53, metric=0.866, **tried | {"chosen": True}
        ),
        PrunedCandidate(
            keeps="layer 4: 2 heads", measured_ms=0.7, loss=None, metric=None, **tried | {"fits": False, "front": False}
        ),
    )
    shown = page(run(report, goal(), candidates=candidates), report, tmp_path)
    assert shown.row("layer 0")[1:] == ["0.61", "0.41", "7.3", "1.100", "64.00", "on the front"]
    assert shown.row("layer 5")[-1] == "chosen"
    assert shown.row("layer 4")[4:] == [DASH, DASH, "too slow"]
    assert "Pruned candidates" not in page(run(report, goal()), report, tmp_path).words


def test_the_learning_curves_are_drawn(tmp_path: Path) -> None:
    report = parity()
    learned = Learned(loss=((10, 1.5), (20, 0.5), (30, 0.25)), metric=((15, 0.5), (30, 0.75)))
    shown = page(run(report, goal(), learned=learned), report, tmp_path)
    lines = [found for name, found in shown.tags if name == "polyline"]
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for point in str(lines[0]["points"]).split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points), "a falling loss goes down the page"
    assert "loss in training: 1.500 to 0.250" in shown.words
    assert "accuracy on validation: 50.00% to 75.00%" in shown.words
    assert "nothing was learned" not in shown.words


def test_a_model_that_learned_nothing_is_told_beside_the_verdict(tmp_path: Path) -> None:
    report = parity()
    learned = Learned(loss=(), metric=(), warning="accuracy 25.00%: nothing was learned")
    assert "nothing was learned" in page(run(report, goal(), learned=learned), report, tmp_path).words


def test_a_training_that_was_watched_once_has_no_curve(tmp_path: Path) -> None:
    report = parity()
    learned = Learned(loss=(), metric=((15, 0.5),))
    assert "How it learned" not in page(run(report, goal(), learned=learned), report, tmp_path).words


def test_what_to_look_at_in_the_data_is_on_the_page(tmp_path: Path) -> None:
    found = Suspects(
        labels=(LabelSuspect("train.csv: line 7", HOSTILE, "card", "loan", 0.02),), wrong_labels=3, rare={"fees": 4},
        imbalance=12.5, languages={"en": 0.9, "de": 0.1}, personal=(PersonalData("e-mail addresses", 8, ("line 2",)),),
        not_checked=(),
    )  # fmt: skip
    compared = parity()
    page = write_report(run(compared, suspects={"train": found}), compared, tmp_path / "page.html").read_text()
    for words in (
        "3 labels look wrong",
        "train.csv: line 7",
        "12.5 times",
        "8 messages seem to hold e-mail",
        "de 10 %",
    ):
        assert words in page
    assert HOSTILE not in page
    without = write_report(run(compared), compared, tmp_path / "without.html").read_text()
    assert "What to look at in the data" not in without
