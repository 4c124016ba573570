"""The source files of the Python models that answer messages in Triton, which are copied into a package."""

from __future__ import annotations

__all__ = ["entry_files", "entry_source"]

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_OF_TEXT = ("text_model", "message_model", "logits_model", "ranking")


def entry_source(name: str) -> Path:
    """The file of an entry, or of what entries share."""
    return _PACKAGE / "triton" / "entries" / f"{name}.py"


def entry_files(model: str, *beside: Path) -> tuple[Path, ...]:
    """The model itself first, then what all text models need beside them, then what this one needs.

    Args:
        model: its name among the entries.
        beside: more files.
    """
    return *map(entry_source, (model, *_OF_TEXT)), _PACKAGE / "runners" / "words.py", *beside
