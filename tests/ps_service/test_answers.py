# SPDX-License-Identifier: Apache-2.0
"""The check that a container runs on itself says whether the server answers, and nothing is loaded for it."""

import asyncio
import subprocess
import sys

import pytest

CHECK = (sys.executable, "-m", "ps_service.answers")


async def ends_with(url: str) -> int:
    """The exit code of the check."""
    process = await asyncio.create_subprocess_exec(*CHECK, url, stderr=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(30):
        return await process.wait()


async def test_a_server_that_is_ready_is_well_and_one_that_refuses_or_is_gone_is_not(server):
    async with server.on_a_socket() as http:
        assert await ends_with(f"{http.base_url}/readyz") == 0
        assert await ends_with(f"{http.base_url}/v1/runs") == 1  # 401
        server.service.stop_waiting()
        assert await ends_with(f"{http.base_url}/readyz") == 1
        assert await ends_with(f"{http.base_url}/healthz") == 0
    assert await ends_with(f"{http.base_url}/healthz") == 1


@pytest.mark.parametrize("words", [(), ("nonsense",), ("http://127.0.0.1:1/", "more")])
def test_what_cannot_be_asked_is_not_well(words):
    assert subprocess.run([*CHECK, *words], capture_output=True, timeout=30, check=False).returncode == 1


def test_it_costs_little_more_than_a_python():
    code = (
        "import ps_service.answers, sys; sys.exit(bool({'pydantic', 'fastapi', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
