# SPDX-License-Identifier: Apache-2.0
"""By which CA this worker knows its server: given, pinned, named by the join token, or the system's.

At first contact a join token's hash is all that is known of the server. Its CA is asked for over a
connection that might be with anyone, so nothing secret is sent there; if the hash is right, the CA is
kept in the state directory, and from then on believed alone.
"""

import os
import ssl
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.addresses import speaks_tls
from protocol.ca import ca_hash_of
from protocol.errors import InvalidUsage, LocalStateCorrupt, NotFound, ServerNotTrusted
from protocol.join_token import JoinToken
from worker.client import ServerClient
from worker.durable import Fsync, replace_file, writing
from worker.events import Report
from worker.options import WorkerOptions
from worker.patience import Pauses, persistently
from worker.sending import Transport
from worker.tls import believing, believing_also, believing_anyone, text_of, tls_of

_FILE_NAME = "server-ca.pem"


async def tls_for(
    options: WorkerOptions,
    report: Report,
    pauses: Pauses,
    transport: Transport | None = None,
    fsync: Fsync = os.fsync,
) -> ssl.SSLContext | None:
    """How connections to the server are made, from now on; None where they are plain HTTP.

    A join token that names another CA than the one that is pinned pins anew: the operator has sent it.

    Raises:
        ServerNotTrusted: its CA is not the one that the join token names.
        InvalidUsage: a file that was named cannot be used.
        LocalStateCorrupt: the pinned CA cannot be read.
        StateNotWritable: the CA cannot be kept.
    """
    if not speaks_tls(options.server_url):
        return None
    if options.trust.ca is not None:
        return tls_of(options.trust)
    expected, pinned = _hash_in(options.join_token), _pinned(options.state_dir)
    if expected is not None and (pinned is None or ca_hash_of(pinned) != expected):
        asking = partial(_advertised, options, expected, transport)
        pinned = await persistently(asking, options.name, report, pauses)
        with writing(options.state_dir):
            replace_file(options.state_dir / _FILE_NAME, [pinned.public_bytes(Encoding.PEM)], fsync)
    return believing(_pem(pinned), options.trust)


def store_tls_for(options: WorkerOptions) -> ssl.SSLContext:
    """How connections to the server's object store are made, once `tls_for` has settled whom to believe.

    Raises: as `tls_for`.
    """
    if options.trust.ca is not None:
        return believing_also(text_of(options.trust.ca))
    pinned = _pinned(options.state_dir) if speaks_tls(options.server_url) else None
    return believing_also(_pem(pinned))


async def _advertised(options: WorkerOptions, expected: str, transport: Transport | None) -> x509.Certificate:
    """Ask for the CA without a credential, and believe the answer for its hash alone."""
    anyone = believing_anyone(options.trust)
    async with ServerClient(options.server_url, transport, tls=anyone) as client:
        try:
            certificate = x509.load_pem_x509_certificate(await client.server_ca())
            found = ca_hash_of(certificate)
        except (NotFound, ValueError, UnsupportedAlgorithm):
            found = "none"
    if found != expected:
        raise ServerNotTrusted(
            f"{options.server_url}: expected the CA {expected[:16]}…, which the join token names, found "
            f"{found[:16]}. The token is of another server, or somebody is in between; it was not sent"
        )
    return certificate


def _hash_in(join_token: str | None) -> str | None:
    if join_token is None:
        return None
    try:
        return JoinToken.parse(join_token).ca_hash
    except InvalidUsage:
        return None  # what it is worth is said where it is used


def _pem(certificate: x509.Certificate | None) -> str | None:
    return None if certificate is None else certificate.public_bytes(Encoding.PEM).decode()


def _pinned(state_dir: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate((state_dir / _FILE_NAME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LocalStateCorrupt(
            f"the server's CA in {state_dir / _FILE_NAME}: {type(error).__name__}"
        ) from None
