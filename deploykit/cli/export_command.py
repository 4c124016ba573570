"""`deploykit export`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json


@click.command("export")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--target", default="triton-25.08", show_default=True, help="The Triton release that must load it.")
@click.option("--opset", type=click.IntRange(18), help="The ONNX opset; the one whose fusions are known unless told.")
@click.option("--task", default="text-classification", show_default=True, help="What the model does.")
@as_json
def command(checkpoint: Path, out: Path, target: str, opset: int | None, task: str, as_json: bool) -> int:
    """Export CHECKPOINT (a Hugging Face folder, made anywhere) to ONNX, fused and checked against PyTorch."""
    import dataclasses

    from deploykit.artifacts.atomic import new_folder
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.export.to_onnx import export_onnx
    from deploykit.tasks import find_task

    with Screen() as screen, new_folder(out) as folder:
        report = export_onnx(checkpoint, folder, find_task(task), target=target, opset=opset, listener=screen)
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(report)})
        return 0
    graph = "fused" if report.fused else "plain"
    click.echo(
        f"{out}: opset {report.opset}, {sum(report.operators.values())} nodes ({graph}), within "
        f"{report.max_difference[graph]:.1g} of PyTorch; loads in {report.target}"
    )
    click.echo(f"next: deploykit quantize {out} -o {out}-int8 --data DATA")
    return 0
