# SPDX-License-Identifier: Apache-2.0
"""The operator key that is given to servers from outside: a file, as a Secret of Kubernetes is mounted.

The law of this file: of the keys that were given so, at most one is good. A new one takes the place of the
one before it; one that was revoked, by an operator or by its successor, stays revoked, whoever starts with it
again (a server that has not been told of the new one yet, or a file that was put back). None ends a start by
that: workers need the server, not the key.
"""

import logging
import re
import secrets
import stat
from pathlib import Path

from protocol.errors import InvalidUsage
from protocol.operator_keys import OperatorKeySummary
from ps_service.audit import Audit
from ps_service.auth import OPERATOR_KEY, hash_secret
from ps_service.clock import Clock
from ps_service.operator_keys import EVERYTHING
from ps_service.storage import Stores, key_records

log = logging.getLogger("fed_sophia.server")

VARIABLE = "FED_SOPHIA_SERVER_OPERATOR_KEY_FILE"
PREFIX = "g-"
"""Of the ids of these keys, by which they are told from those that were made here."""
_LABEL = "given at a start"
_LONGEST = 1024
_MAKES_ONE = f"`echo {OPERATOR_KEY}$(openssl rand -hex 32)`"
_KEY = re.compile(OPERATOR_KEY + r"[A-Za-z0-9_-]{43,200}")
_PIECE, _FEWEST_CHARACTERS = 8, 10


def given_key(file: Path) -> str:
    """The operator key that a file holds.

    Raises:
        InvalidUsage: there is no such file, every user of the machine can change it, or it holds something
            else, or a key that somebody has thought up. The sentence has nothing of what is in it.
    """
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InvalidUsage(f"{VARIABLE} {file}: is no file")
        if mode & stat.S_IWOTH:  # whoever writes a key there may do everything from the next start on
            raise InvalidUsage(
                f"{VARIABLE} {file}: every user of this machine can change it; chmod o= {file}"
            )
        with file.open("rb") as opened:
            content = opened.read(_LONGEST + 1)
    except OSError as error:
        raise InvalidUsage(f"{VARIABLE} {file}: {error.strerror or error}") from None
    key = content.decode("ascii", "replace").strip()
    if len(content) > _LONGEST or not _KEY.fullmatch(key):
        raise InvalidUsage(
            f"{VARIABLE} {file}: expected one line, {OPERATOR_KEY} and 43 to 200 letters, digits, - or _ "
            f"after it, as {_MAKES_ONE} makes"
        )
    if not _by_chance(key.removeprefix(OPERATOR_KEY)):
        raise InvalidUsage(
            f"{VARIABLE} {file}: this key was not made by chance, so it can be guessed; "
            f"{_MAKES_ONE} makes one"
        )
    if everybody_reads(file):
        log.warning("%s %s: every user of this machine can read it; chmod o= %s", VARIABLE, file, file)
    return key


def everybody_reads(file: Path) -> bool:
    """Whether all users of the machine can; in a container, as podman mounts Secrets, there are no others."""
    return bool(file.stat().st_mode & stat.S_IROTH)


def _by_chance(text: str) -> bool:
    """Whether chance may have made this; one in a million by `openssl rand -hex 32` is refused."""
    pieces = [text[start : start + _PIECE] for start in range(len(text) - _PIECE + 1)]
    return len(set(text)) >= _FEWEST_CHARACTERS and len(set(pieces)) == len(pieces)


async def admit(key: str, stores: Stores, clock: Clock, audit: Audit) -> None:
    """Let this key do everything, unless it was revoked; those that were given before it may do nothing more.

    One that the servers know already stays as it is, and so do all others. Several servers may be started
    with it at a time.
    """
    async with stores.records.read() as connection:
        known = await key_records.key_of_secret(connection, hash_secret(key))
    if known is None:
        known = await _add(key, stores, clock, audit)
    if known.revoked_ms is not None or (known.expires_ms is not None and known.expires_ms <= clock.now_ms()):
        log.warning(
            "the operator key of %s, %s, was revoked or has expired, and stays of no use: put another there",
            VARIABLE,
            known.key_id,
        )


async def _add(key: str, stores: Stores, clock: Clock, audit: Audit) -> OperatorKeySummary:
    """Let it take the place of the one before; give it as it is known then."""
    now_ms, replaced = clock.now_ms(), list[str]()
    new = OperatorKeySummary(
        key_id=f"{PREFIX}{secrets.token_hex(6)}", label=_LABEL, scopes=EVERYTHING, created_ms=now_ms
    )
    async with stores.records.write() as connection:
        known = await key_records.key_of_secret(connection, hash_secret(key))
        if known is not None:
            return known  # another server has started at the same time
        for each in await key_records.list_operator_keys(connection):
            if each.key_id.startswith(PREFIX) and each.revoked_ms is None:
                await key_records.revoke_operator_key(connection, each.key_id, now_ms)
                replaced.append(each.key_id)
        await key_records.add_operator_key(connection, hash_secret(key), new)
    audit.note("server", "admit", {"key_id": new.key_id})
    log.info("the operator key of %s is admitted as %s", VARIABLE, new.key_id)
    for key_id in replaced:
        audit.note("server", "revoke", {"key_id": key_id, "replaced_by": new.key_id})
        log.info("the operator key %s, which was given before it, is revoked", key_id)
    return new
