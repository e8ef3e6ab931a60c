# SPDX-License-Identifier: Apache-2.0
"""Operators' keys, and the first credentials of a new server."""

import logging
import os
import secrets
from pathlib import Path

from protocol.errors import InvalidMessage, MissingScope, NotFound
from protocol.messages import JoinTokenRequest
from protocol.operator_keys import (
    OperatorKeyIssued,
    OperatorKeyRequest,
    OperatorKeySummary,
    Scope,
    allows,
)
from ps_service.auth import OPERATOR_KEY, Operator, hash_secret
from ps_service.clock import Clock
from ps_service.enrolling import Enrolling
from ps_service.storage import Stores, key_records
from ps_service.storage.files import sync_directory
from ps_service.storage.not_writable import writing_files

log = logging.getLogger("fed_sophia.server")

OPERATOR_KEY_FILE = "operator.key"
JOIN_TOKEN_FILE = "join.token"
EVERYTHING = frozenset({Scope.RUNS_WRITE, Scope.WORKERS_WRITE, Scope.METRICS_READ, Scope.KEYS_WRITE})
"""What the first key is made for."""


class OperatorKeys:
    """Makes and revokes operators' keys."""

    def __init__(self, stores: Stores, clock: Clock, enrolling: Enrolling) -> None:
        self._records = stores.records
        self._clock = clock
        self._enrolling = enrolling

    async def issue(self, operator: Operator, request: OperatorKeyRequest) -> OperatorKeyIssued:
        """An operator gives no key more than its own has, nor for longer.

        Raises:
            MissingScope, InvalidMessage: more was asked for.
        """
        for scope in sorted(request.scopes):
            if not allows(operator.scopes, scope):
                raise MissingScope(f"your own key was not made for {scope.value}")
        now_ms = self._clock.now_ms()
        expires_ms = operator.expires_ms
        if request.expires_s is not None:
            expires_ms = now_ms + 1000 * request.expires_s
            if operator.expires_ms is not None and expires_ms > operator.expires_ms:
                raise InvalidMessage(
                    f"expires_s: {request.expires_s}; your own key ends in "
                    f"{(operator.expires_ms - now_ms) // 1000} s, and no key that it makes ends later"
                )
        key = _new_key(request.label, request.scopes, now_ms, expires_ms)
        async with self._records.write() as connection:
            await key_records.add_operator_key(connection, hash_secret(key.operator_key), key)
        return key

    async def list(self) -> list[OperatorKeySummary]:
        """Oldest first."""
        async with self._records.read() as connection:
            return await key_records.list_operator_keys(connection)

    async def revoke(self, operator: Operator, key_id: str) -> None:
        """Let a key be of use no more, at once.

        Raises:
            NotFound; MissingScope: it may do more than one's own.
        """
        async with self._records.write() as connection:
            keys = await key_records.list_operator_keys(connection)
            found = next((key for key in keys if key.key_id == key_id), None)
            if found is None:
                raise NotFound(f"there is no operator key {key_id}")
            for scope in sorted(found.scopes):
                if not allows(operator.scopes, scope):
                    raise MissingScope(f"your own key was not made for {scope.value}, which that one has")
            await key_records.revoke_operator_key(connection, key_id, self._clock.now_ms())

    async def make_first_credentials(self, directory: Path) -> bool:
        """At the first start, make an operator key and a join token, and leave them in two private files.

        At a later start, make an operator key if none is left that may make others: whoever revoked the last
        of them would be locked out for ever otherwise. Who can start the server can read its directory.

        The files are written before the records are committed: after a crash between the two the next start
        makes new ones.

        Raises:
            StorageNotWritable: the disk is full, read-only or failing.
        """
        now_ms = self._clock.now_ms()
        async with self._records.read() as connection:
            known = await key_records.list_operator_keys(connection)
        if any(_makes_keys(key, now_ms) for key in known):
            return False
        key = _new_key("a later start" if known else "first start", EVERYTHING, now_ms, None)
        async with self._records.write() as connection:
            others = await key_records.list_operator_keys(connection)
            if any(_makes_keys(each, now_ms) for each in others):
                return False  # another server has started at the same time
            await key_records.add_operator_key(connection, hash_secret(key.operator_key), key)
            write_private(directory / OPERATOR_KEY_FILE, key.operator_key)
            if not known:
                request = JoinTokenRequest(uses=100, label="first start")
                token = await self._enrolling.add_join_token(connection, request)
                write_private(directory / JOIN_TOKEN_FILE, token.join_token)
        if known:
            log.warning("no operator key was left that may make others: %s has a new one", OPERATOR_KEY_FILE)
        return True


def _makes_keys(key: OperatorKeySummary, now_ms: int) -> bool:
    good = key.revoked_ms is None and (key.expires_ms is None or key.expires_ms > now_ms)
    return good and Scope.KEYS_WRITE in key.scopes


def _new_key(label: str, scopes: frozenset[Scope], now_ms: int, expires_ms: int | None) -> OperatorKeyIssued:
    return OperatorKeyIssued(
        key_id=f"k-{secrets.token_hex(6)}",
        label=label,
        scopes=scopes,
        created_ms=now_ms,
        expires_ms=expires_ms,
        operator_key=OPERATOR_KEY + secrets.token_urlsafe(32),
    )


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
