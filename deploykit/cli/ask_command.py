"""`deploykit ask`."""

from __future__ import annotations

__all__ = ["command"]

import contextlib
from pathlib import Path

import click

from deploykit.cli.options import as_json


@click.command("ask")
@click.argument("model")
@click.argument("messages", nargs=-1, required=True, metavar="MESSAGE...")
@click.option("--url", default="grpc://127.0.0.1:8001", show_default=True, help="The server: grpc:// or http://.")
@click.option(
    "--repository", type=click.Path(path_type=Path), help="Start an embedded Triton on this repository, ask, stop it."
)
@click.option("--top-k", type=click.IntRange(1), help="How many labels or items; absent: 1, recommendation 10.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
    help="Seconds to wait for an answer.",
)  # fmt: skip
@as_json
def command(
    model: str,
    messages: tuple[str, ...],
    url: str,
    repository: Path | None,
    top_k: int | None,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Send MESSAGE to MODEL on a Triton server and print its answer: a label and its score, entities, or items.

    A message is a text; for a model of images the path of a PNG file.
    """
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.runners.medium import medium_of_input
    from deploykit.runners.triton_client import TritonClient
    from deploykit.tasks import task_of_outputs
    from deploykit.triton.engines import open_server

    with contextlib.ExitStack() as stack:
        if repository is not None:
            screen = stack.enter_context(Screen())
            server = stack.enter_context(open_server("embedded", repository, (model,), listener=screen))
            url = server.urls.grpc or url
        client = stack.enter_context(TritonClient(url, timeout_s=timeout_s))
        served = client.metadata(model)
        medium = medium_of_input(served.inputs[0].name) if len(served.inputs) == 1 else None
        task = task_of_outputs([each.name for each in served.outputs], medium.name) if medium else None
        read = [medium.read(message, Path()) if medium else message for message in messages]
        answers = client.ask(model, read, top_k=top_k, task=task)
    if as_json:
        rows = [{"text": text, **answer.as_json(text)} for text, answer in zip(messages, answers, strict=True)]
        print_json({"model": model, "answers": rows})
        return 0
    for text, answer in zip(messages, answers, strict=True):
        click.echo(answer.line(text))
    return 0
