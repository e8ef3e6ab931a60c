# SPDX-License-Identifier: Apache-2.0
"""What a server asks its database."""

from contextlib import contextmanager

from sqlalchemy import event

READ, WRITE = "BEGIN", "BEGIN IMMEDIATE"


@contextmanager
def statements(server):
    """The first word of each statement that is executed while this is open; of BEGIN IMMEDIATE, both."""
    begun = []

    def note(_connection, _cursor, statement, *_):
        begun.append(WRITE if statement == WRITE else statement.split()[0])

    engine = server.stores.records.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield begun
    finally:
        event.remove(engine, "before_cursor_execute", note)
