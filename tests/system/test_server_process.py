# SPDX-License-Identifier: Apache-2.0
"""The server as a process: how it starts, what it loads, how it stops."""

import asyncio
import os
import secrets
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fed_sophia.operator_client import OperatorClient
from tests.system.conftest import ServerProcess, running


def test_importing_the_application_loads_no_torch() -> None:
    code = "import ps_service.app, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def files_mapped_by(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_running_server_has_no_torch_in_it(server: ServerProcess) -> None:
    async with server.operator() as operator:
        await operator.runs()
    libraries = files_mapped_by(server.pid)
    assert "/pydantic_core/" in libraries
    assert "/torch/" not in libraries


async def test_a_stop_signal_ends_the_server_cleanly_although_a_worker_is_waiting(
    server: ServerProcess,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200" in await reader.readline()
    assert await server.end(signal.SIGTERM) == 0
    writer.close()


async def test_the_first_credentials_are_private_and_are_made_once(server: ServerProcess) -> None:
    files = [server.data_dir / "operator.key", server.data_dir / "join.token"]
    before = [file.read_text() for file in files]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    await server.kill()
    await server.start()
    assert [file.read_text() for file in files] == before
    async with server.operator() as operator:
        assert await operator.runs() == ()


async def test_a_server_that_is_given_an_operator_key_makes_no_credentials_of_its_own(tmp_path: Path) -> None:
    key, file = f"fso_{secrets.token_hex(32)}", tmp_path / "key"
    file.write_text(key)
    file.chmod(0o440)
    given = os.environ | {"FED_SOPHIA_SERVER_OPERATOR_KEY_FILE": str(file)}
    async with running(ServerProcess(tmp_path / "server", given)) as server:
        async with OperatorClient(server.url, key) as operator:
            assert await operator.runs() == ()
        assert list(server.data_dir.glob("*.key")) == list(server.data_dir.glob("*.token")) == []
        assert key not in (tmp_path / "server.log").read_text()


async def test_a_server_does_not_start_with_a_key_that_can_be_guessed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("fso_" + "changeme" * 6)
    file.chmod(0o440)
    command = [
        sys.executable,
        "-P",
        "-m",
        "fed_sophia",
        "serve",
        "--port=0",
        f"--data-dir={tmp_path / 'data'}",
    ]
    refused = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | {"FED_SOPHIA_SERVER_OPERATOR_KEY_FILE": str(file)},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, stderr = await refused.communicate()
    assert refused.returncode not in (0, None)
    assert b"can be guessed" in stderr and b"Traceback" not in stderr and b"changeme" not in stderr
    assert not (tmp_path / "data").exists()


async def test_a_second_server_on_the_same_data_directory_is_refused_by_name(server: ServerProcess) -> None:
    command = [sys.executable, "-P", "-m", "fed_sophia", "serve", "--port", "0"]
    second = await asyncio.create_subprocess_exec(
        *command,
        *("--data-dir", str(server.data_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, stderr = await second.communicate()
    assert second.returncode not in (0, None)
    assert b"another server is running on it" in stderr
    assert b"Traceback" not in stderr
