"""Runs the text entry of a package on a Triton server: raw text goes out, the answer and the logits come back."""

from __future__ import annotations

__all__ = ["TritonRunner"]

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from deploykit.errors import ServerError, UsageError
from deploykit.runners.base import Message, Outputs, Target
from deploykit.runners.triton_client import TritonClient
from deploykit.runners.triton_wire import parse_url
from deploykit.tasks import find_task


class TritonRunner:
    """A text entry behind gRPC or HTTP.

    Args:
        target: its location is `grpc://host:port/model` or `http://host:port/model`.

    Raises:
        UsageError: the location names no server and model.
    """

    def __init__(self, target: Target) -> None:
        self._address, self._model = parse_url(target.location)
        if not self._model or "/" in self._model:
            raise UsageError(f"{target.location!r} names no model", hint=f"write {self._address}/MODEL")
        self._client: TritonClient | None = None
        self._task = find_task(target.task)

    @property
    def name(self) -> str:
        return f"Triton {self._model} ({self._address.protocol})"

    def __enter__(self) -> Self:
        """Connects; ServerError where there is no server, RequestError where it does not have the model."""
        # No retries: they would be measured as latency, and hide what the server refused.
        self._client = TritonClient(str(self._address), retries=False)
        try:
            self._client.metadata(self._model)
            if not self._client.ready(self._model):
                raise ServerError(f"{self._address} has not loaded {self._model}", hint="look at the server's log")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def infer(self, messages: Sequence[Message]) -> Outputs:
        """One request for all messages: the task's output, and `answer`, what the server said to each (objects [n]).

        Raises:
            RequestError: the server refuses them, as it does more messages than the model's max_batch_size.
            Rejected: its queue is full.
            ServerError: it is gone, or does not answer in time.
        """
        if self._client is None:
            raise UsageError("the runner is not entered", hint="use it in a with statement")
        answers, outputs = self._client.infer_texts(self._model, messages, self._task, (self._task.output,))
        said = np.empty(len(answers), dtype=np.object_)
        said[:] = answers
        return {self._task.output: outputs[self._task.output], "answer": said}
