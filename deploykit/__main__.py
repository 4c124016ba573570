"""`python -m deploykit`, which `torchrun -m deploykit` needs."""

from __future__ import annotations

__all__: list[str] = []

import sys

from deploykit.cli import main

if __name__ == "__main__":
    sys.exit(main())
