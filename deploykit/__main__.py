"""`python -m deploykit`, which `torchrun -m deploykit` needs."""

import sys

from deploykit.cli import main

if __name__ == "__main__":
    sys.exit(main())
