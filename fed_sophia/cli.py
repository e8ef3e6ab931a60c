# SPDX-License-Identifier: Apache-2.0
"""The command `fed-sophia`: which commands there are, and how each of them ends.

An error is one line on standard error, never a stack trace: exit code 1, or 2 when the command line
itself was wrong. With `--json` it is one JSON line on standard output.
"""

import os
import sys
from typing import Annotated

import typer

import fed_sophia
from fed_sophia.commands.menu import LazyGroup
from fed_sophia.interruptible import Interrupted
from fed_sophia.output import Output, one_line, output_for
from protocol.errors import FedSophiaError, InvalidUsage

_CTRL_C = 130
_READER_GONE = 128 + 13  # as if SIGPIPE had ended us, which is how `head` ends others
ROOT_EXAMPLES = """\b
Examples:
  fed-sophia demo
  fed-sophia serve
  fed-sophia COMMAND --help
"""


app = typer.Typer(
    cls=LazyGroup,
    help="Federated learning with curvature built in.",
    epilog=ROOT_EXAMPLES,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"fed-sophia {fed_sophia.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    code = run_command(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # said already; what is still in the buffer must not fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run a command; say what went wrong in one line; give the exit code."""
    output = output_for("--json" in arguments)
    try:
        return _run(arguments, output)
    except SystemExit as ending:  # Typer and Rich make this of a reader that has gone
        if isinstance(ending.__context__, BrokenPipeError):
            return _READER_GONE
        raise
    except BrokenPipeError:
        return _READER_GONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        output.error(InvalidUsage(f"{where}{error.strerror or error}"))
        return 1


def _run(arguments: list[str], output: Output) -> int:
    try:
        code: int = app(arguments, prog_name="fed-sophia", standalone_mode=False) or 0
    except FedSophiaError as error:
        output.error(error)
        return 2 if isinstance(error, InvalidUsage) else 1
    except typer.TyperException as error:
        output.error(InvalidUsage(f"{one_line(error.format_message())} (--help shows what is expected)"))
        return 2
    except Interrupted as interrupted:
        output.summary("stopped", {"interrupted": str(interrupted)})
        return interrupted.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _CTRL_C
    if code == _CTRL_C:
        output.summary("stopped", {"interrupted": "SIGINT"})
    return code
