# SPDX-License-Identifier: Apache-2.0
"""Who this worker is: the secret it made for itself, and the id one server gave it.

The secret is on disk before it is first sent, so an enrolment whose answer was lost is repeated with
the same secret and uses up nothing. A state directory belongs to one server.
"""

import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from protocol.errors import FedSophiaError, InvalidUsage, LocalStateCorrupt
from protocol.messages import Said, parse
from worker.durable import Fsync, make_private_directory, replace_file, sync_directory, writing

_FILE_NAME = "identity.json"


class Identity(Said):
    """What stands in `identity.json`, readable by its owner alone."""

    schema_version: Literal[1] = 1
    server_url: str
    secret: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43,128}$", repr=False)]
    worker_id: str | None = None
    """None until the server has answered the enrolment."""


def identity_in(state_dir: Path, server_url: str, fsync: Fsync = os.fsync) -> Identity:
    """Give the identity kept in `state_dir`, making one at the first use.

    Raises:
        InvalidUsage: the directory belongs to another server.
        LocalStateCorrupt: the file cannot be read.
        StateNotWritable: a new one cannot be written, or the old one not be made to last.
    """
    server_url = server_url.rstrip("/")
    try:
        identity = parse(Identity, (state_dir / _FILE_NAME).read_bytes())
    except FileNotFoundError:
        identity = Identity(server_url=server_url, secret=secrets.token_urlsafe(32))
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
    with writing(state_dir):
        sync_directory(state_dir, fsync)  # a process that was killed may have left names it did not sync
    return identity


def save_identity(state_dir: Path, identity: Identity, fsync: Fsync = os.fsync) -> None:
    """Put the identity on disk in one step, mode 0600.

    Raises:
        StateNotWritable: the disk will not have it.
    """
    with writing(state_dir):
        make_private_directory(state_dir, fsync)
        replace_file(state_dir / _FILE_NAME, [identity.model_dump_json(indent=2).encode()], fsync)
