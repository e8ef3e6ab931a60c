# SPDX-License-Identifier: Apache-2.0
"""Who this worker is: the key it made for itself, and the id one server gave it.

The key is on disk before it is first used, so an enrolment whose answer was lost is repeated with the same
key and uses up nothing. A new key is on disk, beside the old one, before the server hears of it: whichever of
the two the server has, this worker holds it. A state directory belongs to one server.
"""

import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from protocol.errors import FedSophiaError, InvalidMessage, InvalidUsage, LocalStateCorrupt
from protocol.messages import Said, parse
from worker.durable import Fsync, make_private_directory, replace_file, sync_directory, writing

_FILE_NAME = "identity.json"

PrivateKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
"""Ed25519: 32 random bytes, base64url."""


class Identity(Said):
    """What stands in `identity.json`, readable by its owner alone."""

    schema_version: Literal[2] = 2
    server_url: str
    private_key: PrivateKey = Field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    next_private_key: PrivateKey | None = Field(default=None, repr=False)
    """Takes the other's place as soon as the server has it."""
    server_id: str | None = None
    """Which server this worker signs for, as its join token said."""
    worker_id: str | None = None
    """None until the server has answered the enrolment."""


class _BeforeKeys(Said):
    """What earlier versions wrote; its secret is of no use any more."""

    schema_version: Literal[1]
    server_url: str
    secret: str
    worker_id: str | None = None


def identity_in(state_dir: Path, server_url: str, fsync: Fsync = os.fsync) -> Identity:
    """Give the identity kept in `state_dir`, making one at the first use.

    Raises:
        InvalidUsage: the directory belongs to another server.
        LocalStateCorrupt: the file cannot be read.
        StateNotWritable: a new one cannot be written, or the old one not be made to last.
    """
    server_url = server_url.rstrip("/")
    try:
        identity = _read((state_dir / _FILE_NAME).read_bytes())
    except FileNotFoundError:
        identity = Identity(server_url=server_url)
        save_identity(state_dir, identity, fsync)
        return identity
    except OSError as error:
        raise LocalStateCorrupt(f"the worker's identity: {error.strerror}") from None
    except FedSophiaError as error:
        raise LocalStateCorrupt(f"the worker's identity: {error.detail}") from None
    if identity.server_url != server_url:
        raise InvalidUsage(
            f"the state directory {state_dir} belongs to {identity.server_url}, not to {server_url}: "
            "use another one for another server"
        )
    if isinstance(identity, _BeforeKeys):  # it enrols anew
        identity = Identity(server_url=server_url)
        save_identity(state_dir, identity, fsync)
        return identity
    with writing(state_dir):
        sync_directory(state_dir, fsync)  # a process that was killed may have left names it did not sync
    return identity


def _read(body: bytes) -> Identity | _BeforeKeys:
    """Raises: InvalidMessage: it is none."""
    try:
        return parse(Identity, body)
    except InvalidMessage:
        try:
            return parse(_BeforeKeys, body)
        except InvalidMessage:
            pass
        raise


def save_identity(state_dir: Path, identity: Identity, fsync: Fsync = os.fsync) -> None:
    """Put the identity on disk in one step, mode 0600.

    Raises:
        StateNotWritable: the disk will not have it.
    """
    with writing(state_dir):
        make_private_directory(state_dir, fsync)
        replace_file(state_dir / _FILE_NAME, [identity.model_dump_json(indent=2).encode()], fsync)
