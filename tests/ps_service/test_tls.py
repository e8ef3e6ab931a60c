# SPDX-License-Identifier: Apache-2.0
"""Which TLS a server is started with, and which it is not started with."""

import logging
import ssl
from pathlib import Path

import pytest

from protocol.errors import InvalidUsage
from ps_service.settings import Settings
from ps_service.tls import advertised_ca, tls_arguments
from tests.certificates import Authority, Issued


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def with_tls(issued: Issued, **more: object) -> Settings:
    return Settings(tls_cert=issued.chain, tls_key=issued.key, **more)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_on_this_machine_plain_http_will_do(host: str) -> None:
    assert tls_arguments(Settings(host=host)) == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "fl.example.org", "localhost.example.org"])
def test_beyond_this_machine_plain_http_is_refused_unless_it_is_called_insecure(host: str) -> None:
    with pytest.raises(InvalidUsage, match="plain HTTP: give --tls-cert and --tls-key, or say --insecure"):
        tls_arguments(Settings(host=host))
    assert tls_arguments(Settings(host=host, insecure=True)) == {}


def test_beyond_this_machine_tls_needs_no_other_word(authority: Authority) -> None:
    issued = authority.issue()
    arguments = tls_arguments(with_tls(issued, host="0.0.0.0"))
    assert (arguments["ssl_certfile"], arguments["ssl_keyfile"]) == (str(issued.chain), str(issued.key))
    assert ssl.SSLContext(arguments["ssl_version"]).minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_certificate_without_its_key_is_refused_and_the_other_way_round(authority: Authority) -> None:
    issued = authority.issue()
    with pytest.raises(InvalidUsage, match="--tls-cert without --tls-key"):
        tls_arguments(Settings(tls_cert=issued.chain))
    with pytest.raises(InvalidUsage, match="--tls-key without --tls-cert"):
        tls_arguments(Settings(tls_key=issued.key))
    with pytest.raises(InvalidUsage, match="--tls-client-ca needs --tls-cert"):
        tls_arguments(Settings(tls_client_ca=authority.file))


def test_the_key_of_another_certificate_is_refused(authority: Authority) -> None:
    one, other = authority.issue(), authority.issue()
    with pytest.raises(InvalidUsage, match="is not the key of the first certificate"):
        tls_arguments(Settings(tls_cert=one.chain, tls_key=other.key))


@pytest.mark.parametrize("option", ["tls_cert", "tls_key", "tls_client_ca"])
def test_a_file_that_cannot_be_read_or_holds_something_else_is_named(
    authority: Authority, tmp_path: Path, option: str
) -> None:
    named = f"--{option.replace('_', '-')} {tmp_path}"
    with pytest.raises(InvalidUsage, match=f"{named}/absent: No such file"):
        tls_arguments(with_tls(authority.issue()).model_copy(update={option: tmp_path / "absent"}))
    (tmp_path / "other").write_text("no certificate and no key")
    with pytest.raises(InvalidUsage, match=f"{named}/other: expected"):
        tls_arguments(with_tls(authority.issue()).model_copy(update={option: tmp_path / "other"}))


def test_an_expired_certificate_is_warned_of_and_served(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert tls_arguments(with_tls(authority.issue(expired=True)))
    assert "has expired" in caplog.text


def test_the_ca_to_pin_is_the_last_of_the_chain(authority: Authority) -> None:
    advertised = advertised_ca(with_tls(authority.issue()))
    assert advertised is not None
    assert (advertised.pem, advertised.ca_hash) == (authority.pem, authority.hash)


def test_a_chain_that_ends_below_its_root_advertises_nothing(authority: Authority) -> None:
    issued = authority.issue(with_ca=False)
    assert advertised_ca(with_tls(issued)) is None
    named = advertised_ca(with_tls(issued, tls_ca=authority.file))
    assert named is not None and named.ca_hash == authority.hash


async def test_anyone_may_ask_for_the_ca(start_server, authority: Authority) -> None:
    server = await start_server(tls_ca=authority.file)
    answer = await server.client().get("/v1/ca")
    assert (answer.status_code, answer.content) == (200, authority.pem)
    assert answer.headers["Content-Type"] == "application/pem-certificate-chain"


async def test_a_server_without_a_ca_says_so(server) -> None:
    answer = await server.client().get("/v1/ca")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
