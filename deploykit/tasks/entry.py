"""The source files of the Python models that answer text in Triton, which are copied into a package."""

from __future__ import annotations

__all__ = ["entry_files"]

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def entry_files(model: str, *beside: Path) -> tuple[Path, ...]:
    """The model itself first, then what all text models need beside them, then what this one needs.

    Args:
        model: its name among the entries.
        beside: more files.
    """
    ours = (_PACKAGE / "triton" / "entries" / f"{name}.py" for name in (model, "text_model", "logits_model"))
    return *ours, _PACKAGE / "runners" / "words.py", *beside
