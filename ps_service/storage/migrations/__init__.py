# SPDX-License-Identifier: Apache-2.0
"""Schema migrations, by alembic. `upgrade` brings a database to `HEAD`; at `HEAD` it costs one query.

A new database is made as `schema` says, without alembic, which takes longer to load than all of it to make. A
test holds the two to each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from protocol.errors import StorageCorrupt, UnsupportedVersion
from ps_service.storage.schema import metadata

HEAD = "0005"
ALEMBICS_OWN = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)


def upgrade(connection: Connection) -> None:
    """Bring the schema of the connected database to `HEAD`, and commit.

    Raises:
        StorageCorrupt: a row refers to one that there is not.
        UnsupportedVersion: its schema is not known here.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        _make(connection)
        return
    current = None
    if "alembic_version" in tables:
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if current == HEAD:
            return
    migrate(connection, current)


def make_or_require(connection: Connection) -> None:
    """Make the schema in an empty database that servers share, inside the caller's transaction.

    What there is stays as it is: other servers may be using it.

    Raises: UnsupportedVersion: it is not `HEAD`'s.
    """
    if not inspect(connection).get_table_names():
        _create(connection)
        return
    current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if current != HEAD:
        raise UnsupportedVersion(f"the database's schema is {current}, this version of fed-sophia has {HEAD}")


def migrate(connection: Connection, current: str | None) -> None:
    """Bring a schema that is not `HEAD`'s to it, step by step, and commit.

    Args: current: its version; None: it has none yet.

    Raises: as `upgrade`.
    """
    # imported here: hardly any start has this to do, and alembic takes long to load
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise UnsupportedVersion(
            f"the database was made by a newer version of fed-sophia: its schema is {current}, ours {HEAD}"
        )
    config.attributes["check"] = lambda: _require_references(connection)
    with _tables_may_be_made_anew(connection):
        command.upgrade(config, "head")


def _make(connection: Connection) -> None:
    """All tables at once, or none."""
    _create(connection)
    connection.commit()


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.execute(text(ALEMBICS_OWN))
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


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
