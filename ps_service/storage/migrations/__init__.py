# SPDX-License-Identifier: Apache-2.0
"""Schema migrations, by alembic. `upgrade` brings a database to `HEAD`; at `HEAD` it costs one query.

A new database is made as `schema` says, without alembic, which takes longer to load than all of it to make. A
test holds the two to each other.

A database says beside its schema which is the oldest whose servers may still use it (`OLDEST`): until a
migration raises that, servers of before and after it run side by side. `docs/explanation/migrations.md` has
the rules.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from protocol.errors import InvalidUsage, StorageCorrupt, UnsupportedVersion
from ps_service.storage.schema import metadata

HEAD = "0008"
OLDEST = "0007"
"""Servers of this schema may use a database of `HEAD`'s; what takes something from them raises it."""
VERSIONS = Path(__file__).parent / "versions"
ALEMBICS_OWN = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)


@dataclass(frozen=True)
class Schema:
    """What a database says of itself."""

    version: str | None
    """None: there is nothing in it yet."""
    oldest: str | None
    """Servers of this schema may still use it; None: it does not say, and only its own may."""

    @property
    def is_newer(self) -> bool:
        return self.version is not None and self.version > HEAD

    @property
    def may_be_used(self) -> bool:
        """Whether a server of `HEAD` works on it as it is."""
        return self.version == HEAD or (self.is_newer and self.oldest is not None and self.oldest <= HEAD)


def schema_of(connection: Connection) -> Schema:
    """Raises: InvalidUsage: what is in the database is somebody else's."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return Schema(None, None)
    if "alembic_version" not in tables:
        raise InvalidUsage("the database holds tables that are not fed-sophia's: give it one of its own")
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version == HEAD or "schema_compatibility" not in tables:
        return Schema(version, OLDEST if version == HEAD else None)
    return Schema(version, connection.execute(text("SELECT oldest FROM schema_compatibility")).scalar())


def upgrade(connection: Connection) -> None:
    """Bring the schema of the connected database to `HEAD`, and commit; one that is newer stays as it is.

    Raises:
        InvalidUsage: what is in it is somebody else's.
        StorageCorrupt: a row refers to one that there is not.
        UnsupportedVersion: it is newer, and no server of `HEAD` may use it.
    """
    schema = schema_of(connection)
    if schema.version is None:
        create(connection)
        connection.commit()
    elif not schema.may_be_used:
        migrate(connection, schema.version)


def make_or_require(connection: Connection) -> None:
    """Make the schema in an empty database that servers share, inside the caller's transaction.

    What there is stays as it is: other servers may be using it.

    Raises:
        InvalidUsage: what is in it is somebody else's.
        UnsupportedVersion: no server of `HEAD` may use it.
    """
    schema = schema_of(connection)
    if schema.version is None:
        create(connection)
    elif not schema.may_be_used:
        if schema.is_newer:
            raise newer(schema.version)
        raise UnsupportedVersion(
            f"the database's schema is {schema.version}, this version of fed-sophia needs {HEAD}: "
            "`fed-sophia database migrate` brings it there"
        )


def create(connection: Connection) -> None:
    """Make everything in an empty database, inside the caller's transaction."""
    metadata.create_all(connection)
    connection.execute(text("INSERT INTO schema_compatibility VALUES (:oldest)"), {"oldest": OLDEST})
    connection.execute(text(ALEMBICS_OWN))
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def migrate(connection: Connection, current: str | None, folders: Sequence[Path] = (VERSIONS,)) -> None:
    """Bring a schema that is not the newest to it, step by step, in one transaction.

    In SQLite it is committed; in PostgreSQL it is the caller's.

    Args:
        current: its version; None: it has none yet.
        folders: of the migrations.

    Raises: as `upgrade`.
    """
    # imported here: hardly any start has this to do, and alembic takes long to load
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    options = {
        "script_location": str(Path(__file__).parent),
        "version_locations": os.pathsep.join(str(folder) for folder in folders),
        "path_separator": "os",
    }
    for name, value in options.items():
        config.set_main_option(name, value.replace("%", "%%"))  # it is the file of a ConfigParser
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise newer(current)
    if connection.dialect.name != "sqlite":
        command.upgrade(config, "head")
        return
    config.attributes["check"] = lambda: _require_references(connection)
    with _tables_may_be_made_anew(connection):
        command.upgrade(config, "head")


def newer(version: str) -> UnsupportedVersion:
    """Why a database is left alone."""
    return UnsupportedVersion(
        f"the database was made by a newer version of fed-sophia: its schema is {version}, ours {HEAD}"
    )


@contextmanager
def _tables_may_be_made_anew(connection: Connection) -> Iterator[None]:
    """SQLite changes a constraint by copying its table, which rows of other tables refer to all the while."""
    connection.commit()
    _foreign_keys(connection, "OFF")
    yield
    connection.commit()
    _foreign_keys(connection, "ON")


def _require_references(connection: Connection) -> None:
    """Look before a migration is committed. Raises: StorageCorrupt: a row refers to one that is not there."""
    if connection.execute(text("PRAGMA foreign_key_check")).first() is not None:
        raise StorageCorrupt("a row refers to one that there is not; the database is as it was")


def _foreign_keys(connection: Connection, state: str) -> None:
    # by the driver itself: within a transaction, which ours would begin, this changes nothing
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA foreign_keys={state}")
    cursor.close()
