"""The command ``tokred``: one file a command group. Errors of tokred end it with one sentence and the exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from tokred import __version__
from tokred.cli.bench import bench
from tokred.cli.benchmark import benchmark
from tokred.cli.console import errors, output
from tokred.cli.demo import demo
from tokred.cli.explain import explain
from tokred.cli.knobs import free_options
from tokred.cli.learn import learn
from tokred.cli.listing import methods, models, schedules
from tokred.cli.overlay import overlay
from tokred.cli.results import compare, merge, plot, report
from tokred.cli.sweep import sweep
from tokred.cli.tokenizer import decode, encode
from tokred.cli.train import train
from tokred.cli.validate import validate
from tokred.errors import TokredError

app = typer.Typer(
    name="tokred",
    help="Token reduction for vision transformers: explain it, sweep it, plot it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        output().print(f"tokred {__version__}", highlight=False)
        raise typer.Exit


_COMMANDS = (
    overlay, demo, explain, sweep, plot, report, compare, merge, bench, train, encode, decode, methods, models,
    schedules,
)  # fmt: skip
for command in _COMMANDS:
    app.command()(command)
for command in (validate, benchmark):  # their arguments are timm's, which typer cannot say
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
        command
    )
app.add_typer(learn, name="learn")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: instead of those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(free_options(given), prog_name="tokred")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except TokredError as error:
        errors().print(f"[bold red]tokred:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors().print("Stopped.")
        return 130
    return 0


def _plain(error: TokredError) -> str:
    """The message, with nothing in it taken for markup."""
    return str(error).replace("[", r"\[")
