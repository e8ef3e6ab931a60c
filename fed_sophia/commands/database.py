# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia database …`: what schema a server's database has, and how it comes to this version's."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fed_sophia.extras import needing
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.options import JsonLines
from fed_sophia.output import output_for
from fed_sophia.server_settings import server_settings

if TYPE_CHECKING:
    from ps_service.storage.migrations import Schema

STATUS_EXAMPLES = """\b
Examples:
  fed-sophia database status
  FED_SOPHIA_DATABASE_URL=postgresql://fed_sophia@db/fed_sophia fed-sophia database status --json
"""
MIGRATE_EXAMPLES = """\b
Examples:
  fed-sophia database migrate
  fed-sophia database migrate --data-dir /srv/fed-sophia
"""
DEFAULT_DATA_DIR = Path("fed-sophia-data")
DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="FED_SOPHIA_SERVER_DATA_DIR",
        help="The server's data directory, whose database it is where FED_SOPHIA_DATABASE_URL names none.",
    ),
]


def status(data_dir: DataDir = DEFAULT_DATA_DIR, json_lines: JsonLines = False) -> int:
    """Say what schema the database has, and which one this version of fed-sophia wants.

    Exit code 1 if a server of this version would not start on it.
    """
    with needing("server"):
        from ps_service.storage.migrating import schema_at
        from ps_service.storage.migrations import HEAD
    where = _where(data_dir)
    schema = run_interruptibly(schema_at(where))
    starts, said = _standing(schema, makes_it_itself=isinstance(where, Path))
    output_for(json_lines).summary(
        said,
        {
            "schema": schema.version,
            "wanted": HEAD,
            "oldest": schema.oldest,
            "newer": schema.is_newer,
            "server_starts": starts,
        },
    )
    return 0 if starts else 1


def migrate(data_dir: DataDir = DEFAULT_DATA_DIR, json_lines: JsonLines = False) -> None:
    """Bring the database to the schema of this version of fed-sophia, all of it or not at all.

    Servers that share a PostgreSQL may go on meanwhile: what they write waits until it is done.
    """
    with needing("server"):
        from ps_service.storage.migrating import bring_to_head
        from ps_service.storage.migrations import HEAD, OLDEST
    before = run_interruptibly(bring_to_head(_where(data_dir)))
    done = before.version != HEAD
    if not done:
        said = f"nothing to do: the database's schema is {HEAD}"
    elif before.version is None:
        said = f"made: the database was empty, its schema is {HEAD}"
    else:
        said = f"migrated: the database's schema was {before.version} and is {HEAD}"
        said += (
            f"; servers whose schema is older than {OLDEST} must not go on" if before.version < OLDEST else ""
        )
    output_for(json_lines).summary(
        said, {"migrated": done, "before": before.version, "schema": HEAD, "oldest": OLDEST}
    )


def _where(data_dir: Path) -> Path | str:
    settings = server_settings(server_data_dir=data_dir)
    return settings.database_url.get_secret_value() or data_dir / "records.sqlite"


def _standing(schema: "Schema", *, makes_it_itself: bool) -> tuple[bool, str]:
    """Whether a server of this version starts, and a sentence on it."""
    from ps_service.storage.migrations import HEAD

    if schema.version is None:
        return True, f"the database is empty: the first server that starts makes schema {HEAD}"
    says = f"the database's schema is {schema.version}, this version of fed-sophia wants {HEAD}"
    if schema.version == HEAD:
        return True, f"the database's schema is {HEAD}, as this version of fed-sophia wants it"
    if schema.may_be_used:
        return True, f"{says}, and may use it as it is: servers from schema {schema.oldest} on may"
    if schema.is_newer:
        return False, f"{says}, and can no longer use it: update fed-sophia"
    if makes_it_itself:
        return True, f"{says}: the next start of the server brings it there"
    return False, f"{says}: `fed-sophia database migrate` brings it there"
