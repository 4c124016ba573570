"""The stages of the pipeline, in their order."""

from __future__ import annotations

__all__ = ["ALWAYS", "STAGES", "Stage"]

from typing import Final, Literal, get_args

Stage = Literal[
    "data", "pretrain", "finetune", "index", "teachers", "prune", "export", "quantize", "package", "parity", "latency",
    "publish",
]  # fmt: skip
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
ALWAYS: Final = tuple(stage for stage in STAGES if stage not in ("pretrain", "index", "teachers", "prune"))
"""Those that every recipe has."""
