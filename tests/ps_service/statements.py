# SPDX-License-Identifier: Apache-2.0
"""What a server asks its database."""

from collections import Counter
from contextlib import contextmanager

from ps_service.storage.one_visit import BEGIN, BEGIN_IMMEDIATE

_OF_A_VISIT = ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA")


class Asked:
    """What was asked since this was made."""

    def __init__(self, visits):
        self._visits, self._before = visits, Counter(visits.begun)
        self.sql = []
        """Each statement, with its values, but those that begin and end a visit."""

    @property
    def statements(self):
        """The first word of each."""
        return [each.split()[0] for each in self.sql]

    @property
    def reads(self):
        """Transactions that only look."""
        return self._visits.begun[BEGIN] - self._before[BEGIN]

    @property
    def writes(self):
        return self._visits.begun[BEGIN_IMMEDIATE] - self._before[BEGIN_IMMEDIATE]


@contextmanager
def statements(server):
    """What is asked while this is open, of the connections that are idle then: in memory there is but one.

    SQLite itself tells: not every statement is executed by SQLAlchemy.
    """
    visits = server.stores.records.visits
    asked = Asked(visits)

    def note(statement):
        if not statement.startswith((*_OF_A_VISIT, "--")):
            asked.sql.append(statement)

    connections = [each.driver._conn for each in visits._idle]
    assert connections
    for connection in connections:
        connection.set_trace_callback(note)
    try:
        yield asked
    finally:
        for connection in connections:
            connection.set_trace_callback(None)
