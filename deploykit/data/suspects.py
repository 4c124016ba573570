"""What a person should look at in labelled messages: labels that look wrong, rare classes, languages, personal data.

Suspects are not errors: a model can be trained with all of them. Labels are judged by confident learning (Northcutt,
Jiang and Chuang 2021) over out-of-sample probabilities of a linear model on words and pairs of words.
"""

from __future__ import annotations

__all__ = ["LabelSuspect", "PersonalData", "Suspects", "find_suspects"]

import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit.data.table import Table

_FOLDS = 5
_SHOWN = 20
_SURE, _DOUBTED = 0.5, 0.1
"""How likely another label has to be, and the own one at most, to be named."""
_SAMPLED = 2000
"""Messages whose language is asked for."""
_JUDGED = 50_000
"""Rows whose label is judged: the words and pairs of words of more would not fit in memory."""
_JUDGED_PROBABILITIES = 5_000_000
"""Rows times classes that are judged: each is a step of the linear model in every pass."""
_JUDGED_CLASSES = 1000
"""Classes among which labels are judged: of more there would be too few rows each."""
_LEAST_WORDS = 4
"""Shorter messages say little about their language."""
_RARE = 10
"""Rows of a class below which it is rare."""
_ENOUGH = 0.02
"""The share of the messages from which a language beside the first is named."""


@dataclass(frozen=True)
class LabelSuspect:
    """A label that looks wrong.

    Attributes:
        at: its place in the file.
        text: the message.
        label: that it has.
        likelier: the label that a model gives it that has not seen it.
        confidence: of that model in the label that it has, a fraction.
    """

    at: str
    text: str
    label: str
    likelier: str
    confidence: float


@dataclass(frozen=True)
class PersonalData:
    """A kind of personal data, the messages that hold it, and where the first of them stand."""

    kind: str
    messages: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class Suspects:
    """What was found in a table; plain values only, so that it can be stored as JSON.

    Attributes:
        labels: that look wrong, the likeliest first; at most 20.
        wrong_labels: how many there are; None where it was not looked for.
        rare: the classes with fewer than ten rows, with their rows.
        imbalance: rows of the largest class over those of the smallest.
        languages: shares of the messages by ISO 639-1 code, the most frequent first; None where it was not looked for.
        personal: personal data by kind.
        not_checked: what was not looked for, and why.
    """

    labels: tuple[LabelSuspect, ...]
    wrong_labels: int | None
    rare: Mapping[str, int]
    imbalance: float
    languages: Mapping[str, float] | None
    personal: tuple[PersonalData, ...]
    not_checked: tuple[str, ...]

    def warnings(self, source: str) -> list[str]:
        """What a person should look at, a line each."""
        found = []
        if self.wrong_labels:
            first = self.labels[0]
            found.append(
                f"{source}: {self.wrong_labels} labels look wrong, e.g. {first.text[:60]!r} ({first.at}) is "
                f"{first.label!r} and looks like {first.likelier!r}"
            )
        if self.rare:
            named = ", ".join(f"{label!r} ({rows})" for label, rows in list(self.rare.items())[:5])
            more = f" and {len(self.rare) - 5:,} more" if len(self.rare) > 5 else ""
            found.append(f"{source}: classes with fewer than {_RARE} rows: {named}{more}")
        others = [f"{code} {share:.0%}" for code, share in list((self.languages or {}).items())[1:] if share >= _ENOUGH]
        if others:
            found.append(f"{source}: more than one language: {next(iter(self.languages or {}))}, {', '.join(others)}")
        found += [
            f"{source}: {each.messages} messages seem to hold {each.kind}, e.g. {each.places[0]}"
            for each in self.personal
        ]
        return found


def find_suspects(table: Table, seed: int = 0, *, textual: bool = True) -> Suspects:
    """Look through a table of one class a row; of spans only texts are looked at.

    Args:
        table: with labels.
        seed: of the folds, and of the messages whose language is asked for.
        textual: whether messages are texts; of other ones only the counts of labels are looked at.
    """
    labels = [label for label in table.labels or () if isinstance(label, str)]
    counts = Counter(labels)
    skipped = []
    wrong: list[LabelSuspect] | None = None
    if not textual:
        skipped.append("labels that look wrong, languages, personal data: they are looked for in texts only")
    elif not labels or len(labels) != len(table):
        skipped.append("labels that look wrong: rows have spans, not one class")
    elif importlib.util.find_spec("cleanlab") is None:
        skipped.append("labels that look wrong: pip install 'deploykit[checks]'")
    elif len(counts) > _JUDGED_CLASSES:
        skipped.append(f"labels that look wrong: there are {len(counts):,} classes, more than {_JUDGED_CLASSES:,}")
    else:
        most = min(_JUDGED, _JUDGED_PROBABILITIES // len(counts))
        wrong = _wrong_labels(table, labels, seed, most)
        if len(labels) > most:
            skipped.append(f"labels that look wrong, but for {most:,} of the {len(labels):,} rows")
    languages = None
    if textual and importlib.util.find_spec("py3langid") is None:
        skipped.append("languages: pip install 'deploykit[checks]'")
    elif textual:
        languages = _languages(table.texts, seed)
    return Suspects(
        labels=tuple((wrong or [])[:_SHOWN]),
        wrong_labels=None if wrong is None else len(wrong),
        rare={label: rows for label, rows in sorted(counts.items(), key=lambda each: each[1]) if rows < _RARE},
        imbalance=max(counts.values()) / min(counts.values()) if counts else 1.0,
        languages=languages,
        personal=_personal(table) if textual else (),
        not_checked=tuple(skipped),
    )


def _wrong_labels(table: Table, labels: Sequence[str], seed: int, most: int) -> list[LabelSuspect]:
    """The labels that confident learning takes for wrong, the least self-confident first; of classes of two rows up.

    Args:
        most: rows that are judged at most, drawn by the seed.
    """
    counts = Counter(labels)
    judged = [index for index, label in enumerate(labels) if counts[label] >= 2]
    if len(judged) > most:
        drawn = np.random.default_rng(seed).choice(len(judged), most, replace=False)
        counts = Counter(labels[judged[place]] for place in drawn)
        judged = [judged[place] for place in sorted(drawn.tolist()) if counts[labels[judged[place]]] >= 2]
    names = sorted({labels[index] for index in judged})
    if len(names) < 2:
        return []
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of[labels[index]] for index in judged])
    probabilities = _out_of_sample([table.texts[index] for index in judged], numbers, len(names), seed)
    issues = importlib.import_module("cleanlab.filter").find_label_issues(
        numbers, probabilities, return_indices_ranked_by="self_confidence", filter_by="both", n_jobs=1
    )
    return [
        LabelSuspect(
            at=table.at(judged[place]),
            text=table.texts[judged[place]],
            label=names[numbers[place]],
            likelier=names[int(probabilities[place].argmax())],
            confidence=float(probabilities[place, numbers[place]]),
        )
        for place in map(int, issues)
        if probabilities[place].max() >= _SURE and probabilities[place, numbers[place]] <= _DOUBTED
    ]


def _out_of_sample(texts: Sequence[str], numbers: NDArray[np.int64], classes: int, seed: int) -> NDArray[np.float64]:
    """The probabilities, [texts, classes], of a model that has not seen the text."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, int(np.bincount(numbers).min()))
    found = np.zeros((len(texts), classes))
    for seen, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(numbers, numbers):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
        inputs = words.fit_transform([texts[index] for index in seen])
        model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=1e-3, random_state=seed)
        model.fit(inputs, numbers[seen])
        answers = model.predict_proba(words.transform([texts[index] for index in held_out]))
        found[np.ix_(held_out, model.classes_)] = answers
    return found


def _languages(texts: Sequence[str], seed: int) -> dict[str, float]:
    """The share of each language, of the messages that are long enough to tell."""
    enough = (len(text.split()) >= _LEAST_WORDS for text in texts)
    long = np.flatnonzero(np.fromiter(enough, dtype=np.bool_, count=len(texts)))
    if len(long) > _SAMPLED:
        long = long[np.random.default_rng(seed).choice(len(long), _SAMPLED, replace=False)]
    if not len(long):
        return {}
    telling = [texts[int(index)] for index in long]
    langid = importlib.import_module("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    sure = [code for code, share in map(identifier.classify, telling) if share >= 0.95]
    return {code: count / len(sure) for code, count in Counter(sure).most_common()} if sure else {}


def _card(digits: str) -> bool:
    """The check digit of a payment card (Luhn; ISO/IEC 7812-1, annex B)."""
    numbers = [int(digit) for digit in digits if digit.isdigit()]
    if not 13 <= len(numbers) <= 19 or len(set(numbers)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in numbers[-2::-2]]
    return (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    """The check digits of an account number (ISO 13616, modulo 97)."""
    compact = text.replace(" ", "").upper()
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1


def _phone(text: str) -> bool:
    """As long as a telephone number with its country or area (ITU-T E.164)."""
    return 8 <= sum(letter.isdigit() for letter in text) <= 15 and not _card(text)


_IBAN = re.compile(
    r"\b[A-Za-z]{2}\d{2}(?:[A-Za-z0-9]{11,30}|(?: [A-Za-z0-9]{4}){2,7}(?: (?=[A-Za-z0-9]{0,3}\d)[A-Za-z0-9]{1,4})?)\b"
)

PII_KINDS: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail addresses": (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), lambda text: True),
    "card numbers": (re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]*\d)"), _card),
    "bank accounts (IBAN)": (_IBAN, _iban),
    "telephone numbers": (re.compile(r"(?<![\w.-])(?:\+|00)\d(?:[ ()./-]{0,2}\d){7,13}(?!\w)"), _phone),
    "IP addresses": (
        re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.]*\d)"),
        lambda text: True,
    ),
}
"""What personal data looks like, and what has to hold besides."""


def _personal(table: Table) -> tuple[PersonalData, ...]:
    found = []
    for kind, (pattern, holds) in PII_KINDS.items():
        places = [
            table.at(index)
            for index, text in enumerate(table.texts)
            if any(holds(match[0]) for match in pattern.finditer(text))
        ]
        if places:
            found.append(PersonalData(kind, len(places), tuple(places[:3])))
    return tuple(found)
