# SPDX-License-Identifier: Apache-2.0
"""Who is asking: operator keys, join tokens, worker credentials. All random, all stored as SHA-256.

Secrets have at least 256 random bits, so a plain hash is enough, and looking one up by its hash compares
nothing secret byte by byte. They are taken from the Authorization header only.
"""

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from protocol.errors import (
    Forbidden,
    JoinTokenRefused,
    Unauthenticated,
    UnsupportedVersion,
)
from protocol.messages import (
    PROTOCOL_VERSION,
    Enrolled,
    Enrolment,
    JoinTokenIssued,
    JoinTokenRequest,
)
from ps_service.clock import Clock
from ps_service.presence import Presence
from ps_service.rates import Rates
from ps_service.storage import Stores, credential_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import require_not_revoked
from ps_service.storage.files import sync_directory
from ps_service.storage.not_writable import writing_files

OPERATOR_KEY_FILE = "operator.key"
JOIN_TOKEN_FILE = "join.token"


@dataclass(frozen=True)
class Operator:
    """The caller holds an operator key."""


Caller = Operator | StoredWorker


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Auth:
    """Checks and makes credentials."""

    def __init__(self, stores: Stores, clock: Clock, presence: Presence, rates: Rates) -> None:
        self._records = stores.records
        self._clock = clock
        self._presence = presence
        self._rates = rates

    async def operator(self, request: Request) -> Operator:
        """Raises: Unauthenticated: no valid operator key; Forbidden: a worker's credential."""
        caller = await self.caller(request)
        if isinstance(caller, StoredWorker):
            raise Forbidden("this needs an operator key; a worker's credential was given")
        return caller

    async def worker(self, request: Request) -> StoredWorker:
        """Raises: Unauthenticated, WorkerRevoked, TooManyRequests; Forbidden: an operator key."""
        caller = await self.caller(request)
        if isinstance(caller, Operator):
            raise Forbidden("this needs a worker's credential; an operator key was given")
        return caller

    async def caller(self, request: Request) -> Caller:
        """Raises: Unauthenticated: no credential that is known here; WorkerRevoked, TooManyRequests."""
        secret_hash = hash_secret(bearer(request))
        async with self._records.glance() as connection:
            worker = await credential_records.worker_by_secret(connection, secret_hash)
            if worker is None:
                if await credential_records.is_operator_key(connection, secret_hash):
                    return Operator()
                raise Unauthenticated("the credential is not known here")
        self._rates.of_worker(worker.worker_id)
        await self._presence.seen(require_not_revoked(worker))
        return worker

    async def enrol(self, request: Request, enrolment: Enrolment) -> tuple[Enrolled, bool]:
        """Enrol a device by its join token; give the answer and whether the worker is new.

        Raises:
            JoinTokenRefused, Unauthenticated, WorkerRevoked, UnsupportedVersion.
            Forbidden: the device is enrolled already, in another role than the token grants.
        """
        if not enrolment.protocol_min <= PROTOCOL_VERSION <= enrolment.protocol_max:
            raise UnsupportedVersion(
                f"this server speaks version {PROTOCOL_VERSION}; the worker speaks "
                f"{enrolment.protocol_min} to {enrolment.protocol_max}"
            )
        token_hash = hash_secret(bearer(request))
        secret_hash = hash_secret(enrolment.secret)
        now_ms = self._clock.now_ms()
        async with self._records.write() as connection:
            role = await credential_records.join_token_role(connection, token_hash, now_ms)
            if role is None:
                raise JoinTokenRefused("the join token is unknown or expired; ask the operator for a new one")
            worker = await credential_records.worker_by_secret(connection, secret_hash)
            known = worker is not None
            if worker is None:
                if not await credential_records.take_join_token_use(connection, token_hash):
                    raise JoinTokenRefused("the join token is used up; ask the operator for a new one")
                worker = StoredWorker(
                    worker_id=f"w-{secrets.token_hex(8)}",
                    name=enrolment.name,
                    role=role,
                    tasks=enrolment.tasks,
                    enrolled_ms=now_ms,
                    last_seen_ms=now_ms,
                    lost_ms=None,
                    revoked_ms=None,
                )
                await credential_records.add_worker(connection, worker, secret_hash)
            require_not_revoked(worker)
            if worker.role is not role:
                raise Forbidden(f"enrolled as {worker.role.value}; the join token grants {role.value}")
            if known:
                await credential_records.enrolled_again(
                    connection, worker.worker_id, enrolment.name, enrolment.tasks, now_ms
                )
        answer = Enrolled(worker_id=worker.worker_id, role=worker.role, protocol_version=PROTOCOL_VERSION)
        return answer, not known

    async def issue_join_token(self, request: JoinTokenRequest) -> JoinTokenIssued:
        token_id, join_token = _new_token_id(), _new_join_token()
        async with self._records.write() as connection:
            expires_ms = await credential_records.add_join_token(
                connection, token_id, hash_secret(join_token), request, self._clock.now_ms()
            )
        return JoinTokenIssued(
            token_id=token_id,
            join_token=join_token,
            uses=request.uses,
            role=request.role,
            expires_ms=expires_ms,
        )

    async def make_first_credentials(self, directory: Path) -> bool:
        """At the first start, make an operator key and a join token, and leave them in two private files.

        The files are written before the records: after a crash between them the next start makes new ones.

        Raises:
            StorageNotWritable: the disk is full, read-only or failing.
        """
        async with self._records.read() as connection:
            if await credential_records.has_operator_key(connection):
                return False
        key, token = f"fso_{secrets.token_urlsafe(32)}", _new_join_token()
        write_private(directory / OPERATOR_KEY_FILE, key)
        write_private(directory / JOIN_TOKEN_FILE, token)
        request, now_ms = JoinTokenRequest(uses=100, label="first start"), self._clock.now_ms()
        async with self._records.write() as connection:
            await credential_records.add_join_token(
                connection, _new_token_id(), hash_secret(token), request, now_ms
            )
            await credential_records.add_operator_key(connection, hash_secret(key), request.label, now_ms)
        return True


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


def write_private(path: Path, secret: str) -> None:
    """Put a secret, whole or not at all, into a file that only its owner may read.

    Raises:
        StorageNotWritable: the disk is full, read-only or failing.
    """
    new = path.with_name(f".{path.name}.new")
    with writing_files():
        new.unlink(missing_ok=True)
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secret + "\n")
                file.flush()
                os.fsync(descriptor)
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def _new_token_id() -> str:
    return f"t-{secrets.token_hex(6)}"


def _new_join_token() -> str:
    return f"fsj_{secrets.token_urlsafe(32)}"
