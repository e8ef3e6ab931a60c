# SPDX-License-Identifier: Apache-2.0
"""Schema migrations, by alembic. `upgrade` brings a database to `HEAD`; at `HEAD` it costs one query."""

from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from protocol.errors import UnsupportedVersion

HEAD = "0002"


def upgrade(connection: Connection) -> None:
    """Bring the schema of the connected database to `HEAD`.

    Raises:
        UnsupportedVersion: its schema is not known here.
    """
    current = None
    if inspect(connection).has_table("alembic_version"):
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if current == HEAD:
            return
    # imported here: most starts find nothing to do, and alembic takes long to load
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
    command.upgrade(config, "head")
