"""Latency written down: a small JSON file for git, refused where it does not hold."""

from __future__ import annotations

__all__ = ["Baseline", "BaselineMetric", "baseline_of", "check_baseline", "drift_of", "read_baseline"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploykit.errors import LatencyError
from deploykit.latency.ratios import METRICS, Metric, statistics_of

_Z = 1.96
_HINT = "measure the old artefact here and now: deploykit compare BASELINE NEW --rebase OLD"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaselineMetric(_Frozen):
    """One figure with its 95 % interval."""

    value: float = Field(gt=0, description="Milliseconds; messages a second where it is throughput.")
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    error: float = Field(ge=0, description="Standard error of its logarithm within the session.")
    drift: float = Field(ge=0, description="How far blocks of the session lay apart, as the sd of a logarithm.")
    n: int = Field(ge=1, description="Messages timed.")
    blocks: int = Field(ge=2)


class Baseline(_Frozen):
    """What a target took, on which machine, with which settings."""

    schema_version: Literal[1] = 1
    name: str
    version: str = Field(default="", description="What the user calls it: a tag, a commit.")
    created: str = Field(description="ISO 8601, UTC.")
    metrics: dict[Metric, BaselineMetric]
    settings: dict[str, str | int | float]
    model: str = Field(description="Digest of the model's files; empty for a server, which does not show them.")
    data: str = Field(description="Digest of the messages.")
    machine: dict[str, Any]
    stolen: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if missing := set(METRICS) - set(self.metrics):
            raise ValueError(f"{', '.join(sorted(missing))} is missing")
        return self


def baseline_of(
    name: str,
    blocks: Sequence[NDArray[np.float64]],
    *,
    version: str,
    created: str,
    settings: Mapping[str, str | int | float],
    model: str,
    data: str,
    machine: Mapping[str, Any],
    stolen: float,
) -> Baseline:
    """The baseline that a measurement makes.

    Args:
        name: of the target.
        blocks: milliseconds of each message, by block.
        version: what the user calls it.
        created: ISO 8601.
        settings: of the measurement.
        model: digest of the model.
        data: digest of the messages.
        machine: `deploykit.machine.fingerprint()`.
        stolen: fraction of the CPU time stolen meanwhile.

    Raises:
        LatencyError: there are fewer than two blocks.
    """
    drift, n = drift_of(blocks), sum(map(len, blocks))
    metrics = {
        metric: BaselineMetric(
            value=value,
            low=float(value * np.exp(-_Z * error)),
            high=float(value * np.exp(_Z * error)),
            error=error,
            drift=drift,
            n=n,
            blocks=len(blocks),
        )
        for metric, (value, error) in statistics_of(blocks).items()
    }
    return Baseline(
        name=name,
        version=version,
        created=created,
        metrics=metrics,
        settings=dict(settings),
        model=model,
        data=data,
        machine=dict(machine),
        stolen=stolen,
    )


def drift_of(blocks: Sequence[NDArray[np.float64]]) -> float:
    """How far the medians of blocks lie apart: the standard deviation of their logarithms, by the quartiles."""
    low, high = np.quantile(np.log([float(np.median(block)) for block in blocks]), [0.25, 0.75])
    return float((high - low) / 1.349)


def read_baseline(path: Path) -> Baseline:
    """A baseline from its file.

    Raises:
        LatencyError: it can't be read, or is none of this version.
    """
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LatencyError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise LatencyError(
            f"{path} is no baseline of this version: {where + ': ' if where else ''}{first['msg']}",
            "make it again: deploykit bench TARGET --data FILE --save-baseline FILE",
        ) from error


def check_baseline(
    baseline: Baseline, *, settings: Mapping[str, str | int | float], data: str, machine: Mapping[str, Any]
) -> None:
    """Refuse a baseline from elsewhere: other hardware, versions, settings, server or messages.

    Raises:
        LatencyError: the message names what differs.
    """
    differing = [
        f"{key} ({_plain(baseline.machine.get(key))} then, {_plain(machine.get(key))} now)"
        for key in sorted({*baseline.machine, *machine})
        if baseline.machine.get(key) != machine.get(key)
    ]
    differing += [
        f"{key} ({baseline.settings.get(key)} then, {settings.get(key)} now)"
        for key in sorted({*baseline.settings, *settings})
        if baseline.settings.get(key) != settings.get(key)
    ]
    if baseline.data != data:
        differing.append("the messages")
    if differing:
        raise LatencyError(f"the baseline of {baseline.name} holds elsewhere: {'; '.join(differing)}", _HINT)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)
