# SPDX-License-Identifier: Apache-2.0
"""What a server asks its database."""

from collections import Counter
from contextlib import contextmanager

from sqlalchemy import event

from ps_service.storage.one_visit import BEGIN, BEGIN_IMMEDIATE


class Asked:
    """What was asked since this was made."""

    def __init__(self, visits):
        self._visits, self._before = visits, Counter(visits.begun)
        self.statements = []
        """The first word of each."""

    @property
    def reads(self):
        """Transactions that only look."""
        return self._visits.begun[BEGIN] - self._before[BEGIN]

    @property
    def writes(self):
        return self._visits.begun[BEGIN_IMMEDIATE] - self._before[BEGIN_IMMEDIATE]


@contextmanager
def statements(server):
    """What is asked while this is open."""
    asked = Asked(server.stores.records.visits)

    def note(_connection, _cursor, statement, *_):
        asked.statements.append(statement.split()[0])

    engine = server.stores.records.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)
