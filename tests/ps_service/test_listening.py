# SPDX-License-Identifier: Apache-2.0
"""The listening socket: what is accepted from it is kept alive, and there may be thousands of it."""

import resource
import socket

import pytest

from ps_service.listening import allow_many_connections, listen
from ps_service.settings import Settings


def test_a_peer_that_is_gone_without_a_word_is_noticed(require_part):
    require_part(hasattr(socket, "TCP_KEEPIDLE"), "a system whose sockets say when they ask")
    with listen(Settings(port=0)) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle_s, every_s, times = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
    assert idle_s < 60, "before a NAT forgets the connection"
    assert idle_s + every_s * times <= Settings().lost_after_s


@pytest.fixture
def few_files():
    """A usual limit of open files, below what this process may ask for."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before, 512), most))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def test_as_many_files_may_be_open_as_the_system_allows(few_files):
    allow_many_connections()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_files, few_files)
