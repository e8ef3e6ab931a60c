# SPDX-License-Identifier: Apache-2.0
"""The processes over TLS, as operators and device owners start them."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.system.conftest import READY_S, ServerProcess


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
async def over_tls(tmp_path: Path, authority: Authority) -> AsyncIterator[ServerProcess]:
    """A server with a certificate of the authority."""
    process, issued = ServerProcess(tmp_path / "server"), authority.issue()
    process.url = process.url.replace("http:", "https:")
    process.options = ("--tls-cert", str(issued.chain), "--tls-key", str(issued.key))
    process.data_dir.mkdir()
    await process.start()
    try:
        yield process
    finally:
        await process.end(signal.SIGKILL)


async def said_by(*arguments: str, **variables: str) -> tuple[int | None, dict[str, object]]:
    """Run `fed-sophia`; give its exit code and its summary."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "fed_sophia", *arguments, "--json"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | variables,
    )
    async with asyncio.timeout(READY_S):
        stdout, _ = await process.communicate()
    return process.returncode, json.loads(stdout.splitlines()[-1])


async def test_an_operator_who_names_the_ca_is_answered_and_others_are_warned(
    over_tls: ServerProcess, authority: Authority
) -> None:
    key_file = str(over_tls.data_dir / "operator.key")
    asking = ("run", "list", "--server", over_tls.url, "--operator-key-file", key_file)
    assert (await said_by(*asking, "--ca", str(authority.file)))[0] == 0
    assert (await said_by(*asking, FED_SOPHIA_CA=str(authority.file)))[0] == 0
    in_capitals = ("--server", over_tls.url.replace("https:", "HTTPS:"))
    assert (await said_by(*asking, *in_capitals, "--ca", str(authority.file)))[0] == 0
    code, summary = await said_by(*asking)
    assert (code, summary["error"]) == (1, "server-not-trusted")


async def test_an_operator_is_told_of_the_client_certificate_that_a_server_wants(
    over_tls: ServerProcess, authority: Authority
) -> None:
    await over_tls.end(signal.SIGTERM)
    over_tls.options += ("--tls-client-ca", str(authority.file))
    await over_tls.start()
    key_file, shown = str(over_tls.data_dir / "operator.key"), authority.issue("operator")
    asking = ("run", "list", "--server", over_tls.url, "--operator-key-file", key_file)
    asking += ("--ca", str(authority.file))
    code, summary = await said_by(*asking)
    assert (code, summary["error"]) == (1, "server-unreachable")
    assert "--client-cert" in str(summary["detail"])
    shown_files = ("--client-cert", str(shown.chain), "--client-key", str(shown.key))
    assert (await said_by(*asking, *shown_files))[0] == 0


async def test_a_worker_enrols_over_tls(
    over_tls: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "fed_sophia", "worker", "--task", "digits", "--json"),
        *("--server", over_tls.url, "--ca", str(authority.file), "--state-dir", str(tmp_path / "worker")),
        *("--join-token-file", str(over_tls.data_dir / "join.token")),
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            first = json.loads(await worker.stdout.readline())
        assert first["event"] == "enrolled"
    finally:
        worker.terminate()
        await worker.communicate()


async def test_a_server_does_not_listen_beyond_this_machine_in_the_clear(tmp_path: Path) -> None:
    serving = ("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path / "server"))
    code, summary = await said_by(*serving)
    assert (code, summary["error"]) == (2, "invalid-usage")
    assert not (tmp_path / "server").exists()


async def test_an_operator_s_key_does_not_leave_this_machine_in_the_clear() -> None:
    code, summary = await said_by(
        "run", "list", "--server", "http://192.0.2.1", FED_SOPHIA_OPERATOR_KEY="key"
    )
    assert (code, summary["error"]) == (2, "invalid-usage")
    assert "--insecure" in str(summary["detail"])
