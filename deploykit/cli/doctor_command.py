"""`deploykit doctor`."""

from __future__ import annotations

__all__ = ["command"]

import click

from deploykit.cli.options import as_json


@click.command("doctor")
@click.option(
    "--install-triton", is_flag=True,
    help="Install the embedded Triton server into the user's cache now, where this machine can run it.",
)  # fmt: skip
@as_json
def command(install_triton: bool, as_json: bool) -> int:
    """Say what this machine has, what is missing, and the command that adds it."""
    import dataclasses

    from deploykit.cli.json_output import print_json
    from deploykit.pipeline.doctor import examine

    if install_triton:
        from deploykit.cli.render import Screen
        from deploykit.triton import installation

        if installation.unsupported_reason() is None:
            with Screen() as screen:
                installation.ensure_installed(listener=screen)
    findings = examine()
    if as_json:
        print_json({"findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = {"ok": click.style("ok     ", "green"), "missing": click.style("missing", "yellow")}.get(
                finding.status, click.style("problem", "red")
            )
            click.echo(f"{mark} {finding.name:<22} {finding.detail}")
            if finding.remedy:
                click.echo(f"        {'':<22} {finding.remedy}")
    return 1 if any(finding.status == "problem" for finding in findings) else 0
