# SPDX-License-Identifier: Apache-2.0
"""How a device becomes a worker, and how a worker comes by access tokens: by proof that it holds its key.

What it signs is for this server alone, by the server's id, and is good once: an assertion is remembered
with the token it was exchanged for, in the store that all replicas share, until its time is over. An
enrolment that is repeated changes nothing and gives away nothing, so nothing is remembered of its proof.

Signatures are checked before anything is written: who only guesses keeps nobody from writing.
"""

import secrets
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol import assertions
from protocol.assertions import LEEWAY_S, Purpose
from protocol.errors import (
    ApprovalPending,
    AssertionRefused,
    Forbidden,
    InvalidUsage,
    JoinTokenRefused,
    NotFound,
    Unauthenticated,
    UnsupportedVersion,
    UpdateConflict,
)
from protocol.join_token import JoinToken
from protocol.messages import (
    PROTOCOL_VERSION,
    AccessToken,
    Enrolled,
    Enrolment,
    JoinTokenIssued,
    JoinTokenRequest,
    JoinTokenSummary,
    KeyRotation,
)
from ps_service.auth import ACCESS_TOKEN, hash_secret
from ps_service.clock import Clock
from ps_service.rates import Rates
from ps_service.storage import Stores, credential_records, key_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import require_not_revoked, the_run
from ps_service.storage.key_records import StoredJoinToken


class Enrolling:
    """Makes workers of devices."""

    def __init__(
        self, stores: Stores, clock: Clock, rates: Rates, access_token_s: int, ca_hash: str | None = None
    ) -> None:
        """Args: ca_hash: what join tokens say of the server's CA."""
        self._records = stores.records
        self._clock = clock
        self._rates = rates
        self._access_token_s = access_token_s
        self._ca_hash = ca_hash
        self._server_id: str | None = None

    # --- join tokens ---------------------------------------------------------------------------

    async def issue_join_token(self, request: JoinTokenRequest) -> JoinTokenIssued:
        """Raises: NotFound: there is no such run."""
        async with self._records.write() as connection:
            if request.run_id is not None:
                await the_run(connection, request.run_id)
            return await self.add_join_token(connection, request)

    async def add_join_token(self, connection: AsyncConnection, request: JoinTokenRequest) -> JoinTokenIssued:
        token = JoinToken(secrets.token_urlsafe(32), await self._made_id(connection), self._ca_hash)
        token_id, secret_hash = f"t-{secrets.token_hex(6)}", hash_secret(token.secret)
        expires_ms = await key_records.add_join_token(
            connection, token_id, secret_hash, request, self._clock.now_ms()
        )
        return JoinTokenIssued(
            token_id=token_id,
            join_token=str(token),
            uses=request.uses,
            role=request.role,
            expires_ms=expires_ms,
        )

    async def join_tokens(self) -> list[JoinTokenSummary]:
        async with self._records.read() as connection:
            return await key_records.list_join_tokens(connection)

    async def revoke_join_token(self, token_id: str) -> None:
        """No more devices enrol by it; those that have stay. Raises: NotFound."""
        async with self._records.write() as connection:
            if not await key_records.revoke_join_token(connection, token_id, self._clock.now_ms()):
                raise NotFound(f"there is no join token {token_id}")

    # --- enrolment -----------------------------------------------------------------------------

    async def enrol(self, join_token: str, enrolment: Enrolment) -> tuple[Enrolled, bool]:
        """Enrol a device by its join token; give the answer and whether the worker is new.

        Raises:
            JoinTokenRefused, AssertionRefused, ClockSkewed, WorkerRevoked, UnsupportedVersion,
                TooManyRequests.
            Forbidden: the device is enrolled already, in another role than the token grants.
        """
        if not enrolment.protocol_min <= PROTOCOL_VERSION <= enrolment.protocol_max:
            raise UnsupportedVersion(
                f"this server speaks version {PROTOCOL_VERSION}; the worker speaks "
                f"{enrolment.protocol_min} to {enrolment.protocol_max}"
            )
        secret, now_ms = _secret_of(join_token), self._clock.now_ms()
        key_thumbprint = assertions.thumbprint(enrolment.public_key)
        async with self._records.read() as connection:
            await _usable(connection, secret, now_ms)
            known = await credential_records.worker_by_key(connection, key_thumbprint)
            server_id = await self._id(connection)
        assertions.read(
            enrolment.proof,
            enrolment.public_key,
            Purpose.ENROL,
            key_thumbprint,
            server_id,
            now_ms,
            assertions.use_of(secret),
        )
        if known is not None:
            self._rates.of_signer(known.worker_id)
        async with self._records.write() as connection:
            token = await _usable(connection, secret, now_ms)  # it may have been revoked meanwhile
            known = await credential_records.worker_by_key(connection, key_thumbprint)
            if known is None:
                worker = self._new_worker(token, enrolment, key_thumbprint, now_ms)
                await _take_use(connection, token)
                await credential_records.add_worker(connection, worker)
            else:
                worker = await self._again(connection, known, token, enrolment, now_ms)
        answer = Enrolled(
            worker_id=worker.worker_id,
            role=worker.role,
            protocol_version=PROTOCOL_VERSION,
            waiting=worker.approved_ms is None,
        )
        return answer, known is None

    def _new_worker(
        self, token: StoredJoinToken, enrolment: Enrolment, key_thumbprint: str, now_ms: int
    ) -> StoredWorker:
        return StoredWorker(
            worker_id=f"w-{secrets.token_hex(8)}",
            name=enrolment.name,
            role=token.role,
            tasks=enrolment.tasks,
            enrolled_ms=now_ms,
            last_seen_ms=now_ms,
            label=token.label,
            run_id=token.run_id,
            approved_ms=None if token.approve else now_ms,
            key_thumbprint=key_thumbprint,
            public_key=enrolment.public_key,
            token_id=token.token_id,
            idle_s=token.idle_s,
        )

    async def _again(
        self,
        connection: AsyncConnection,
        worker: StoredWorker,
        token: StoredJoinToken,
        enrolment: Enrolment,
        now_ms: int,
    ) -> StoredWorker:
        """A device that is known enrols again: it uses up nothing, unless it had expired."""
        if worker.expired_ms is None or worker.revoked_ms is not None:
            require_not_revoked(worker)
        if worker.role is not token.role:
            raise Forbidden(f"enrolled as {worker.role.value}; the join token grants {token.role.value}")
        if worker.expired_ms is not None:
            await _take_use(connection, token)
            worker = replace(
                worker,
                expired_ms=None,
                token_id=token.token_id,
                label=token.label,
                run_id=token.run_id,
                idle_s=token.idle_s,
                approved_ms=None if token.approve else now_ms,
            )
            await credential_records.revive(connection, worker)
        await credential_records.enrolled_again(
            connection, worker.worker_id, enrolment.name, enrolment.tasks, now_ms
        )
        return worker

    # --- credentials ---------------------------------------------------------------------------

    async def access_token(self, worker_id: str, assertion: str) -> tuple[AccessToken, StoredWorker]:
        """Exchange an assertion for an access token.

        Raises:
            Unauthenticated: there is no such worker, or it has no key.
            AssertionRefused: it does not prove that the worker asks, or it was used before.
            ClockSkewed, WorkerRevoked, WorkerExpired, TooManyRequests.
            ApprovalPending: an operator has yet to say yes.
        """
        now_ms = self._clock.now_ms()
        async with self._records.read() as connection:
            _, public_key = await _with_key(connection, worker_id)
            server_id = await self._id(connection)
        signed = assertions.read(assertion, public_key, Purpose.TOKEN, worker_id, server_id, now_ms)
        self._rates.of_signer(worker_id)
        async with self._records.write_aside() as connection:
            await credential_records.hold_worker(connection, worker_id)
            worker, key_now = await _with_key(connection, worker_id)
            if key_now != public_key:
                raise AssertionRefused("the worker's key was changed meanwhile")
            require_not_revoked(worker)
            if worker.approved_ms is None:
                raise ApprovalPending(
                    f"an operator has yet to approve this worker: fed-sophia workers approve {worker_id}"
                )
            token = ACCESS_TOKEN + secrets.token_urlsafe(32)
            expires_ms = now_ms + 1000 * self._access_token_s
            forget_ms = max(expires_ms, 1000 * (signed.expires_s + LEEWAY_S + 1))
            if not await key_records.add_access_token(
                connection, hash_secret(token), worker_id, signed.assertion_id, expires_ms, forget_ms
            ):
                raise AssertionRefused("the assertion was used before; each is good once")
        return AccessToken(access_token=token, expires_s=self._access_token_s), worker

    async def rotate_key(self, worker_id: str, rotation: KeyRotation) -> None:
        """Put a new key in the place of a worker's old one.

        Raises:
            AssertionRefused, ClockSkewed: the new key is not proved, or the one that the worker has does not
                consent to it.
            UpdateConflict: it is another worker's.
            Unauthenticated, WorkerRevoked, WorkerExpired.
        """
        now_ms = self._clock.now_ms()
        key_thumbprint = assertions.thumbprint(rotation.public_key)
        async with self._records.write() as connection:
            worker, key_now = await _with_key(connection, worker_id)
            require_not_revoked(worker)
            server_id = await self._id(connection)
            for assertion, key, use in (
                (rotation.proof, rotation.public_key, None),
                (rotation.consent, key_now, key_thumbprint),
            ):
                assertions.read(assertion, key, Purpose.ROTATE, worker_id, server_id, now_ms, use)
            holder = await credential_records.worker_by_key(connection, key_thumbprint)
            if holder is not None and holder.worker_id != worker.worker_id:
                raise UpdateConflict("this key is another worker's")
            await credential_records.set_key(connection, worker_id, rotation.public_key, key_thumbprint)
            await key_records.end_access_tokens(connection, worker_id)

    async def forget(self) -> None:
        """Forget access tokens, and the assertions that they were had by, once neither can be of use."""
        async with self._records.write() as connection:
            await key_records.forget_access_tokens(connection, self._clock.now_ms())

    async def _id(self, connection: AsyncConnection) -> str:
        """What devices sign for. It is there since the first join token was made."""
        if self._server_id is None:
            self._server_id = await key_records.server_id(connection)
            assert self._server_id is not None
        return self._server_id

    async def _made_id(self, connection: AsyncConnection) -> str:
        """The same, made if it is not there yet."""
        known = await key_records.server_id(connection)
        if known is None:
            known = secrets.token_hex(8)
            await key_records.add_server_id(connection, known, self._clock.now_ms())
        return known


async def _usable(connection: AsyncConnection, secret: str, now_ms: int) -> StoredJoinToken:
    """The token of this secret, if it may be used. Says nothing of uses left.

    Raises:
        JoinTokenRefused: it is unknown, or its time is over.
    """
    token = await key_records.join_token(connection, hash_secret(secret), now_ms)
    if token is None:
        raise JoinTokenRefused(
            "the join token is unknown, expired or revoked; ask the operator for a new one"
        )
    return token


async def _with_key(connection: AsyncConnection, worker_id: str) -> tuple[StoredWorker, str]:
    """A worker and its public key.

    Raises:
        Unauthenticated: there is no such worker, or it has no key.
    """
    worker = await credential_records.worker_by_id(connection, worker_id)
    if worker is None or worker.public_key is None:
        raise Unauthenticated(f"worker {worker_id} is not known here")
    return worker, worker.public_key


async def _take_use(connection: AsyncConnection, token: StoredJoinToken) -> None:
    if not await key_records.take_join_token_use(connection, token.token_id):
        raise JoinTokenRefused("the join token is used up; ask the operator for a new one")


def _secret_of(join_token: str) -> str:
    try:
        return JoinToken.parse(join_token).secret
    except InvalidUsage:
        raise JoinTokenRefused("that is no join token") from None
