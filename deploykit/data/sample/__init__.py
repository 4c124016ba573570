"""The project's own sample data: labelled customer messages of an online shop, made by a seeded generator.

The desk belongs to a shop for household and leisure goods. Every message has one of 32 intents, or `out_of_scope` when
it is not that desk's business. Templates, the sentences around them and the entity values differ between train and
test, so that no model can know the test split by heart. Further messages of the same shop show a feeling, or none, and
come as a stream over some weeks. What its customers looked at and bought is there too, and questions about its help
page.
"""

from __future__ import annotations

from .digits import DigitRow, digit_rows
from .feelings import FeltRow, sentiment_rows
from .offers import OfferEntry, OfferRow, offer_entries, offer_rows
from .questions import QuestionRow, question_rows
from .rows import (
    OUT_OF_SCOPE,
    FaqRow,
    SampleRow,
    Span,
    faq_entries,
    faq_rows,
    intent_rows,
    support_rows,
    write_support_csv,
)
from .stream import StreamRow, stream_rows

__all__ = [
    "OUT_OF_SCOPE", "DigitRow", "FaqRow", "FeltRow", "OfferEntry", "OfferRow", "QuestionRow", "SampleRow", "Span",
    "StreamRow", "digit_rows", "faq_entries", "faq_rows", "intent_rows", "offer_entries", "offer_rows",
    "question_rows", "sentiment_rows", "stream_rows", "support_rows", "write_support_csv",
]  # fmt: skip
