# SPDX-License-Identifier: Apache-2.0
"""Whom a worker believes to be its server, over real TLS, and what a stranger gets to hear."""

import asyncio
import socket
import ssl
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from protocol.errors import InvalidUsage, LocalStateCorrupt, ServerNotTrusted, ServerUnreachable
from protocol.join_token import JoinToken
from tests.certificates import Authority
from tests.over_tls import over_tls
from tests.worker.small_server import JOIN_TOKEN, SmallServer, a_server
from tests.worker.workplace import StubTrainer
from worker.agent import run_worker, serve
from worker.client import ServerClient
from worker.options import SwarmOptions, Trust, WorkerOptions
from worker.patience import REAL_PAUSES
from worker.swarm import run_swarm
from worker.tls import believing, tls_of, tls_problem

SECRET = JOIN_TOKEN.secret
NO_CHOICE = Trust()


@dataclass
class Listener:
    """Someone with a certificate, who advertises a CA and writes down all that it hears."""

    advertised: bytes | None
    honest: SmallServer = field(default_factory=a_server)
    heard: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, credential) of each request."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        request = httpx.Request(scope["method"], f"https://here{scope['path']}", headers=scope["headers"])
        self.heard.append((scope["path"], request.headers.get("Authorization")))
        answer = await self._answer(
            httpx.Request(request.method, request.url, headers=request.headers, content=body)
        )
        headers = [(name.lower(), value) for name, value in answer.headers.raw]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": await answer.aread()})

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/ca":
            return await self.honest.handle_async_request(request)
        if self.advertised is None:
            problem = {
                "type": "x",
                "title": "t",
                "status": 404,
                "detail": "d",
                "code": "not-found",
                "retryable": False,
            }
            return httpx.Response(404, json=problem, headers={"Content-Type": "application/problem+json"})
        return httpx.Response(200, content=self.advertised)

    def enrolled(self) -> bool:
        return bool(self.honest.enrolments)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "a-stranger-s")


def a_token(ca_hash: str | None) -> str:
    return str(JoinToken(SECRET, JOIN_TOKEN.server_id, ca_hash))


async def start_worker(
    url: str, state_dir: Path, join_token: str | None = None, trust: Trust = NO_CHOICE
) -> None:
    """One short life of a worker: it becomes known to the server, and ends."""
    options = WorkerOptions(url, join_token, "mine", state_dir, "digits", max_assignments=0, trust=trust)
    async with asyncio.timeout(20):
        await serve(options, "digits", StubTrainer(), lambda _event: None, REAL_PAUSES)


async def test_at_first_contact_the_ca_that_the_join_token_names_is_pinned(
    authority: Authority, tmp_path: Path
) -> None:
    server = Listener(authority.pem)
    async with over_tls(server, authority.issue()) as url:
        await start_worker(url, tmp_path / "state", a_token(authority.hash))
    assert server.enrolled()
    assert server.heard[0] == ("/v1/ca", None)
    pinned = tmp_path / "state" / "server-ca.pem"
    assert pinned.read_bytes() == authority.pem
    assert stat.S_IMODE(pinned.stat().st_mode) == 0o600


async def test_an_address_in_capitals_is_pinned_like_any_other(authority: Authority, tmp_path: Path) -> None:
    server = Listener(authority.pem)
    async with over_tls(server, authority.issue()) as url:
        await start_worker(url.replace("https:", "HTTPS:"), tmp_path / "state", a_token(authority.hash))
    assert server.enrolled()
    assert (tmp_path / "state" / "server-ca.pem").read_bytes() == authority.pem


async def test_a_stranger_at_first_contact_hears_no_join_token(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    in_between = Listener(stranger.pem)
    async with over_tls(in_between, stranger.issue()) as url:
        with pytest.raises(
            ServerNotTrusted, match=f"expected the CA {authority.hash[:16]}.*found {stranger.hash[:16]}"
        ):
            await start_worker(url, tmp_path / "state", a_token(authority.hash))
    assert in_between.heard == [("/v1/ca", None)]
    assert not (tmp_path / "state" / "server-ca.pem").exists()


async def test_a_stranger_who_hands_on_the_right_ca_hears_no_join_token_either(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    in_between = Listener(authority.pem)
    async with over_tls(in_between, stranger.issue()) as url:
        with pytest.raises(ServerNotTrusted):
            await start_worker(url, tmp_path / "state", a_token(authority.hash))
    assert in_between.heard == [("/v1/ca", None)]


@pytest.mark.parametrize("advertised", [None, b"no certificate"])
async def test_a_server_that_advertises_no_ca_is_not_one_that_the_token_names(
    authority: Authority, tmp_path: Path, advertised: bytes | None
) -> None:
    server = Listener(advertised)
    async with over_tls(server, authority.issue()) as url:
        with pytest.raises(ServerNotTrusted, match="found none"):
            await start_worker(url, tmp_path / "state", a_token(authority.hash))
    assert server.heard == [("/v1/ca", None)]


async def test_a_renewed_certificate_of_the_pinned_ca_is_believed_and_one_of_another_is_not(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    server, state_dir = Listener(authority.pem), tmp_path / "state"
    async with over_tls(server, authority.issue()) as url:
        await start_worker(url, state_dir, a_token(authority.hash))
    port = urlsplit(url).port or 0
    async with over_tls(server, authority.issue(), port=port):
        await start_worker(url, state_dir)
    assert [path for path, _ in server.heard].count("/v1/ca") == 1
    in_between = Listener(stranger.pem)
    async with over_tls(in_between, stranger.issue(), port=port):
        with pytest.raises(ServerNotTrusted, match="give --ca, or a fresh join token"):
            await start_worker(url, state_dir)
    assert in_between.heard == []


async def test_a_fresh_token_that_names_another_ca_pins_anew(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    state_dir = tmp_path / "state"
    async with over_tls(Listener(authority.pem), authority.issue()) as url:
        await start_worker(url, state_dir, a_token(authority.hash))
    async with over_tls(server := Listener(stranger.pem), stranger.issue(), port=urlsplit(url).port or 0):
        await start_worker(url, state_dir, a_token(stranger.hash))
    assert server.enrolled()
    assert (state_dir / "server-ca.pem").read_bytes() == stranger.pem


@pytest.mark.parametrize(
    ("name", "expired", "sentence"),
    [("127.0.0.1", True, "has expired.*renew"), ("other.example.org", False, "mismatch.*Use a name")],
)
async def test_a_certificate_that_has_expired_or_is_another_s_ends_the_worker(
    authority: Authority, tmp_path: Path, name: str, expired: bool, sentence: str
) -> None:
    server = Listener(authority.pem)
    async with over_tls(server, authority.issue(name, expired=expired)) as url:
        with pytest.raises(ServerNotTrusted, match=sentence):
            await start_worker(url, tmp_path / "state", a_token(authority.hash))
    assert server.heard == [("/v1/ca", None)]


async def test_a_ca_that_is_given_is_believed_alone(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    server = Listener(authority.pem)
    async with over_tls(server, authority.issue()) as url:
        with pytest.raises(ServerNotTrusted):
            await start_worker(url, tmp_path / "state", a_token(authority.hash), Trust(ca=stranger.file))
        assert server.heard == []
        await start_worker(url, tmp_path / "state", a_token(None), Trust(ca=authority.file))
    assert server.enrolled()
    assert "/v1/ca" not in [path for path, _ in server.heard]


async def test_without_a_ca_named_those_of_the_system_are_believed(
    authority: Authority, tmp_path: Path
) -> None:
    server = Listener(authority.pem)
    async with over_tls(server, authority.issue()) as url:
        with pytest.raises(ServerNotTrusted):
            await start_worker(url, tmp_path / "state", a_token(None))
    assert server.heard == []


async def test_a_server_that_wants_a_client_certificate_is_shown_one(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    shown, other = authority.issue("ward-7"), stranger.issue("ward-7")
    believed = authority.pem.decode()
    server = Listener(authority.pem)
    async with over_tls(server, authority.issue(), authority.file) as url:
        for trust in (Trust(), Trust(client_cert=other.chain, client_key=other.key)):
            async with ServerClient(url, tls=believing(believed, trust)) as client:
                with pytest.raises(ServerUnreachable, match="--client-cert"):
                    await client.server_ca()
        assert server.heard == []
        trust = Trust(client_cert=shown.chain, client_key=shown.key)
        await start_worker(url, tmp_path / "state", a_token(authority.hash), trust)
    assert server.enrolled()


async def test_a_server_that_says_that_it_wants_a_client_certificate_ends_the_worker(
    authority: Authority, tmp_path: Path
) -> None:
    """As a TLS-terminating proxy says it: by an alert, and in TLS 1.3 after our handshake."""
    issued = authority.issue()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    context.load_cert_chain(issued.chain, issued.key)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = asyncio.create_task(asyncio.to_thread(refuse_one, listener, context))
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(InvalidUsage, match="wants a client certificate that it accepts"):
            await start_worker(url, tmp_path / "state", a_token(None), Trust(ca=authority.file))
        await refusing


def refuse_one(listener: socket.socket, context: ssl.SSLContext) -> None:
    listener.settimeout(10)
    connection, _ = listener.accept()
    connection.settimeout(10)
    tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    with pytest.raises(ssl.SSLError):
        tls.do_handshake()
    with socket.socket(fileno=tls.detach()) as raw:
        raw.settimeout(10)
        while raw.recv(4096):  # what is closed with something unread takes the alert back
            pass


def test_a_client_certificate_that_cannot_be_used_is_named(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.issue(), authority.issue()
    for trust, sentence in (
        (Trust(client_key=one.key), "without --client-cert"),
        (Trust(client_cert=one.chain), "expected a certificate and its own key"),
        (Trust(client_cert=one.chain, client_key=other.key), "expected a certificate and its own key"),
        (Trust(client_cert=tmp_path / "absent"), "No such file"),
    ):
        with pytest.raises(InvalidUsage, match=sentence):
            believing(None, trust)


async def test_a_pinned_ca_that_is_damaged_is_not_taken_for_none(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "server-ca.pem").write_bytes(authority.pem[:100])
    with pytest.raises(LocalStateCorrupt, match=r"server-ca\.pem"):
        await start_worker("https://127.0.0.1:1", tmp_path / "state", a_token(authority.hash))


@pytest.mark.parametrize("text", ["", " ", "no certificate"])
def test_a_file_without_a_ca_is_not_taken_for_the_ca_s_of_the_system(tmp_path: Path, text: str) -> None:
    (tmp_path / "ca.pem").write_text(text)
    with pytest.raises(InvalidUsage, match="expected certificates as PEM"):
        tls_of(Trust(ca=tmp_path / "ca.pem"))


def test_workers_of_one_process_that_believe_the_same_share_one_context(authority: Authority) -> None:
    text = authority.pem.decode()
    assert believing(text, Trust()) is believing(text, Trust())
    assert believing(text, Trust()) is not believing(None, Trust())


async def test_plain_http_with_another_machine_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(InvalidUsage, match=r"plain HTTP.*--insecure"):
        await run_worker(WorkerOptions("http://192.0.2.1", "t", "mine", tmp_path, "digits"), lambda _: None)
    with pytest.raises(InvalidUsage, match=r"plain HTTP.*--insecure"):
        await run_swarm(SwarmOptions("http://192.0.2.1", "t", tmp_path, "digits", 2), lambda _: None)


def test_errors_that_are_each_others_cause_are_looked_through_once() -> None:
    first, second = OSError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first
    assert tls_problem(first, "https://server") is None
