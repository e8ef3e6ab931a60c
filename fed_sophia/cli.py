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
from fed_sophia.commands import (
    archive,
    create_run,
    demo,
    experiment,
    key,
    run_swarm,
    run_worker,
    runs,
    serve,
    token,
    workers,
)
from fed_sophia.interruptible import Interrupted
from fed_sophia.output import Output, one_line, output_for
from fed_sophia.trust_options import with_trust
from protocol.errors import FedSophiaError, InvalidUsage

_CTRL_C = 130
_READER_GONE = 128 + 13  # as if SIGPIPE had ended us, which is how `head` ends others
ROOT_EXAMPLES = """\b
Examples:
  fed-sophia demo
  fed-sophia serve
  fed-sophia COMMAND --help
"""


def _group(help_text: str) -> typer.Typer:
    group = typer.Typer(help=help_text, pretty_exceptions_enable=False)

    @group.callback(invoke_without_command=True)
    def without_command(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return group


app = typer.Typer(
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


app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("serve", epilog=serve.EXAMPLES)(serve.serve)
app.command("worker", epilog=run_worker.EXAMPLES)(with_trust(run_worker.worker))
app.command("swarm", epilog=run_swarm.EXAMPLES)(with_trust(run_swarm.swarm))

_tokens = _group("Join tokens, by which devices enrol.")
_tokens.command("create", epilog=token.CREATE_EXAMPLES)(with_trust(token.create))
_tokens.command("list", epilog=token.LIST_EXAMPLES)(with_trust(token.list_tokens))
_tokens.command("revoke", epilog=token.REVOKE_EXAMPLES)(with_trust(token.revoke))
app.add_typer(_tokens, name="token")

_workers = _group("Enrolled workers.")
_workers.command("list", epilog=workers.EXAMPLES)(with_trust(workers.list_workers))
_workers.command("approve", epilog=workers.APPROVE_EXAMPLES)(with_trust(workers.approve))
_workers.command("release", epilog=workers.RELEASE_EXAMPLES)(with_trust(workers.release))
_workers.command("revoke", epilog=workers.REVOKE_EXAMPLES)(with_trust(workers.revoke))
app.add_typer(_workers, name="workers")

_keys = _group("Operators' keys.")
_keys.command("create", epilog=key.CREATE_EXAMPLES)(with_trust(key.create))
_keys.command("list", epilog=key.LIST_EXAMPLES)(with_trust(key.list_keys))
_keys.command("revoke", epilog=key.REVOKE_EXAMPLES)(with_trust(key.revoke))
app.add_typer(_keys, name="key")

_runs = _group("Training jobs.")
_runs.command("create", epilog=create_run.EXAMPLES)(with_trust(create_run.create))
_runs.command("list", epilog=runs.LIST_EXAMPLES)(with_trust(runs.list_runs))
_runs.command("show", epilog=runs.SHOW_EXAMPLES)(with_trust(runs.show))
_runs.command("workers", epilog=workers.IN_ROUND_EXAMPLES)(with_trust(workers.in_round))
_runs.command("pause", epilog=runs.PAUSE_EXAMPLES)(with_trust(runs.pause))
_runs.command("resume", epilog=runs.RESUME_EXAMPLES)(with_trust(runs.resume))
_runs.command("cancel", epilog=runs.CANCEL_EXAMPLES)(with_trust(runs.cancel))
_runs.command("export", epilog=archive.EXPORT_EXAMPLES)(with_trust(archive.export))
_runs.command("import", epilog=archive.IMPORT_EXAMPLES)(with_trust(archive.import_archive))
app.add_typer(_runs, name="run")

_experiments = _group("Comparisons of algorithms.")
_experiments.command("run", epilog=experiment.RUN_EXAMPLES)(experiment.run)
_experiments.command("report", epilog=experiment.REPORT_EXAMPLES)(experiment.report)
_experiments.command("list", epilog=experiment.LIST_EXAMPLES)(experiment.list_scenarios)
app.add_typer(_experiments, name="experiment")


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
