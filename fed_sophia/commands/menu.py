# SPDX-License-Identifier: Apache-2.0
"""Menu: the commands, each loaded when it is the one that is asked for.

To add a command, write its file, and a line in `COMMANDS` or in the family it belongs to.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from worker.lasting import lasting

Registers = Callable[[typer.Typer], None]
"""Loads a command, and adds it."""


def _demo(to: typer.Typer) -> None:
    from fed_sophia.commands import demo

    to.command("demo", epilog=demo.EXAMPLES)(demo.demo)


def _serve(to: typer.Typer) -> None:
    from fed_sophia.commands import serve

    to.command("serve", epilog=serve.EXAMPLES)(serve.serve)


def _database(to: typer.Typer) -> None:
    from fed_sophia.commands import database

    family = _family(to, "database")
    family.command("status", epilog=database.STATUS_EXAMPLES)(database.status)
    family.command("migrate", epilog=database.MIGRATE_EXAMPLES)(database.migrate)


def _doctor(to: typer.Typer) -> None:
    from fed_sophia.commands import doctor

    to.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def _worker(to: typer.Typer) -> None:
    from fed_sophia.commands import run_worker
    from fed_sophia.trust_options import with_trust

    to.command("worker", epilog=run_worker.EXAMPLES)(with_trust(run_worker.worker))


def _swarm(to: typer.Typer) -> None:
    from fed_sophia.commands import run_swarm
    from fed_sophia.trust_options import with_trust

    to.command("swarm", epilog=run_swarm.EXAMPLES)(with_trust(run_swarm.swarm))


def _token(to: typer.Typer) -> None:
    from fed_sophia.commands import token
    from fed_sophia.trust_options import with_trust

    family = _family(to, "token")
    family.command("create", epilog=token.CREATE_EXAMPLES)(with_trust(token.create))
    family.command("list", epilog=token.LIST_EXAMPLES)(with_trust(token.list_tokens))
    family.command("revoke", epilog=token.REVOKE_EXAMPLES)(with_trust(token.revoke))


def _workers(to: typer.Typer) -> None:
    from fed_sophia.commands import workers
    from fed_sophia.trust_options import with_trust

    family = _family(to, "workers")
    family.command("list", epilog=workers.EXAMPLES)(with_trust(workers.list_workers))
    family.command("approve", epilog=workers.APPROVE_EXAMPLES)(with_trust(workers.approve))
    family.command("release", epilog=workers.RELEASE_EXAMPLES)(with_trust(workers.release))
    family.command("revoke", epilog=workers.REVOKE_EXAMPLES)(with_trust(workers.revoke))


def _key(to: typer.Typer) -> None:
    from fed_sophia.commands import key
    from fed_sophia.trust_options import with_trust

    family = _family(to, "key")
    family.command("create", epilog=key.CREATE_EXAMPLES)(with_trust(key.create))
    family.command("list", epilog=key.LIST_EXAMPLES)(with_trust(key.list_keys))
    family.command("revoke", epilog=key.REVOKE_EXAMPLES)(with_trust(key.revoke))


def _run(to: typer.Typer) -> None:
    from fed_sophia.commands import archive, create_run, runs, workers
    from fed_sophia.trust_options import with_trust

    family = _family(to, "run")
    family.command("create", epilog=create_run.EXAMPLES)(with_trust(create_run.create))
    family.command("list", epilog=runs.LIST_EXAMPLES)(with_trust(runs.list_runs))
    family.command("show", epilog=runs.SHOW_EXAMPLES)(with_trust(runs.show))
    family.command("workers", epilog=workers.IN_ROUND_EXAMPLES)(with_trust(workers.in_round))
    family.command("pause", epilog=runs.PAUSE_EXAMPLES)(with_trust(runs.pause))
    family.command("resume", epilog=runs.RESUME_EXAMPLES)(with_trust(runs.resume))
    family.command("cancel", epilog=runs.CANCEL_EXAMPLES)(with_trust(runs.cancel))
    family.command("export", epilog=archive.EXPORT_EXAMPLES)(with_trust(archive.export))
    family.command("import", epilog=archive.IMPORT_EXAMPLES)(with_trust(archive.import_archive))


def _experiment(to: typer.Typer) -> None:
    from fed_sophia.commands import experiment

    family = _family(to, "experiment")
    family.command("run", epilog=experiment.RUN_EXAMPLES)(experiment.run)
    family.command("report", epilog=experiment.REPORT_EXAMPLES)(experiment.report)
    family.command("list", epilog=experiment.LIST_EXAMPLES)(experiment.list_scenarios)


COMMANDS: dict[str, tuple[str, Registers]] = {
    "demo": (
        "Train a model with real processes over real HTTP on this machine, and sum up how it went.",
        _demo,
    ),
    "serve": ("Run the parameter server until Ctrl-C.", _serve),
    "doctor": ("Check what a server with these settings would need, and say what to do.", _doctor),
    "database": ("The schema of a server's database.", _database),
    "worker": ("Train on the data of this place whenever the server asks, until Ctrl-C.", _worker),
    "swarm": (
        "Run many workers in one process, each with its own identity and its part of one data set.",
        _swarm,
    ),
    "token": ("Join tokens, by which devices enrol.", _token),
    "workers": ("Enrolled workers.", _workers),
    "key": ("Operators' keys.", _key),
    "run": ("Training jobs.", _run),
    "experiment": ("Comparisons of algorithms.", _experiment),
}
"""{name: (what the list of commands says of it, what loads it)}."""


def _family(to: typer.Typer, name: str) -> typer.Typer:
    family = typer.Typer(help=COMMANDS[name][0], pretty_exceptions_enable=False)

    @family.callback(invoke_without_command=True)
    def without_command(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    to.add_typer(family, name=name)
    return family


class LazyGroup(TyperGroup):
    """All commands by name and by what is said of them; one is loaded when it is resolved."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for name, (said, _) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=said))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args:
            self.load(args[0])
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> None:
        """Put the command itself in the place of its name; nothing where there is none."""
        if name in COMMANDS:
            part = typer.Typer()
            with lasting():
                COMMANDS[name][1](part)
            self.add_command(typer.main.get_group(part).commands[name])
