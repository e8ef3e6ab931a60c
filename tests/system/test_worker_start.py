# SPDX-License-Identifier: Apache-2.0
"""A worker's process while it loads its task: it waits meanwhile, can be stopped, and tells what is wrong."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.system.conftest import READY_S, ServerProcess


@asynccontextmanager
async def worker(
    server: ServerProcess, folder: Path, token: str, *options: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`fed-sophia worker`, killed when the block is left if it lives on."""
    command = [sys.executable, "-P", "-m", "fed_sophia", "worker", "--server", server.url, "--json"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--name", "mine", "--state-dir", str(folder / "mine"), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"FED_SOPHIA_JOIN_TOKEN": token},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process: asyncio.subprocess.Process, event: str) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(READY_S):
        while json.loads(await process.stdout.readline()).get("event") != event:
            pass


async def ending(process: asyncio.subprocess.Process) -> tuple[int | None, dict[str, object]]:
    """Its exit code, and the last it said; nothing on standard error."""
    async with asyncio.timeout(READY_S):
        stdout, stderr = await process.communicate()
    assert stderr == b""
    return process.returncode, json.loads(stdout.splitlines()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_that_is_stopped_while_torch_is_imported_ends_as_at_any_other_time(
    server: ServerProcess, tmp_path: Path, number: signal.Signals
) -> None:
    async with worker(server, tmp_path, await server.join_token(), "--task", "digits") as process:
        await told(process, "waiting")  # torch takes longer than all that comes before this
        process.send_signal(number)
        process.send_signal(number)
        assert await ending(process) == (0, {"summary": True, "stopped": True})


async def test_a_worker_whose_device_is_not_there_says_so_and_waits_no_longer(
    server: ServerProcess, tmp_path: Path
) -> None:
    choice = ("--task", "digits", "--device", "cuda:99")
    async with worker(server, tmp_path, await server.join_token(), *choice) as process:
        code, said = await ending(process)
    assert (code, said["error"]) == (1, "device-unavailable")


async def test_a_worker_without_torch_says_what_to_install_and_enrols_nobody(
    server: ServerProcess, tmp_path: Path
) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from fed_sophia.cli import run_command; "
        "sys.exit(run_command(sys.argv[1:]))"
    )
    options = ["worker", "--server", server.url, "--task", "digits", "--state-dir", str(tmp_path / "mine")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", script, *options, "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    code, said = await ending(process)
    assert (code, said["error"]) == (2, "invalid-usage")
    assert said["detail"] == "this needs torch, which is not installed: pip install 'fed-sophia[worker]'"
    assert not (tmp_path / "mine").exists()
