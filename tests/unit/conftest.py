"""Unit tests run their tiny models on one thread: more would only wait for each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for torch, here where it is not loaded yet, and in child processes
        for runner in ("onnx_runner", "torch_runner"):
            patch.setattr(f"deploykit.runners.{runner}.usable_cores", lambda: 1)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        yield
