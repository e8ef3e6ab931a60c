# SPDX-License-Identifier: Apache-2.0
"""The servers that share the records: how many there are now, by the database's clock."""

import logging
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from protocol.errors import FedSophiaError
from ps_service.round_runner import RoundRunner
from ps_service.storage import server_records

log = logging.getLogger("fed_sophia.server")

LOOK_EVERY_S = 5.0
SILENT_AFTER_S = 16.0
"""A server that did not say so for so long is not there."""
ALONE_S = 3600.0


class Fellows:
    """Says that this server is there, and counts those that are."""

    def __init__(self, runner: RoundRunner) -> None:
        self._runner = runner
        self.count = 1

    async def look(self) -> float:
        """Give the seconds until the next look.

        What this server has sent is written down meanwhile, and its clock follows the database's.
        """
        records = self._runner.stores.records
        if not records.shared:
            return ALONE_S
        async with records.write() as connection:
            now_ms = await records.now_ms(connection)
            await server_records.say_here(connection, self._runner.leases.holder, now_ms)
            count = await server_records.count_here(connection, now_ms - round(SILENT_AFTER_S * 1000))
        if count != self.count:
            log.info("%d servers share the records", count)
        self.count = count
        self._runner.clock.follow(now_ms)
        await self._runner.write_down_sent()
        return LOOK_EVERY_S

    async def leave(self) -> None:
        """The server stops: the others may take its share at once."""
        if not self._runner.stores.records.shared:
            return
        with suppress(FedSophiaError, SQLAlchemyError):  # it is forgotten by itself
            await self._runner.write_down_sent()
            async with self._runner.stores.records.write() as connection:
                await server_records.say_gone(connection, self._runner.leases.holder)
