"""The answer to a question as it is marked in its context, and how it is read."""

from __future__ import annotations

__all__ = ["AnswerInContext"]

from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.data.labels import MarkedSpans, Quote
from deploykit.errors import DataError

_ANSWER = "answer"


@dataclass(frozen=True)
class AnswerInContext:
    """One span at most behind the first line break of a message: in one column as spans are, or its start and its end.

    Attributes:
        columns: one with a JSON list of `{"start", "end", "label"}`; or those of the start and the end.
    """

    columns: tuple[str, ...]

    def read(self, text: str, values: Sequence[object], where: str) -> Quote:
        """The answer; one of no characters where the columns are empty.

        Raises:
            DataError: the message has no line break, the span can't be read, or is not one in the context.
        """
        if len(self.columns) == 1:
            if isinstance(values[0], str) and values[0].strip() and not values[0].lstrip().startswith("["):
                raise DataError(
                    f"{where}: {self.columns[0]!r} marks no answer: {values[0][:40]!r}",
                    'write [{"start": 45, "end": 52, "label": "answer"}], or name two columns, its start and its end',
                )
            spans = MarkedSpans(self.columns).read(text, values, where)
        else:
            given = _ANSWER if any(value not in (None, "") for value in values) else ""
            spans = MarkedSpans((_ANSWER, *self.columns)).read(text, [given, *values], where)
        context = text.find("\n") + 1
        if not context:
            raise DataError(
                f"{where}: there is no line break in the message", "write the question, a line break, then the context"
            )
        if len(spans) > 1:
            raise DataError(f"{where}: {len(spans)} answers to one question", "mark one of them")
        if not spans:
            return Quote(0, 0, "")
        if spans[0].start < context:
            raise DataError(
                f"{where}: the answer {spans[0].start}-{spans[0].end} begins before the context, at {context}",
                "offsets count the characters of the whole message, the question and the line break too",
            )
        return Quote(spans[0].start, spans[0].end, text[spans[0].start : spans[0].end])

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The two logits of each token."""
        return ("start", "end")
