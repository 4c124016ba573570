"""What a run ends with: the figures of every form of the model, the verdict, and where everything lies."""

from __future__ import annotations

__all__ = [
    "Figures", "GoalOutcome", "Learned", "PrunedCandidate", "RunResult", "Shipped", "exit_code_of", "model_size_mb",
]  # fmt: skip

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from deploykit.data.suspects import Suspects
from deploykit.errors import ExitCode
from deploykit.parity.verdict import Outcome

_WEIGHTS = ("model.onnx", "model.safetensors", "pytorch_model.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_UNITS = {"speedup": "x", "p50_ms": " ms", "p99_ms": " ms", "size_mb": " MB"}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(_Model):
    """One form of the model. Times are from text to answer, one message at a time, in milliseconds."""

    name: str
    value: float | None = Field(description="the metric, a fraction; null where it was not measured")
    p50_ms: float | None
    p50_range_ms: tuple[float, float] | None = Field(description="least and greatest median of a block")
    p99_ms: float | None
    size_mb: float | None = Field(description="of the weights and the tokenizer's files")


class Shipped(Figures):
    """What ships, against the reference. Drops and rates are fractions."""

    drop: float | None
    drop_upper: float | None = Field(description="one-sided upper bound of the drop")
    discordant: int | None = Field(description="items right in one and wrong in the other")
    flips: int
    speedup: float | None = Field(description="the reference's p50 over this one's, in process")
    served_p50_ms: float | None = Field(description="through the server's text entry, gRPC")
    served_p99_ms: float | None
    served_speedup: float | None


class GoalOutcome(_Model):
    """One limit of the goal."""

    limit: str
    wanted: float
    reached: float
    outcome: Outcome
    note: str

    @property
    def wanted_in_words(self) -> str:
        """The limit and its direction: "at least 20x", "at most 5 ms"."""
        return f"at {'least' if self.limit == 'speedup' else 'most'} {self._worded(self.wanted)}"

    @property
    def reached_in_words(self) -> str:
        """The figure and its distance from the limit: "7.4x, 12.6x too low"."""
        reached = self._worded(self.reached)
        if self.outcome != "fail":
            return reached
        direction = "low" if self.reached < self.wanted else "high"
        return f"{reached}, {self._worded(abs(self.wanted - self.reached))} too {direction}"

    def _worded(self, value: float) -> str:
        return f"{value:.4g}{_UNITS.get(self.limit, '')}"


class PrunedCandidate(_Model):
    """A cut model that was assembled and measured on the way to the goal; what ships has recovered for longer."""

    keeps: str = Field(description="layers, heads and FFN columns")
    predicted_ms: float
    measured_ms: float = Field(description="p50 in int8, in the quietest block")
    size_mb: float = Field(description="by the sizes of its parts")
    fits: bool = Field(description="whether it is as fast as the goal asks")
    loss: float | None = Field(description="on validation after a short recovery; null where it was not tried")
    metric: float | None = Field(description="likewise, a fraction")
    front: bool = Field(description="whether no other is as fast and as good")
    chosen: bool


class Learned(_Model):
    """How the fine-tuning went: (step, value) as it was logged."""

    loss: tuple[tuple[int, float], ...] = Field(description="in training, the mean since the last one")
    metric: tuple[tuple[int, float], ...] = Field(description="on validation, a fraction")
    warning: str | None = Field(default=None, description="that nothing was learned")


class RunResult(_Model):
    """What `deploykit run` prints."""

    schema_version: Literal[1] = 1
    name: str
    verdict: Outcome
    statement: str = Field(description="the verdict in words, with what it does not cover")
    n: int
    metric: str
    reference: Figures
    onnx_fp32: Figures
    shipped: Shipped
    goal: tuple[GoalOutcome, ...]
    candidates: tuple[PrunedCandidate, ...] = Field(default=(), description="of pruning, the fastest first")
    learned: Learned = Field(default=Learned(loss=(), metric=()), description="the learning curves of the fine-tuning")
    suspects: dict[str, Suspects] = Field(default={}, description="what to look at in the data, by split")
    scheme: str = Field(description="how it was quantized")
    messages: int = Field(description="messages timed per form")
    stolen: float = Field(description="fraction of the CPU time that the host gave to others while timing")
    machine: str
    package: str | None = Field(description="the version folder in the repository; null where nothing was published")
    version: int | None
    kept: str = Field(description="the staged package, which stays whatever the verdict")
    parity: str = Field(description="the parity report with every check and changed sample")
    report: str = Field(description="the page for people")
    exit_code: int


def exit_code_of(verdict: Outcome, goals: tuple[GoalOutcome, ...]) -> ExitCode:
    """The exit code of a run: parity first, then the goal."""
    if verdict == "fail":
        return ExitCode.PARITY_FAILED
    if verdict == "inconclusive":
        return ExitCode.INCONCLUSIVE
    if any(goal.outcome == "fail" for goal in goals):
        return ExitCode.GOAL_MISSED
    if any(goal.outcome == "inconclusive" for goal in goals):
        return ExitCode.INCONCLUSIVE
    return ExitCode.PASS


def model_size_mb(folder: Path) -> float:
    """Megabytes (10^6 bytes) of the weights and the tokenizer's files in a model folder."""
    weights = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    files = [weights, *(folder / name for name in _TOKENIZER if (folder / name).is_file())]
    return sum(path.stat().st_size for path in files) / 1e6
