# SPDX-License-Identifier: Apache-2.0
"""Sends one request by httpx."""

import httpx

_ASKED_OF_A_SOCKET = ("family", "getpeername", "getsockname")


async def send(http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send a request and give its answer, unread.

    Raises:
        httpx.TransportError: there is none.
    """
    try:
        return await http.send(request, stream=True)
    except AttributeError as error:
        # closed as it was made, a connection has no socket under uvloop; httpx asks it for its peer
        if error.obj is not None or error.name not in _ASKED_OF_A_SOCKET:
            raise
        raise httpx.ConnectError("the connection was closed as it was made") from error
