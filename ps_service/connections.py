# SPDX-License-Identifier: Apache-2.0
"""Connections, around a request: how long its head may be and take, who may speak for another, and how long
an answer waits to be read.

The law of this file: what is held of a request that no route has seen is bounded, in bytes and in time, and
so is what is held of an answer that nobody reads.
"""

import asyncio
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import ClassVar, Literal, TypedDict

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from protocol.errors import HeadersTooLarge
from ps_service.inflow import EXTENSION, Inflow
from ps_service.routes.problems import answer
from ps_service.settings import Settings

KEEP_ALIVE_S = 5
"""How long a connection of anybody stays open on which nothing is asked. Proxies are trusted with longer, for
each holds memory, and a flood of them would hold all of it."""
LINGER_S = 1.0
AROUND_A_HEADER = len(b": \r\n")
MOST_AHEAD = 16
"""Requests that a connection may send before the one that is being answered is; uvicorn keeps any number."""


class ConnectionOptions(TypedDict):
    """What `uvicorn.Config` is told of connections."""

    http: type[asyncio.Protocol]
    ws: Literal["none"]
    proxy_headers: bool
    forwarded_allow_ips: str
    timeout_keep_alive: int


def connection_options(settings: Settings) -> ConnectionOptions:
    """How uvicorn treats connections. What it would trust by itself, and by its variables, does not count."""
    return {
        "http": bounded_protocol(settings),
        "ws": "none",  # there is nothing to speak of over one, and it would be out of these bounds
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }


def bounded_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """uvicorn's protocol over httptools, which bounds neither by itself, with these bounds."""
    max_bytes = settings.max_header_bytes
    proxies = tuple(ip_network(each) for each in settings.trusted_proxies.split(",") if each)

    class Bounded(_BoundedProtocol):
        trusted_proxies = proxies
        proxy_keep_alive_s = settings.proxy_keep_alive_s
        max_header_bytes = max_bytes
        header_timeout_s = settings.header_timeout_s
        read_timeout_s = settings.body_timeout_s
        read_bytes = settings.min_body_bytes_per_s * settings.body_timeout_s
        refusal = _on_the_wire(
            HeadersTooLarge(f"the request line and headers are longer than {max_bytes} bytes")
        )

    return Bounded


class _BoundedProtocol(HttpToolsProtocol):
    """A connection whose requests have heads of a bounded length, which arrive in bounded time.

    httptools tells of a header once it is whole. So what it told of is counted exactly, trailers too, and
    what it keeps to itself by the pieces of the stream in which it told of nothing.

    The time runs from the first byte (or the beginning of the connection) to the end of the head. It runs
    too for a body that goes on after its answer, which nobody reads.

    What the peer has yet to read is looked at while it holds an answer up, or the end of the connection: of
    that, too, a least pace is expected.
    """

    trusted_proxies: ClassVar[tuple[IPv4Network | IPv6Network, ...]]
    proxy_keep_alive_s: ClassVar[int]
    max_header_bytes: ClassVar[int]
    header_timeout_s: ClassVar[float]
    read_timeout_s: ClassVar[float]
    read_bytes: ClassVar[float]
    refusal: ClassVar[bytes]

    _head_bytes = 0
    _untold_bytes = 0
    _told = False
    _in_head = False
    _whole = True
    _refused = False
    _due: asyncio.TimerHandle | None = None
    _inflow: Inflow | None = None
    """Where the body of the cycle goes that takes it in batches."""
    _unread_bytes = 0
    _look_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None and self._is_proxy(self.client[0]):
            self.timeout_keep_alive = self.proxy_keep_alive_s
        self._expect_a_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        if self._inflow is not None:
            self._inflow.break_off()
        self._stop_looking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        self._stop_looking()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._look_later()  # a transport that is closed waits until all is read

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._told = False
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        self._untold_bytes = 0 if self._told else self._untold_bytes + len(data)
        if self._untold_bytes > self.max_header_bytes:
            self._refuse()
        elif self._in_head or self.cycle is None or self.cycle.response_complete:
            self._expect_a_head()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MOST_AHEAD:
            raise HeadersTooLarge  # as below
        super().on_message_begin()
        self._head_bytes, self._in_head, self._whole = 0, True, False
        self._inflow = None
        self.scope["extensions"] = {EXTENSION: self._flow_in}  # type: ignore[dict-item]  # of our own

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + AROUND_A_HEADER)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._told, self._in_head = True, False
        self._expect_nothing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._told = True
        if self._inflow is None or self.cycle.response_complete:
            super().on_body(body)
        else:
            self._inflow.put(body)

    def on_message_complete(self) -> None:
        self._told = self._whole = True
        super().on_message_complete()
        if self._inflow is not None:
            self._inflow.end()

    def _flow_in(self, scope: Scope) -> Inflow | None:
        """What takes the rest of a body in batches; None: it is not the one that is arriving."""
        cycle = self.cycle
        if cycle.scope is not scope or cycle.disconnected:
            return None
        inflow = self._inflow = Inflow(self.flow.pause_reading, self.flow.resume_reading)
        if cycle.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        if cycle.body:
            inflow.put(bytes(cycle.body))
            cycle.body = bytearray()
        if not cycle.more_body:
            inflow.end()
        self.flow.resume_reading()
        return inflow

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._look_later()
        elif not self._whole:
            self._expect_a_head()

    def send_400_response(self, msg: str) -> None:
        if len(self.pipeline) >= MOST_AHEAD:  # whoever is to be answered first may have to wait
            self.pipeline.clear()
            self._refuse()
        elif self._head_bytes > self.max_header_bytes:
            self._refuse()
        else:
            super().send_400_response(msg)
            self._look_later()

    def _is_proxy(self, host: str) -> bool:
        if not self.trusted_proxies:
            return False
        address = ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.trusted_proxies)

    def _count(self, size_bytes: int) -> None:
        self._told = True
        self._head_bytes += size_bytes
        if self._head_bytes > self.max_header_bytes:
            raise HeadersTooLarge  # ends the parsing: uvicorn sends its answer to a request that is none

    def _refuse(self) -> None:
        """Say it, unless another answer is under way, and close once the sender may have heard it."""
        self._refused = True
        self._expect_nothing()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            self._look_later()
            return
        self.transport.write(self.refusal)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # closed at once, with more on its way in, the connection would be reset under the answer
        self._due = self.loop.call_later(LINGER_S, self.timeout_keep_alive_handler)

    def _expect_a_head(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(self.header_timeout_s, self.timeout_keep_alive_handler)

    def _expect_nothing(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _look_later(self) -> None:
        if self._look_due is None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._look_due = self.loop.call_later(self.read_timeout_s, self._look_at_what_is_unread)

    def _stop_looking(self) -> None:
        if self._look_due is not None:
            self._look_due.cancel()
            self._look_due = None

    def _look_at_what_is_unread(self) -> None:
        self._look_due = None
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes and self._unread_bytes - left_bytes < max(1.0, self.read_bytes):
            self.transport.abort()
        elif left_bytes:
            self._look_later()


def _on_the_wire(error: HeadersTooLarge) -> bytes:
    response = answer(error)
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body)
