"""deploykit: from a pretrained transformer and labelled messages to a proven model on Triton."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
