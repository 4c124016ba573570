"""Messages chosen to break a model: what real data seldom holds and clients send all the same."""

from __future__ import annotations

__all__ = ["HARD_TEXTS", "UNENCODABLE", "text_of_length"]

from collections.abc import Callable
from typing import Final

HARD_TEXTS: Final[tuple[tuple[str, str], ...]] = (
    ("empty", ""),
    ("one blank", " "),
    ("whitespace", " \t\r\n \u00a0\u2003 "),
    ("one letter", "a"),
    ("one word", "help"),
    ("one full stop", "."),
    ("capital letters", "WHERE IS MY Refund? PLEASE Answer"),
    ("accents", "où est passée ma commande, señor Müller? ça a coûté 12 €"),
    ("decomposed accents", "ou\u0300 est passe\u0301e ma commande"),
    ("emoji", "my card 💳 was eaten 😡 help 🙏🏽"),
    ("joined emoji", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪"),
    ("Hebrew", "איפה ההזמנה שלי? 123"),
    ("Arabic", "أين طلبي؟ لم يصل بعد"),
    ("direction marks", "\u202eabc\u202c refund \u200f\u200e"),
    ("Chinese", "我的订单在哪里？请退款"),
    ("Japanese", "カードが使えません。助けてください"),
    ("Korean", "내 카드가 작동하지 않습니다"),
    ("Hindi", "मेरा पैसा वापस करो"),
    ("Thai", "บัตรของฉันหายไป"),
    ("Cyrillic", "где мой возврат денег"),
    ("unknown pieces", "\u16a0\u16a2\u16a6 \U00010330\U00010331 \ue000\ue001"),
    ("NUL", "card\x00lost\x00"),
    ("control characters", "card\x01\x02\x7f\x1b[31m declined"),
    ("zero width", "re\u200bfund\ufeff my\u2060 money"),
    ("full-width", "ｒｅｆｕｎｄ　ｐｌｅａｓｅ"),
    ("digits", "4929 1234 5678 9012 exp 01/29 0.0000001 -1e308"),
    ("special tokens", "[CLS] refund [SEP] [PAD] [MASK] [UNK] <s> </s> <pad>"),
    ("markup", "<b>refund</b> &amp; {\"text\": null} '; DROP TABLE cards; --"),
    ("one long word", "pneumonoultramicroscopicsilicovolcanoconiosis" * 8),
    ("repeated mark", "?" * 100),
)  # fmt: skip
"""Names and texts. A fixed list: a text that once broke a model is added, never taken out."""

UNENCODABLE: Final = "lost \ud800 card"
"""A lone surrogate, which UTF-8 can't carry: every model has to refuse it, and to go on."""


def text_of_length(length: int, count_tokens: Callable[[str], int], word: str = "card") -> str:
    """A text of exactly `length` tokens, special ones included, or as near below as repeated words come.

    Args:
        length: tokens wanted; what the tokenizer gives for no text at all is the least.
        count_tokens: how many tokens a text has.
        word: what is repeated.
    """
    fixed = count_tokens("")
    each = max(1, count_tokens(word) - fixed)
    return " ".join([word] * max(0, (length - fixed) // each))
