"""The stages of the pipeline, in their order."""

from __future__ import annotations

__all__ = ["STAGES", "Stage"]

from typing import Final, Literal, get_args

Stage = Literal[
    "data", "finetune", "index", "prune", "export", "quantize", "package", "parity", "latency", "publish"
]  # fmt: skip
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
