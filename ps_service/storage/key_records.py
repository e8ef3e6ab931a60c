# SPDX-License-Identifier: Apache-2.0
"""Queries: operators' keys, join tokens, access tokens, the server's id. Of secrets, SHA-256 only."""

import json
from dataclasses import dataclass

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import JoinTokenRequest, JoinTokenSummary, Role
from protocol.operator_keys import OperatorKeySummary, Scope
from ps_service.storage.ready import Ready
from ps_service.storage.schema import access_tokens, join_tokens, operator_keys, server_identity

# built once: every request of an operator asks it
_KEY_OF_SECRET = Ready(
    select(operator_keys).where(
        operator_keys.c.secret_hash == bindparam("given"),
        operator_keys.c.revoked_ms.is_(None),
        operator_keys.c.expires_ms.is_(None) | (operator_keys.c.expires_ms > bindparam("now_ms")),
    )
)


@dataclass(frozen=True)
class StoredJoinToken:
    """A join token that may still be used, if it has uses left."""

    token_id: str
    label: str
    role: Role
    run_id: str | None
    approve: bool
    idle_s: int | None


# --- the server --------------------------------------------------------------------------------


async def server_id(connection: AsyncConnection) -> str | None:
    """None at the first start."""
    found: str | None = (await connection.execute(select(server_identity.c.server_id))).scalar()
    return found


async def add_server_id(connection: AsyncConnection, server_id: str, now_ms: int) -> None:
    await connection.execute(insert(server_identity).values(server_id=server_id, created_ms=now_ms))


# --- operators' keys ---------------------------------------------------------------------------


async def add_operator_key(connection: AsyncConnection, secret_hash: str, key: OperatorKeySummary) -> None:
    await connection.execute(
        insert(operator_keys).values(
            secret_hash=secret_hash,
            key_id=key.key_id,
            label=key.label,
            scopes=json.dumps(sorted(key.scopes)),
            created_ms=key.created_ms,
            expires_ms=key.expires_ms,
        )
    )


async def operator_key(
    connection: AsyncConnection, secret_hash: str, now_ms: int
) -> OperatorKeySummary | None:
    """The key of this secret, if it is neither expired nor revoked."""
    row = await _KEY_OF_SECRET.first(connection, given=secret_hash, now_ms=now_ms)
    return None if row is None else _key(row)


async def key_of_secret(connection: AsyncConnection, secret_hash: str) -> OperatorKeySummary | None:
    """The key of this secret, whether or not it is good for anything still."""
    query = select(operator_keys).where(operator_keys.c.secret_hash == secret_hash)
    row = (await connection.execute(query)).first()
    return None if row is None else _key(row)


async def list_operator_keys(connection: AsyncConnection) -> list[OperatorKeySummary]:
    query = select(operator_keys).order_by(operator_keys.c.created_ms, operator_keys.c.key_id)
    return [_key(row) for row in await connection.execute(query)]


async def revoke_operator_key(connection: AsyncConnection, key_id: str, now_ms: int) -> None:
    await connection.execute(
        update(operator_keys)
        .where(operator_keys.c.key_id == key_id, operator_keys.c.revoked_ms.is_(None))
        .values(revoked_ms=now_ms)
    )


def _key(row: Row[tuple[object, ...]]) -> OperatorKeySummary:
    return OperatorKeySummary(
        key_id=row.key_id,
        label=row.label,
        scopes=frozenset(Scope(scope) for scope in json.loads(row.scopes)),
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        revoked_ms=row.revoked_ms,
    )


# --- join tokens -------------------------------------------------------------------------------


async def add_join_token(
    connection: AsyncConnection, token_id: str, secret_hash: str, request: JoinTokenRequest, now_ms: int
) -> int:
    """Store a new join token; give the time at which it expires."""
    expires_ms = now_ms + request.expires_s * 1000
    await connection.execute(
        insert(join_tokens).values(
            token_id=token_id,
            secret_hash=secret_hash,
            label=request.label,
            role=request.role.value,
            uses_left=request.uses,
            expires_ms=expires_ms,
            created_ms=now_ms,
            run_id=request.run_id,
            approve=request.approve,
            idle_s=request.idle_s,
        )
    )
    return expires_ms


async def join_token(connection: AsyncConnection, secret_hash: str, now_ms: int) -> StoredJoinToken | None:
    """None if it is unknown, expired or revoked. Says nothing of uses left."""
    query = select(join_tokens).where(
        join_tokens.c.secret_hash == secret_hash,
        join_tokens.c.expires_ms > now_ms,
        join_tokens.c.revoked_ms.is_(None),
    )
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    return StoredJoinToken(row.token_id, row.label, Role(row.role), row.run_id, row.approve, row.idle_s)


async def take_join_token_use(connection: AsyncConnection, token_id: str) -> bool:
    """Use the token once; False if no use is left."""
    taken = await connection.execute(
        update(join_tokens)
        .where(join_tokens.c.token_id == token_id, join_tokens.c.uses_left > 0)
        .values(uses_left=join_tokens.c.uses_left - 1)
    )
    return taken.rowcount == 1


async def give_join_token_use_back(connection: AsyncConnection, token_id: str) -> None:
    await connection.execute(
        update(join_tokens)
        .where(join_tokens.c.token_id == token_id)
        .values(uses_left=join_tokens.c.uses_left + 1)
    )


async def list_join_tokens(connection: AsyncConnection) -> list[JoinTokenSummary]:
    """Oldest first."""
    query = select(join_tokens).order_by(join_tokens.c.created_ms, join_tokens.c.token_id)
    return [JoinTokenSummary.model_validate(dict(row._mapping)) for row in await connection.execute(query)]


async def revoke_join_token(connection: AsyncConnection, token_id: str, now_ms: int) -> bool:
    """Let it be used no more; False if there is none. Revoked before, it stays so."""
    known = select(join_tokens.c.token_id).where(join_tokens.c.token_id == token_id)
    if (await connection.execute(known)).first() is None:
        return False
    await connection.execute(
        update(join_tokens)
        .where(join_tokens.c.token_id == token_id, join_tokens.c.revoked_ms.is_(None))
        .values(revoked_ms=now_ms)
    )
    return True


# --- access tokens -----------------------------------------------------------------------------


async def add_access_token(
    connection: AsyncConnection,
    token_hash: str,
    worker_id: str,
    assertion_id: str,
    expires_ms: int,
    forget_ms: int,
) -> bool:
    """Store a token; False if its assertion was used before.

    Args: forget_ms: when neither the token nor its assertion can be of use any more.
    """
    used = select(access_tokens.c.token_hash).where(
        access_tokens.c.worker_id == worker_id, access_tokens.c.assertion_id == assertion_id
    )
    if (await connection.execute(used)).first() is not None:
        return False
    await connection.execute(
        insert(access_tokens).values(
            token_hash=token_hash,
            worker_id=worker_id,
            assertion_id=assertion_id,
            expires_ms=expires_ms,
            forget_ms=forget_ms,
        )
    )
    return True


async def end_access_tokens(connection: AsyncConnection, worker_id: str) -> None:
    """None of this worker's tokens is good any more; the assertions that they were had by stay known."""
    await connection.execute(
        update(access_tokens).where(access_tokens.c.worker_id == worker_id).values(expires_ms=0)
    )


async def forget_access_tokens(connection: AsyncConnection, now_ms: int) -> None:
    await connection.execute(delete(access_tokens).where(access_tokens.c.forget_ms <= now_ms))
