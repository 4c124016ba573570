"""`deploykit completion`."""

from __future__ import annotations

__all__ = ["command"]

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the completion script of SHELL.

    bash: `deploykit completion bash >> ~/.bashrc`; zsh: `deploykit completion zsh >> ~/.zshrc`; fish:
    `deploykit completion fish > ~/.config/fish/completions/deploykit.fish`.
    """
    from click.shell_completion import get_completion_class

    from deploykit.cli.main import cli

    completion = get_completion_class(shell)
    assert completion is not None  # the three that Click has
    click.echo(completion(cli, {}, "deploykit", "_DEPLOYKIT_COMPLETE").source())
    return 0
