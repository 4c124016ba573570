"""A target that another program runs is timed in turn with deploykit's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploykit.errors import LatencyError
from deploykit.latency.measure import measure
from deploykit.runners import Target

PROGRAM = """
import json, sys
target = json.loads(sys.stdin.readline())
print(json.dumps({"name": target["location"]}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps({"seconds": [len(message) / 1000 for message in order["messages"]]}), flush=True)
"""


def test_another_program_says_its_own_times(tmp_path: Path) -> None:
    program = tmp_path / "rival.py"
    program.write_text(PROGRAM)
    commands = {name: [sys.executable, str(program)] for name in ("a", "b")}
    targets = {name: Target("onnxruntime", "elsewhere") for name in commands}
    found = measure(targets, ["x", "xxx", "xx", "xxxx"], blocks=2, commands=commands)
    assert [block.tolist() for block in found["a"].blocks] == [[1.0, 3.0], [2.0, 4.0]]
    assert found["b"].n == 4


def test_one_that_dies_is_named() -> None:
    commands = {"rival": [sys.executable, "-c", "raise SystemExit('no such library')"]}
    with pytest.raises(LatencyError, match=r"times rival ended .*no such library"):
        measure({"rival": Target("onnxruntime", "elsewhere")}, ["x"], commands=commands)
