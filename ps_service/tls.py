# SPDX-License-Identifier: Apache-2.0
"""TLS on the server's side: which files, whether they fit together, and by which CA workers know us.

Nothing here keeps a private key: the files are checked, and named to the server that uses them.
"""

import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from protocol.addresses import is_loopback
from protocol.ca import ca_hash_of
from protocol.errors import InvalidUsage
from ps_service.settings import Settings

log = logging.getLogger("fed_sophia.server")

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, those with forward secrecy and authenticated encryption; TLS 1.3 has no others."""


class TlsArguments(TypedDict, total=False):
    """What `uvicorn.Config` is told."""

    ssl_certfile: str
    ssl_keyfile: str
    ssl_version: int
    ssl_ciphers: str
    ssl_ca_certs: str
    ssl_cert_reqs: int


@dataclass(frozen=True)
class AdvertisedCa:
    """The certificate that a worker is to trust this server by."""

    pem: bytes
    ca_hash: str
    """What join tokens say of it."""


def tls_arguments(settings: Settings) -> TlsArguments:
    """What makes the server speak TLS 1.2 or later; nothing where no certificate is set.

    Raises:
        InvalidUsage: a file cannot be used, one is missing, or the server would listen beyond this
            machine in the clear without having been told to.
    """
    if settings.tls_cert is None and settings.tls_key is None:
        if settings.tls_client_ca is not None:
            raise InvalidUsage("--tls-client-ca needs --tls-cert and --tls-key: without TLS nobody shows it")
        _refuse_exposure(settings)
        return {}
    if settings.tls_cert is None or settings.tls_key is None:
        there, missing = ("--tls-key", "--tls-cert") if settings.tls_key else ("--tls-cert", "--tls-key")
        raise InvalidUsage(f"{there} without {missing}: TLS needs both")
    _check_pair(settings.tls_cert, settings.tls_key)
    arguments = TlsArguments(
        ssl_certfile=str(settings.tls_cert),
        ssl_keyfile=str(settings.tls_key),
        ssl_version=ssl.PROTOCOL_TLS_SERVER,  # Python lets it begin at TLS 1.2
        ssl_ciphers=_CIPHERS,
    )
    if settings.tls_client_ca is not None:
        certificates(settings.tls_client_ca, "--tls-client-ca")
        arguments["ssl_ca_certs"] = str(settings.tls_client_ca)
        arguments["ssl_cert_reqs"] = ssl.CERT_REQUIRED
    return arguments


def advertised_ca(settings: Settings) -> AdvertisedCa | None:
    """The CA that workers pin at first contact; None leaves them to the CAs of their system.

    It is what `tls_ca` names, or else the last certificate of the server's own chain if that one vouches
    for itself. A chain that ends below its root is a public CA's, whose intermediates come and go: a
    worker that had pinned one of them would be lost at some renewal.

    Raises:
        InvalidUsage: the file cannot be used.
    """
    if settings.tls_ca is not None:
        last = certificates(settings.tls_ca, "--tls-ca")[-1]
    elif settings.tls_cert is not None:
        last = certificates(settings.tls_cert, "--tls-cert")[-1]
        if last.issuer != last.subject:
            return None
    else:
        return None
    return AdvertisedCa(last.public_bytes(Encoding.PEM), ca_hash_of(last))


def _refuse_exposure(settings: Settings) -> None:
    if not settings.insecure and not is_loopback(settings.host):
        raise InvalidUsage(
            f"{settings.host} can be reached from other machines, and this would be plain HTTP: give "
            "--tls-cert and --tls-key, or say --insecure (FED_SOPHIA_INSECURE=1) "
            "behind an ingress that speaks TLS"
        )


def _check_pair(cert_file: Path, key_file: Path) -> None:
    certificate = certificates(cert_file, "--tls-cert")[0]
    try:
        key = load_pem_private_key(_read(key_file, "--tls-key"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidUsage(f"--tls-key {key_file}: expected a private key as PEM, not encrypted") from None
    if key.public_key() != certificate.public_key():
        raise InvalidUsage(
            f"--tls-key {key_file} is not the key of the first certificate in {cert_file}: a chain begins "
            "with the server's own certificate"
        )
    now, until = datetime.now(UTC), certificate.not_valid_after_utc
    if now > until:
        log.warning("the certificate %s has expired at %s: workers will refuse it", cert_file, until)
    elif now < certificate.not_valid_before_utc:
        log.warning("the certificate %s is valid from %s", cert_file, certificate.not_valid_before_utc)


def certificates(path: Path, option: str) -> list[x509.Certificate]:
    """At least one."""
    try:
        return x509.load_pem_x509_certificates(_read(path, option))
    except ValueError:
        raise InvalidUsage(f"{option} {path}: expected certificates as PEM") from None


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidUsage(f"{option} {path}: {error.strerror or error}") from None
