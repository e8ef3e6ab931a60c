# SPDX-License-Identifier: Apache-2.0
"""Of several servers on the same records, one performs an effect at a time: the one that has its lease.

A lease runs out by the database's clock unless it is renewed, so that another takes over from a server that
died or stands still. Who wakes up and has lost its lease writes nothing down. Where one server has the
records, nothing of this costs anything.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import FedSophiaError
from ps_service.storage import lease_records
from ps_service.storage.records import Records

log = logging.getLogger("fed_sophia.rounds")

LEASE_S = 15.0


class Leases:
    """What one server process may do of what all could."""

    def __init__(self, records: Records, lease_s: float = LEASE_S) -> None:
        self._records = records
        self._lease_ms = round(lease_s * 1000)
        self.holder = secrets.token_hex(8)

    async def take(self, effect_id: int) -> bool:
        """Whether this server is the one to perform it; None other begins to while it holds the lease."""
        if not self._records.shared:
            return True
        async with self._records.write() as connection:
            now_ms = await self._records.now_ms(connection)
            return await lease_records.take_lease(
                connection, effect_id, self.holder, now_ms, now_ms + self._lease_ms
            )

    @asynccontextmanager
    async def kept(self, effect_id: int) -> AsyncIterator[None]:
        """Renew the lease for as long as this is open; give it up if what is done under it fails."""
        if not self._records.shared:
            yield
            return
        renewing = asyncio.create_task(self._renew(effect_id))
        try:
            yield
        except BaseException:
            with suppress(FedSophiaError, SQLAlchemyError):  # it runs out by itself
                await self._give_up(effect_id)
            raise
        finally:
            renewing.cancel()

    async def held(self, connection: AsyncConnection, effect_id: int) -> bool:
        """Whether it is this server's still, and will be for as long as this transaction takes."""
        if not self._records.shared:
            return True
        until_ms = await self._records.now_ms(connection) + self._lease_ms
        return await lease_records.renew_lease(connection, effect_id, self.holder, until_ms)

    async def end(self, connection: AsyncConnection, effect_id: int) -> bool:
        """Give the lease up with this transaction, which writes down what was done; False if it was lost."""
        if not self._records.shared:
            return True
        return await lease_records.give_leases_up(connection, self.holder, effect_id) == 1

    async def close(self) -> None:
        """The server stops: others need not wait until its leases run out."""
        if self._records.shared:
            with suppress(FedSophiaError, SQLAlchemyError):
                await self._give_up(None)

    async def _give_up(self, effect_id: int | None) -> None:
        async with self._records.write() as connection:
            await lease_records.give_leases_up(connection, self.holder, effect_id)

    async def _renew(self, effect_id: int) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            try:
                async with self._records.write() as connection:
                    now_ms = await self._records.now_ms(connection)
                    held = await lease_records.renew_lease(
                        connection, effect_id, self.holder, now_ms + self._lease_ms
                    )
            except (FedSophiaError, SQLAlchemyError) as error:
                log.warning("the lease of effect %d could not be renewed: %s", effect_id, error)
                continue
            if not held:
                log.warning("another server has taken effect %d over", effect_id)
                return
