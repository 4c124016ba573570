"""The known word that a misspelt one stands for."""

from __future__ import annotations

__all__ = ["nearest"]

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], closeness: float = 0.6) -> str | None:
    """The known word that is most likely meant by `word`; None where none is as close (0 to 1) as asked."""
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), list(by_folded), n=1, cutoff=closeness)
    return by_folded[close[0]] if close else None
