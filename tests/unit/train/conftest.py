"""What several tests of trainings ask of the model that was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from deploykit.data.table import Table
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import find_task


@pytest.fixture(scope="session")
def accuracy_on_disk() -> Callable[[Path, Table, Sequence[str]], float]:
    """The accuracy of a text classifier's checkpoint folder on labelled messages, each asked alone."""

    def measured(folder: Path, rows: Table, names: Sequence[str]) -> float:
        task = find_task("text-classification")
        with open_runner(Target("torch", str(folder))) as runner:
            outputs = infer_all(runner, list(rows.texts), [[index] for index in range(len(rows))])
        return task.scores(task.answers(outputs, names), task.right_answers(rows.labels or (), names)).value

    return measured
