"""The command group, loaded lazily, and the one place where errors become exit codes."""

from __future__ import annotations

__all__ = ["COMMANDS", "cli", "main"]

import importlib
import signal
import sys
from types import FrameType

import click

from deploykit import __version__
from deploykit.errors import DeploykitError, ExitCode

COMMANDS = {
    "init": "Scaffold a project: a recipe and sample data that run as they are.",
    "check": "Validate a recipe and print its plan; loads no model.",
    "run": "The whole pipeline: fine-tune, export, quantize, prove, measure, publish.",
    "finetune": "Fine-tune a pretrained model on labelled messages.",
    "export": "Export a checkpoint folder to a verified ONNX folder.",
    "quantize": "Quantize an ONNX folder.",
    "package": "Write a Triton model repository from an ONNX folder, atomically.",
    "parity": "Prove or refute that two models answer alike.",
    "bench": "Latency of models, in process or through Triton, in alternating blocks.",
    "serve": "Start a real Triton server on a repository.",
    "ask": "Send text to a server and print the answer.",
    "doctor": "What this machine has, what is missing, and the command that adds it.",
    "schema": "Print the JSON schema of recipes, for editors.",
    "completion": "Print shell completion for bash, zsh or fish.",
}
"""Every command, in the order of its help, with its short help: a module of the same name has it."""


class _LazyGroup(click.Group):
    """Imports a command's module only when that command runs: `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"deploykit.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploykit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """From a pretrained transformer and labelled messages to a proven model on Triton.

    Results go to stdout, progress to stderr; every command takes --json.

    Exit status: 0 pass, 1 error, 2 usage, 3 parity failed, 4 latency regressed, 5 inconclusive, 6 goal missed,
    70 a bug of deploykit.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    argv = sys.argv[1:] if arguments is None else arguments
    debug, as_json = "--debug" in argv, "--json" in argv
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        outcome = cli.main(args=argv, prog_name="deploykit", standalone_mode=False)
        return int(outcome) if isinstance(outcome, int) else int(ExitCode.PASS)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except DeploykitError as error:
        if debug:
            raise
        _report(error, as_json)
        return int(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: the same command goes on from here", err=True)
        return 130
    except BrokenPipeError:  # whoever read stdout has gone, as `| head` does
        sys.stderr.close()
        return int(ExitCode.ERROR)
    except Exception as error:
        if debug:
            raise
        click.echo(f"bug: {type(error).__name__}: {error}", err=True)
        click.echo("  hint: run it again with `deploykit --debug ...` and report the traceback", err=True)
        return int(ExitCode.BUG)


def _report(error: DeploykitError, as_json: bool) -> None:
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
    if as_json:
        import json

        click.echo(
            json.dumps({"error": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}, indent=1)
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
