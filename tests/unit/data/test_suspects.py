"""What is looked at in labelled messages: wrong labels, rare classes, languages, personal data."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from deploykit.data import suspects
from deploykit.data.suspects import find_suspects
from deploykit.data.table import Table

GERMAN = ("wo ist mein Paket, das ich am Montag bestellt habe", "ich möchte die Bestellung bitte stornieren")
CLEAN = "where is the parcel that i ordered on monday"


def table(texts: list[str], labels: list[str] | None = None) -> Table:
    return Table("data.csv", tuple(texts), tuple(labels or ["a", "b"] * (len(texts) // 2)), tuple(range(len(texts))))


def test_labels_that_were_swapped_are_found(toy_data: Any) -> None:
    pytest.importorskip("cleanlab")
    rows = toy_data.train
    rng = random.Random(0)
    swapped = sorted(rng.sample(range(len(rows)), 12))
    labels = list(rows.labels)
    for index in swapped:
        labels[index] = next(label for label in toy_data.label_names if label != labels[index])
    found = find_suspects(replace(rows, labels=tuple(labels)))
    named = {each.at for each in found.labels}
    planted = {rows.at(index) for index in swapped}
    assert len(named & planted) >= 9
    assert len(named - planted) <= 3
    right = {rows.at(index): rows.labels[index] for index in swapped}
    assert sum(right.get(each.at) == each.likelier for each in found.labels) >= 9
    assert f"{found.wrong_labels} labels look wrong" in found.warnings("train")[0]


def test_sound_labels_are_left_alone(toy_data: Any) -> None:
    pytest.importorskip("cleanlab")
    found = find_suspects(toy_data.train)
    assert found.wrong_labels is not None
    assert found.wrong_labels <= len(toy_data.train) // 100


def test_rare_classes_and_imbalance() -> None:
    found = find_suspects(table([f"message {number}" for number in range(44)], ["a"] * 40 + ["b"] * 4))
    assert (found.rare, found.imbalance) == ({"b": 4}, 10.0)
    assert found.warnings("train")[-1] == "train: classes with fewer than 10 rows: 'b' (4)"
    many = find_suspects(table([f"message {number}" for number in range(14)], list("aabbccddeeffgg")))
    assert many.warnings("train")[-1].endswith("'e' (2) and 2 more")


def test_labels_among_very_many_classes_are_not_judged() -> None:
    """One model for each of thousands of classes would take minutes and gigabytes."""
    pytest.importorskip("cleanlab")
    found = find_suspects(table([f"message {number}" for number in range(2002)], [str(n // 2) for n in range(2002)]))
    assert found.wrong_labels is None
    assert found.not_checked[0] == "labels that look wrong: there are 1,001 classes, more than 1,000"


def test_fewer_rows_are_judged_where_there_are_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cleanlab")
    monkeypatch.setattr(suspects, "_JUDGED_PROBABILITIES", 40)
    found = find_suspects(table([f"message {number}" for number in range(30)]))
    assert found.not_checked[0] == "labels that look wrong, but for 20 of the 30 rows"


def test_a_second_language_is_named() -> None:
    pytest.importorskip("py3langid")
    found = find_suspects(table([f"{CLEAN} please tell me number {number}" for number in range(18)] + list(GERMAN)))
    assert list(found.languages or {})[:2] == ["en", "de"]
    assert any("more than one language: en, de 10%" in line for line in found.warnings("train"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("e-mail addresses", "write to jane.doe+shop@example.co.uk please"),
        ("card numbers", "my card 4111 1111 1111 1111 was declined"),
        ("card numbers", "card 5500-0000-0000-0004."),
        ("bank accounts (IBAN)", "refund to GB82 WEST 1234 5698 7654 32"),
        ("bank accounts (IBAN)", "de89370400440532013000 is mine"),
        ("telephone numbers", "call me at +44 20 7946 0958"),
        ("telephone numbers", "0049 30 901820"),
        ("IP addresses", "blocked from 192.168.17.4"),
    ],
)
def test_personal_data_is_seen(kind: str, text: str) -> None:
    found = find_suspects(table([CLEAN, text]))
    assert [(each.kind, each.messages) for each in found.personal] == [(kind, 1)]
    assert "row 1" in found.personal[0].places[0]
    assert any(kind in line for line in found.warnings("train"))


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112 is late", "my order 1234567890123 and invoice 20260131",
        "on 2026-11-22 at 10:30 i paid 1,299.00", "version 1.2.3 of the app", "GB82 WEST 1234 5698 7654 33",
        "flight AB1234567890 at 12.30", "0000 0000 0000 0000", "twitter @jane",
    ],
)  # fmt: skip
def test_other_numbers_are_no_personal_data(text: str) -> None:
    assert find_suspects(table([CLEAN, text])).personal == ()


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects.importlib.util, "find_spec", lambda name: None)
    found = find_suspects(table([CLEAN] * 4))
    assert (found.wrong_labels, found.languages) == (None, None)
    assert len(found.not_checked) == 2
    assert all("deploykit[checks]" in reason for reason in found.not_checked)
