"""Model names."""

from __future__ import annotations

import pytest

from deploykit.artifacts.names import check_model_name
from deploykit.errors import UsageError


@pytest.mark.parametrize("name", ["support_intents", "a", "7b", "bert-base.v2", "A" * 120])
def test_good_names_come_back(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "..", ".", "a/b", "/etc", "a\\b", "a\n", "a\nb", "a\0b", ".hidden", "-flag", "end.", "größe", "A" * 121],
)
def test_row_15_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="can't be a model's name"):
        check_model_name(name)
