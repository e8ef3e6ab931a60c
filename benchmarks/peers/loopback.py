# SPDX-License-Identifier: Apache-2.0
"""A loopback interface of our own, so that its counter holds nobody else's bytes."""

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

# Source: sched.h (CLONE_NEWNET), sockios.h (SIOCSIFFLAGS), if.h (IFF_UP), struct ifreq of netdevice(7)
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFREQ = "16sh22x"
CONNECT_S = 1.0


def enter_private_network() -> bool:
    """Move this process, and those it will start, to a network that holds `lo` alone; False if not allowed.

    Call it before there are threads: they would stay behind.
    """
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        return False
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack(IFREQ, b"lo", IFF_UP))
    return True


def parse_received(text: str) -> int:
    """Bytes that `lo` has received, from `/proc/net/dev`; it has sent as many. Source: proc(5)."""
    for line in text.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0


def received_bytes() -> int:
    """Bytes that this process's `lo` has received so far."""
    return parse_received(Path("/proc/self/net/dev").read_text(encoding="ascii"))


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on this port of loopback."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
