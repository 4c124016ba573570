"""`deploykit serve`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json


@click.command("serve")
@click.argument("repository", type=click.Path(path_type=Path), default=Path("model_repository"))
@click.option(
    "--engine", default="embedded", show_default=True, metavar="embedded|docker|URL",
    help="embedded: a real Triton on loopback. docker: print and run the docker command. URL: check what runs.",
)  # fmt: skip
@click.option("--model", "models", multiple=True, help="Load only this model; repeatable.")
@click.option(
    "--release", default="25.08", show_default=True, metavar="YY.MM", help="The Triton release of --engine docker."
)
@click.option("--gpus", metavar="all|0,1", help="GPUs for --engine docker.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0: a free one.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True, help="0: a free one.")
@as_json
def command(
    repository: Path,
    engine: str,
    models: tuple[str, ...],
    release: str,
    gpus: str | None,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    as_json: bool,
) -> int:
    """Serve REPOSITORY with a real Triton until Ctrl-C.

    The embedded server listens on loopback only. For production use NVIDIA's image (--engine docker shows how). A
    server of your own (--engine URL) is asked whether it is ready, and left as it is.
    """
    import time

    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.triton.engines import open_server

    elsewhere = "://" in engine
    with (
        Screen() as screen,
        open_server(
            engine,
            repository,
            models or None,
            release=release,
            gpus=gpus,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            listener=screen,
        ) as server,
    ):
        urls = {"http": server.urls.http, "grpc": server.urls.grpc, "metrics": server.urls.metrics}
        if as_json:
            print_json({"repository": None if elsewhere else str(repository), **urls})
        else:
            for name, url in urls.items():
                click.echo(f"{name:<8} {url or '-'}")
            click.echo(f"ask it: deploykit ask MODEL 'your message' --url {urls['grpc'] or urls['http']}")
        if elsewhere:
            return 0
        click.echo("Ctrl-C stops it.", err=True)
        try:
            while True:
                server.raise_if_ended()
                time.sleep(0.5)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            return 0
