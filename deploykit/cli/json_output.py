"""Writes a result as JSON on stdout."""

from __future__ import annotations

__all__ = ["print_json"]

import json
import sys
from typing import Any

import click


def print_json(value: Any) -> None:
    """One JSON object; what stdout's encoding can't hold (a lone surrogate, on Windows an emoji) is escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    click.echo(text)
