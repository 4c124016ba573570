"""The stages of the pipeline, in their order."""

from __future__ import annotations

__all__ = ["STAGES", "Stage"]

from typing import Final, Literal, get_args

Stage = Literal["data", "pretrain", "finetune", "prune", "export", "quantize", "package", "parity", "latency", "publish"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
