"""A baseline as a session makes it."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.latency.baseline import Baseline, baseline_of


@pytest.fixture
def baseline() -> Baseline:
    random = np.random.default_rng(0)
    return baseline_of(
        "m",
        [random.gamma(9, 0.1, 50) for _ in range(12)],
        version="v1",
        created="2026-01-01T00:00:00+00:00",
        settings={"threads": 1, "runner": "onnxruntime"},
        model="abc",
        data="def",
        machine={"cpu": "a", "versions": {"onnxruntime": "1.2"}},
        stolen=0.1,
    )
