"""The error tree: what went wrong, what to do about it, and the exit code it ends a command with."""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "DataError",
    "DeploykitError",
    "ExitCode",
    "ExportError",
    "LatencyError",
    "MissingDependencyError",
    "ModelError",
    "ParityError",
    "QuantizeError",
    "RecipeError",
    "RepositoryError",
    "RequestError",
    "ServerError",
    "TrainingError",
    "UsageError",
]

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status says."""

    PASS = 0
    ERROR = 1
    USAGE = 2
    PARITY_FAILED = 3
    LATENCY_REGRESSED = 4
    INCONCLUSIVE = 5
    GOAL_MISSED = 6
    BUG = 70


class DeploykitError(Exception):
    """A failure that a person can act on: one line of what happened, one of what to do.

    Args:
        message: what happened, naming the file, row, key or host concerned.
        hint: what to do next, with the command to type where there is one.
    """

    exit_code: ExitCode = ExitCode.ERROR

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(DeploykitError):
    """The command or call was asked for something it can't do."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """The recipe is not valid; the message lists every problem, one a line, each with file and line."""


class DataError(DeploykitError):
    """The data can't be used; the message names the file and the row."""


class ModelError(DeploykitError):
    """A model's files are missing, damaged, unsafe or of a kind that is not supported."""


class ArtifactError(DeploykitError):
    """The artefact store can't be read or written."""


class TrainingError(DeploykitError):
    """Fine-tuning failed; the message names the step."""


class ExportError(DeploykitError):
    """The model could not be exported to ONNX, or the export differs from PyTorch."""


class QuantizeError(DeploykitError):
    """The model could not be quantized."""


class ParityError(DeploykitError):
    """A comparison could not be made at all (a failed one is a verdict, not an error)."""


class LatencyError(DeploykitError):
    """A measurement could not be made, or is invalid."""


class RepositoryError(DeploykitError):
    """A Triton model repository is malformed, or writing to it was refused."""


class ServerError(DeploykitError):
    """A server could not be started, reached, or stopped answering."""


class RequestError(DeploykitError):
    """A server refused or failed a request, or its reply is malformed.

    Args:
        status: the HTTP status or gRPC status name, where there was a reply.
    """

    def __init__(self, message: str, hint: str | None = None, *, status: int | str | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


class MissingDependencyError(DeploykitError):
    """An optional package is not installed; the hint is the command that installs it."""
