# SPDX-License-Identifier: Apache-2.0
"""The socket that the server listens on: for thousands of connections on which nothing passes for long."""

import resource
import socket
from contextlib import suppress

from protocol.errors import InvalidUsage
from ps_service.settings import Settings

MANY = 10_240
"""Open files, where the system names a limit that it does not grant."""
BACKLOG = 4096
"""Connections that may come in one moment: all workers do after a restart."""
_KEEPALIVE = {"TCP_KEEPIDLE": 45, "TCP_KEEPALIVE": 45, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 3}
"""By their names on Linux and on macOS. A peer that is gone without a word is noticed after 90 s, and a NAT
sees something at least every 45 s."""


def listen(settings: Settings) -> socket.socket:
    """Raises: InvalidUsage: the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _keep_alive(listener)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise InvalidUsage(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener


def _keep_alive(listener: socket.socket) -> None:
    """Let the system ask silent peers whether they are there. Linux hands this on to what is accepted."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        option: int | None = getattr(socket, name, None)  # not every platform has it
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def allow_many_connections() -> None:
    """Let this process have as many files open as it may, instead of as many as is usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (most, MANY):  # the second is macOS's
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            return
