"""`deploykit index`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json


@click.command("index")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--entries", required=True, help="The entries: a file, hub:DATASET:SPLIT or sample:faq/entries.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--text", default="text", show_default=True, help="The column that holds an entry's text.")
@click.option("--label", default="label", show_default=True, help="The column that holds the name of its answer.")
@click.option("--answer", help="The column that holds the answer's own text; absent: there is none.")
@click.option("--task", default="retrieval", show_default=True, help="What the model does.")
@as_json
def command(
    checkpoint: Path, entries: str, out: Path, text: str, label: str, answer: str | None, task: str, as_json: bool
) -> int:
    """Give CHECKPOINT (a retrieval model) other entries to answer with; nothing is trained."""
    from deploykit.artifacts.atomic import new_folder
    from deploykit.cli.json_output import print_json
    from deploykit.data.entries import entries_from_columns
    from deploykit.tasks import find_task
    from deploykit.train.index import index_checkpoint

    found = entries_from_columns(entries, text, label, answer)
    with new_folder(out) as folder:
        each = index_checkpoint(checkpoint, folder, find_task(task), found)
    if as_json:
        print_json({"out": str(out), "entries": len(found.names), "texts": len(found.texts), "texts_of_each": each})
        return 0
    click.echo(f"{out}: {len(found.names):,} entries of {len(found.texts):,} texts")
    click.echo(f"next: deploykit export {out} -o {out}-onnx --task {task}")
    return 0
