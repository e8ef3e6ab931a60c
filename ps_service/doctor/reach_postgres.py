# SPDX-License-Identifier: Apache-2.0
"""Reaches a PostgreSQL as a server does, and says in words why it cannot."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from protocol.errors import InvalidUsage
from ps_service.storage.records import Records

PORT = 5432
_NO_ADDRESS = ("its host has no address", "correct the host, or the names that this machine resolves")
_WORDS = {
    "ConnectionRefusedError": ("nobody listens there", "start it, or correct host and port"),
    "gaierror": _NO_ADDRESS,
    "UnicodeError": _NO_ADDRESS,
    "TimeoutError": ("it does not answer", "look whether it runs, and whether a firewall is in between"),
    "InvalidPasswordError": ("the password is refused", "correct it; write %40 for an @ in it and the like"),
    "InvalidAuthorizationSpecificationError": (
        "it does not let this user in from here",
        "correct the user, or the server's pg_hba.conf",
    ),
    "InvalidCatalogNameError": ("it has no such database", "make it, or correct the name"),
    "TooManyConnectionsError": ("it has no connection left", "raise its max_connections: a server takes 11"),
    "CannotConnectNowError": ("it is starting or stopping", "try again in a moment"),
    "ReadOnlySQLTransactionError": ("it is read-only", "name the primary, not a replica of it"),
    "InsufficientPrivilegeError": (
        "the user may not use the tables",
        "let the server's user own them: it is to be the one who made them",
    ),
    "LockNotAvailableError": ("others write all the time", "look which session holds the lock: pg_locks"),
    "DiskFullError": ("its disk is full", "free some space on it"),
}


@asynccontextmanager
async def reached(url: str) -> AsyncIterator[Records]:
    """The records of a URL, whatever schema they have.

    Raises:
        InvalidUsage: it is none, or what it takes is not installed.
        NotReady, DBAPIError: it cannot be reached, or refuses something; `cause_of` says it in words.
    """
    from ps_service.storage.postgres_records import PostgresRecords, checked_url

    place = checked_url(url)
    if place.host and "@" in place.host:  # it would be a part of the password
        raise InvalidUsage("database URL: there are two @ in it; one in a password is written %40")
    if place.host and "," not in place.host:
        # here, for a thread that asyncio lets resolve a name is waited for at the end of the process
        _resolve(place.host, place.port or PORT)
    records = PostgresRecords(url)
    try:
        yield records
    finally:
        await records.close()


def cause_of(met: BaseException) -> str:
    """In words of our own: those of the driver may hold what a row does, or an address with a password."""
    kind = _kind(met)
    return _WORDS[kind][0] if kind in _WORDS else f"it fails with {kind}"


def remedy_for(met: BaseException) -> str:
    kind = _kind(met)
    return _WORDS[kind][1] if kind in _WORDS else "the log of the database says more"


def _kind(met: BaseException) -> str:
    """Of all errors that led to this one: the class of the first that there are words for, or of the last."""
    kinds: list[str] = []
    seen: BaseException | None = met
    while seen is not None and len(kinds) < 10:
        known = (each.__name__ for each in type(seen).__mro__ if each.__name__ in _WORDS)
        kinds.append(next(known, type(seen).__name__))
        seen = getattr(seen, "orig", None) or seen.__cause__
    return next((kind for kind in kinds if kind in _WORDS), kinds[-1])


def _resolve(host: str, port: int) -> None:
    from protocol.errors import NotReady

    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotReady("the database's host has no address") from error
