"""The command line: parse, make one library call, show the result."""

from __future__ import annotations

__all__ = ["main"]

from deploykit.cli.main import main
