"""The command group, loaded lazily, and the one place where errors become exit codes."""

from __future__ import annotations

__all__ = ["COMMANDS", "cli", "main"]

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import click

from deploykit import __version__
from deploykit.errors import DeploykitError, ExitCode

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "init": "Scaffold a project: a recipe and sample data that run as they are.",
    "check": "Validate a recipe and print its plan; loads no model.",
    "run": "The whole pipeline: fine-tune, prune, quantize, prove, measure, publish.",
    "pretrain": "Go on with an encoder's pretraining on messages without labels.",
    "finetune": "Fine-tune a pretrained model on labelled messages.",
    "index": "Give a retrieval model other entries to answer with; nothing is trained.",
    "prune": "Prune a fine-tuned model to a speed, and let it recover.",
    "export": "Export a checkpoint folder to a verified ONNX folder.",
    "quantize": "Quantize an ONNX folder.",
    "package": "Write a Triton model repository from an ONNX folder, atomically.",
    "parity": "Prove or refute that two models answer alike.",
    "bench": "Latency of models, in process or through Triton, in alternating blocks.",
    "compare": "Whether a model became slower: pass, fail or inconclusive, for CI.",
    "tune": "Search the Triton settings for the highest rate that holds a p99 limit.",
    "serve": "Start a real Triton server on a repository.",
    "ask": "Send text to a server and print the answer.",
    "monitor": "Sentiment of a stream of messages, and an alert when negatives surge.",
    "doctor": "What this machine has, what is missing, and the command that adds it.",
    "schema": "Print the JSON schema of recipes, for editors.",
    "completion": "Print shell completion for bash, zsh or fish.",
}
"""Every command, in the order of its help, with its short help: the module NAME_command has it."""

_RESUMABLE = ("run", "pretrain", "finetune", "prune", "tune")
_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """Imports a command's module only when that command runs: `--help` and completion stay quick."""

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
        if not ctx.resilient_parsing and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploykit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """From a pretrained transformer and labelled messages to a proven model on Triton.

    Results go to stdout, progress to stderr; every command takes --json.

    Exit status: 0 pass, 1 error, 2 usage, 3 parity failed, 4 latency regressed, 5 inconclusive, 6 goal missed,
    70 a bug of deploykit, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    argv = sys.argv[1:] if arguments is None else list(arguments)
    with _sigterm_interrupts():
        try:
            return _run(argv)
        except BrokenPipeError:  # whoever read the output has gone, as `| head` does
            _drop_output()
            return int(ExitCode.ERROR)


def _run(argv: list[str]) -> int:
    """Run a command; every error becomes a line, a hint, with `--json` an object on stdout, and an exit status."""
    as_json = "--json" in argv
    try:
        outcome = cli.main(args=argv, prog_name="deploykit", standalone_mode=False)
        return int(outcome) if isinstance(outcome, int) else int(ExitCode.PASS)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return int(ExitCode.USAGE)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "deploykit"
        return _ended("error: ", error.format_message(), f"{where} --help", ExitCode.USAGE, as_json)
    except DeploykitError as error:
        _trace(argv)
        return _ended("error: ", error.message, error.hint, error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        command = next((word for word in argv if not word.startswith("-")), "")
        hint = "the same command goes on from here" if command in _RESUMABLE else None
        return _ended("", "interrupted", hint, _INTERRUPTED, as_json)
    except BrokenPipeError:
        raise
    except Exception as error:
        from deploykit.artifacts.atomic import disk_refusal

        _trace(argv)
        if refused := disk_refusal(error):
            return _ended("error: ", refused.message, refused.hint, refused.exit_code, as_json)
        hint = "run it again as `deploykit --debug ...` and report the traceback"
        return _ended("bug: ", f"{type(error).__name__}: {error}", hint, ExitCode.BUG, as_json)


def _ended(kind: str, message: str, hint: str | None, exit_code: int, as_json: bool) -> int:
    """Say how a command ended, and give back its exit status."""
    click.echo(kind + message, err=True)
    if hint:
        click.echo(f"  hint: {hint}", err=True)
    if as_json:
        from deploykit.cli.json_output import print_json

        print_json({"error": message, "hint": hint, "exit_code": int(exit_code)})
    return int(exit_code)


def _trace(argv: list[str]) -> None:
    if "--debug" in argv:
        import traceback

        traceback.print_exc()


def _drop_output() -> None:
    """Send what is still in the buffers nowhere, so that the interpreter's last flush is quiet too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: children stopped, the run noted. Only a main thread can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
