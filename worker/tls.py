# SPDX-License-Identifier: Apache-2.0
"""TLS on the asking side: whom a connection believes, what it shows, and what its failure means."""

import functools
import ssl
from pathlib import Path

from protocol.addresses import speaks_tls
from protocol.errors import FedSophiaError, InvalidUsage, ServerNotTrusted
from worker.options import Trust

_ABOUT_OUR_CERTIFICATE = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "TLSV1_ALERT_UNKNOWN_CA",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
}
"""By OpenSSL's names, what a server says that does not want the certificate we showed, or showed not."""


def tls_of(trust: Trust) -> ssl.SSLContext:
    """Connections that believe the CA of `trust` alone, or, if it names none, those of the system.

    Raises:
        InvalidUsage: a file cannot be used.
    """
    return believing(None if trust.ca is None else text_of(trust.ca), trust)


def believing(ca_pem: str | None, trust: Trust) -> ssl.SSLContext:
    """Connections that believe this CA alone, or those of the system; names are checked in any case.

    Raises:
        InvalidUsage: it is no certificate, or the client's certificate cannot be used.
    """
    return _context(ca_pem, trust.client_cert, trust.client_key)


def believing_also(ca_pem: str | None) -> ssl.SSLContext:
    """Connections with others than the server that believe this CA beside those of the system.

    Raises:
        InvalidUsage: it is no certificate.
    """
    return _context(ca_pem, None, None, and_system=True)


def believing_anyone(trust: Trust) -> ssl.SSLContext:
    """Connections that nothing secret may be sent on: they might be with anyone."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _show(context, trust.client_cert, trust.client_key)
    return context


@functools.lru_cache(maxsize=16)
def _context(
    ca_pem: str | None, client_cert: Path | None, client_key: Path | None, *, and_system: bool = False
) -> ssl.SSLContext:
    # one for all: building it takes milliseconds and memory that a swarm would pay for every worker
    try:
        if ca_pem == "":  # of which OpenSSL is not told at all: it would believe the CAs of the system
            raise ValueError("empty")
        context = ssl.create_default_context(cadata=ca_pem)
        if and_system and ca_pem is not None:
            context.load_default_certs()
    except (ssl.SSLError, ValueError):
        raise InvalidUsage("the CA to trust: expected certificates as PEM") from None
    if ca_pem is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whatever was named is believed, root or not
    _show(context, client_cert, client_key)
    return context


def _show(context: ssl.SSLContext, client_cert: Path | None, client_key: Path | None) -> None:
    if client_cert is None:
        if client_key is not None:
            raise InvalidUsage("--client-key without --client-cert: a server that asks wants both")
        return
    try:
        context.load_cert_chain(client_cert, client_key, password="")  # never ask at the terminal
    except ssl.SSLError:
        raise InvalidUsage(
            f"--client-cert {client_cert}: expected a certificate and its own key as PEM, not encrypted"
        ) from None
    except OSError as error:
        raise InvalidUsage(f"--client-cert {client_cert}, --client-key: {error.strerror}") from None


def text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidUsage(f"--ca {file}: expected certificates as PEM ({type(error).__name__})") from None


def tls_problem(error: BaseException, server_url: str) -> FedSophiaError | None:
    """What a failed connection means, if it is TLS that failed and trying again cannot help."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # a library may have chained them in a circle
        seen.add(id(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ServerNotTrusted(
                f"{server_url}: {cause.verify_message.rstrip('.')}. {_advice(cause.verify_code)}"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _ABOUT_OUR_CERTIFICATE:
            return InvalidUsage(
                f"{server_url} wants a client certificate that it accepts: give "
                "--client-cert and --client-key"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def reason_of_silence(error: Exception, server_url: str) -> str:
    """What else may be behind a connection that was ended without a word, to be said after it; or nothing."""
    # our own server ends connections like this: asyncio and uvloop drop OpenSSL's last alert
    silent = type(error).__name__ in {"ReadError", "RemoteProtocolError"}
    if silent and speaks_tls(server_url):
        return " (one that wants another client certificate ends connections like this too: --client-cert)"
    return ""


def _advice(verify_code: int) -> str:
    match verify_code:
        case 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return "Its operator has to renew it; if it is valid, this machine's clock is wrong"
        case 62 | 64:  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return "Use a name that its certificate is for"
    return "Expected a certificate of a CA that is trusted here: give --ca, or a fresh join token"
