# SPDX-License-Identifier: Apache-2.0
"""Who is asking, and what it may do: operators by their keys, workers by their access tokens.

Both are random and stored as SHA-256. They have at least 256 random bits, so a plain hash is enough, and
looking one up by its hash compares nothing secret byte by byte. They are taken from the Authorization header
only. How a worker comes by its tokens is in `enrolling`.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from protocol.errors import Forbidden, MissingScope, Unauthenticated, WorkerExpired, WorkerRevoked
from protocol.operator_keys import Scope, allows
from ps_service.clock import Clock
from ps_service.presence import Presence
from ps_service.rates import Rates
from ps_service.storage import Stores, credential_records, key_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import require_not_revoked

OPERATOR_KEY, ACCESS_TOKEN = "fso_", "fsa_"
"""What each begins with."""


@dataclass(frozen=True)
class Operator:
    """The caller holds an operator's key."""

    key_id: str
    label: str
    scopes: frozenset[Scope]
    expires_ms: int | None = None

    def require(self, scope: Scope) -> None:
        """Raises: MissingScope."""
        if not allows(self.scopes, scope):
            raise MissingScope(f"this needs an operator key with the scope {scope.value}")


Caller = Operator | StoredWorker


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Auth:
    """Tells callers apart."""

    def __init__(self, stores: Stores, clock: Clock, presence: Presence, rates: Rates) -> None:
        self._records = stores.records
        self._clock = clock
        self._presence = presence
        self._rates = rates

    def operator(self, scope: Scope) -> Callable[[Request], Awaitable[Operator]]:
        """A dependency that lets only operators pass whose key has this scope.

        It raises: Unauthenticated: no valid operator key; Forbidden: a worker's credential; MissingScope.
        """

        async def operator(request: Request) -> Operator:
            caller = await self.caller(request, scope)
            if isinstance(caller, StoredWorker):
                raise Forbidden("this needs an operator key; a worker's credential was given")
            return caller

        return operator

    async def worker(self, request: Request) -> StoredWorker:
        """Who of the workers is asking; raises as `caller`, and Forbidden: an operator's key."""
        caller = await self.caller(request, None)
        if isinstance(caller, Operator):
            raise Forbidden("this needs a worker's credential; an operator key was given")
        return caller

    async def caller(self, request: Request, scope: Scope | None) -> Caller:
        """Who is asking.

        Args: scope: what an operator's key must have been made for; None: any key is answered alike.

        Raises:
            Unauthenticated: neither an operator's key nor an access token that is good now.
            MissingScope, WorkerRevoked, WorkerExpired, TooManyRequests.
        """
        caller = await self._caller(bearer(request))
        request.state.caller = caller
        if isinstance(caller, Operator):
            if scope is not None:
                caller.require(scope)
        else:
            self._rates.of_worker(caller.worker_id)
            await self._presence.seen(caller)
        return caller

    async def is_operator(self, request: Request) -> bool:
        """Whether an operator's key that is good now comes with it, whatever that may be used for."""
        try:
            return isinstance(await self._caller(bearer(request)), Operator)
        except (Unauthenticated, WorkerRevoked, WorkerExpired):
            return False

    async def _caller(self, secret: str) -> Caller:
        now_ms, secret_hash = self._clock.now_ms(), hash_secret(secret)
        async with self._records.glance() as connection:
            if secret.startswith(OPERATOR_KEY):
                key = await key_records.operator_key(connection, secret_hash, now_ms)
                if key is not None:
                    return Operator(key.key_id, key.label, key.scopes, key.expires_ms)
            elif secret.startswith(ACCESS_TOKEN):
                worker = await credential_records.worker_by_token(connection, secret_hash, now_ms)
                if worker is not None:
                    return require_not_revoked(worker)
        raise Unauthenticated("the credential is not known here, or no longer good")


def bearer(request: Request) -> str:
    """Raises: Unauthenticated: the request has no `Authorization: Bearer …`."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated("expected `Authorization: Bearer …`")
    return secret


async def require_bearer(request: Request) -> None:
    """Raises: Unauthenticated: the request carries no credential of any kind."""
    bearer(request)


def require_same(worker: StoredWorker, worker_id: str) -> None:
    """Raises: Forbidden: the path names another worker than the credential."""
    if worker.worker_id != worker_id:
        raise Forbidden(f"this credential is not that of worker {worker_id}")
