# SPDX-License-Identifier: Apache-2.0
"""Bounds the head of a request before anything but the parser of HTTP has seen it.

That parser keeps a head until it is whole, however long that is, and what follows a body likewise: anybody
could fill the memory of the server with a request that never begins.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protocol.errors import MessageTooLarge
from ps_service.routes.problems import answer

MAX_HEAD_BYTES = 64 * 1024


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol; ends a connection that brings more than the limit between a body and the next."""

    _head_bytes = 0
    """Received since the last whole head or piece of a body."""
    _in_head = False

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes, self._in_head = 0, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()

    def _refuse(self) -> None:
        error = MessageTooLarge(f"the head of the request is longer than {MAX_HEAD_BYTES} bytes")
        self.logger.warning("%s", error.detail)
        if self._in_head and (self.cycle is None or self.cycle.response_complete):
            refusal = answer(error)
            lines = [b"HTTP/1.1 %d Content Too Large" % refusal.status_code]
            lines += [name + b": " + value for name, value in refusal.raw_headers]
            lines += [b"connection: close", b"", bytes(refusal.body)]
            self.transport.write(b"\r\n".join(lines))
        self.transport.close()
