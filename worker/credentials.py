# SPDX-License-Identifier: Apache-2.0
"""One worker's access tokens: had by signing, shown for minutes, renewed before they end.

The device's clock may be off: a server that refuses a signature for its time says what time it is, and this
worker goes by that from then on, for its signatures alone.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from protocol.assertions import Purpose, sign
from protocol.errors import ClockSkewed
from protocol.messages import AccessToken

RENEW_AT = 0.8
"""Of a token's life: another is asked for after so much of it."""

T = TypeVar("T")
Exchange = Callable[[str], Awaitable[AccessToken]]
"""Give the server an assertion, get an access token."""


@dataclass
class Signer:
    """Signs by a private key, for one server."""

    private_key: str
    server_id: str
    clock_s: Callable[[], float] = time.time
    offset_s: float = 0.0
    """What the server's clock is ahead of this one."""

    def sign(self, purpose: Purpose, subject: str, use: str | None = None) -> str:
        now_s = int(self.clock_s() + self.offset_s)
        return sign(self.private_key, purpose, subject, self.server_id, now_s, secrets.token_urlsafe(16), use)

    async def persuade(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask for what takes a signature; once more by the server's time, if it says that ours is wrong."""
        try:
            return await ask()
        except ClockSkewed as error:
            if error.server_ms is None:
                raise
            self.offset_s = error.server_ms / 1000 - self.clock_s()
        return await ask()


class Credentials:
    """The access token that is good now."""

    def __init__(
        self,
        signer: Signer,
        worker_id: str,
        exchange: Exchange,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signer = signer
        self._worker_id = worker_id
        self._exchange = exchange
        self._clock_s = clock_s
        self._token: str | None = None
        self._renew_at_s = 0.0
        self._asking = asyncio.Lock()

    async def token(self) -> str:
        """Give it, asking for another if need be.

        Raises:
            FedSophiaError: the server gives none.
        """
        async with self._asking:  # who comes while one is asked for waits for that one
            if self._token is None or self._clock_s() >= self._renew_at_s:
                asked_s = self._clock_s()
                issued = await self._signer.persuade(self._ask)
                self._token = issued.access_token
                self._renew_at_s = asked_s + RENEW_AT * issued.expires_s
            return self._token

    def refused(self, token: str) -> None:
        """The server does not take this token any more: the next request asks for another."""
        if token == self._token:
            self._token = None

    async def _ask(self) -> AccessToken:
        return await self._exchange(self._signer.sign(Purpose.TOKEN, self._worker_id))
