"""What a task is: everything that differs between intents, entities, retrieval and the like, in one object."""

from __future__ import annotations

__all__ = ["Answer", "Message", "Outputs", "Task"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

Message = str
Outputs: TypeAlias = "Mapping[str, NDArray[Any]]"
"""Named arrays, the first axis the batch: for a classifier `logits`, float32 [batch, labels]."""


@dataclass(frozen=True)
class Answer:
    """What a client is told: the best label, its probability, and the next best ones, best first."""

    label: str
    score: float
    alternatives: tuple[tuple[str, float], ...] = ()


class Task(Protocol):
    """One task. Stages know a task only through this protocol; `deploykit.tasks` entry points add more."""

    @property
    def name(self) -> str:
        """The name that recipes use."""
        ...

    @property
    def metric(self) -> str:
        """The metric that judges it."""
        ...

    @property
    def output(self) -> str:
        """The ONNX output that carries the answer."""
        ...

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The PyTorch model of a checkpoint folder; with `labels`, a head for them (new where it does not fit)."""
        ...

    def targets(self, labels: Sequence[str], label_names: Sequence[str]) -> NDArray[Any]:
        """Labels as the model is trained on them."""
        ...

    def metrics(self, outputs: Outputs, targets: NDArray[Any]) -> Mapping[str, float]:
        """Every metric by name, `metric` among them; fractions."""
        ...

    def correct(self, outputs: Outputs, targets: NDArray[Any]) -> NDArray[Any]:
        """Which items are answered right: bool [items]."""
        ...

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """What a client is told for each item."""
        ...

    def entry(self) -> Path:
        """The source of the Python model that answers text in Triton: it imports nothing of deploykit."""
        ...
