# SPDX-License-Identifier: Apache-2.0
"""What `fed-sophia serve` advises works as it is written, or says what to put in."""

from pathlib import Path

import pytest

from fed_sophia.commands.serve import next_steps

KEY, TOKEN = Path("d/operator.key"), Path("d/join.token")


def commands(url: str, trusted_by: Path | None = None) -> tuple[str, str, str]:
    """Of a worker, to create a run, to create a token."""
    worker, run, token = (
        line.strip()
        for line in next_steps(url, KEY, TOKEN, trusted_by).splitlines()
        if line.startswith("  fed-sophia ")
    )
    return worker, run, token


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://[::1]:8080"])
def test_on_this_machine_it_is_the_address_alone(url: str) -> None:
    assert (
        commands(url)[0] == f"fed-sophia worker --server {url} --join-token-file d/join.token --task digits"
    )
    assert "--insecure" not in next_steps(url, KEY, TOKEN, None)


@pytest.mark.parametrize("url", ["https://0.0.0.0:8443", "https://[::]:8443"])
def test_an_address_that_is_every_one_is_nobody_s_to_ask(url: str) -> None:
    for command in commands(url):
        assert "--server https://HOST:8443 " in command
    assert "(HOST stands for the server's name or address):" in next_steps(url, KEY, TOKEN, None)


@pytest.mark.parametrize(
    ("url", "server"), [("http://10.0.0.7:80", "http://10.0.0.7:80"), ("http://0.0.0.0:80", "http://HOST:80")]
)
def test_plain_http_beyond_this_machine_has_to_be_said_by_everyone(url: str, server: str) -> None:
    for command in commands(url):
        assert f"--server {server} --insecure " in command


def test_only_operators_are_given_the_ca_for_a_worker_has_its_hash_in_the_token() -> None:
    worker, run, token = commands("https://10.0.0.7:8443", Path("chain.pem"))
    assert "--ca" not in worker
    assert "--operator-key-file d/operator.key --ca chain.pem " in run
    assert "--operator-key-file d/operator.key --ca chain.pem " in token


def test_who_brought_the_operator_key_makes_the_join_token_first() -> None:
    steps = next_steps("http://127.0.0.1:8080", KEY, None, None).splitlines()
    assert "token create" in steps[1] and "--operator-key-file d/operator.key" in steps[1]
    assert steps[1].endswith("> join.token") and "--join-token-file join.token" in steps[3]
