# SPDX-License-Identifier: Apache-2.0
"""Schema migrations, by alembic. `upgrade` brings a database to `HEAD`; at `HEAD` it costs one query."""

from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

HEAD = "0001"


def upgrade(connection: Connection) -> None:
    """Bring the schema of the connected database to `HEAD`."""
    if inspect(connection).has_table("alembic_version"):
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if current == HEAD:
            return
    # imported here: most starts find nothing to do, and alembic takes long to load
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
