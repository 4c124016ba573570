"""What the Python models of a package have in common: requests in, their messages together, a response for each.

It is copied into a package beside `model.py`; what that must know lies in `entry.json`: `model` (which computes the
logits), `labels` in their order, and what a kind of message adds.
"""

from __future__ import annotations

__all__ = ["MessageModel"]

import abc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray


class MessageModel(abc.ABC):
    """One instance. A kind of message says how its messages are read and answered."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        path = Path(__file__).resolve().with_name("entry.json")
        self.entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.labels: list[str] = self.entry["labels"]

    def asked(self, request: Any) -> Any:
        """What a request wants beside its messages; ValueError says what is wrong with it."""
        return None

    @abc.abstractmethod
    def read(self, request: Any) -> list[Any]:
        """The messages of a request; ValueError says which can't be read and why."""

    @abc.abstractmethod
    def answered(
        self, messages: list[Any], asked: list[tuple[slice, Any]]
    ) -> tuple[list[dict[str, NDArray[Any]]], dict[int, Any]]:
        """Every output for each request, and the errors of the messages that have none.

        Args:
            messages: of all requests.
            asked: of each request, which messages are its own, and what `asked` said.
        """

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; a request that can't be answered gets its own error and harms no other."""
        responses: list[Any] = [None] * len(requests)
        messages: list[Any] = []
        asked: list[tuple[int, slice, Any]] = []
        for position, request in enumerate(requests):
            try:
                found, more = self.read(request), self.asked(request)
                if not found:
                    raise ValueError("a request has one message at least")
            except ValueError as error:
                refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses[position] = pb_utils.InferenceResponse(error=refusal)
                continue
            asked.append((position, slice(len(messages), len(messages) + len(found)), more))
            messages += found
        if not asked:
            return responses
        answered, failures = self.answered(messages, [(rows, more) for _, rows, more in asked])
        for (position, rows, _), outputs in zip(asked, answered, strict=True):
            failed = [failures[row] for row in range(rows.start, rows.stop) if row in failures] if failures else []
            if failed:
                responses[position] = pb_utils.InferenceResponse(error=failed[0])
                continue
            names = requests[position].requested_output_names()
            responses[position] = pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in names])
        return responses
