"""Which names a model may have, so that Triton, a URL and every file system take them."""

from __future__ import annotations

__all__ = ["check_model_name"]

import re

from deploykit.errors import UsageError

MODEL_NAME_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,118}[A-Za-z0-9_-])?"
"""Letters, digits, `_`, `-` and `.`, at most 120 of them: a name is a folder, and a part of URLs and metrics."""


def check_model_name(name: str) -> str:
    """The name itself, where it may name a model in a Triton repository.

    Raises:
        UsageError: the name is blank, has a separator, a control character or anything else outside the pattern.
    """
    if re.fullmatch(MODEL_NAME_PATTERN, name) is None:
        raise UsageError(
            f"{name!r} can't be a model's name",
            "use letters, digits, '_', '-' and '.', beginning with a letter or digit, at most 120 characters",
        )
    return name
