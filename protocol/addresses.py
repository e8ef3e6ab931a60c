# SPDX-License-Identifier: Apache-2.0
"""Which addresses are this machine's own, and where plain HTTP may go."""

import ipaddress
from urllib.parse import urlsplit

from protocol.errors import InvalidUsage


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its address, or by the one name that always is: `localhost`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def speaks_tls(server_url: str) -> bool:
    """Whether a server at this address is spoken to over TLS; a scheme may be written in any case."""
    return urlsplit(server_url).scheme == "https"


def refuse_plain_http(server_url: str, insecure: bool) -> None:
    """Let credentials leave this machine over TLS alone, unless the user says otherwise.

    Raises:
        InvalidUsage: the address is plain HTTP beyond loopback, and not called insecure.
    """
    parts = urlsplit(server_url)
    if parts.scheme == "http" and not insecure and not is_loopback(parts.hostname or ""):
        raise InvalidUsage(
            f"{server_url} is plain HTTP: anyone on the way could read credentials and change models. "
            "Use https://, or say --insecure (FED_SOPHIA_INSECURE=1) where the network itself is trusted"
        )
