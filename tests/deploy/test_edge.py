# SPDX-License-Identifier: Apache-2.0
"""The units for a device: systemd takes them, and what they start is a worker that stops and comes back."""

import asyncio
import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from protocol.messages import JoinTokenRequest, RunStatus, WorkerSummary
from tests.deploy.federation import options_and_variables
from tests.system.conftest import READY_S, ServerProcess, running
from worker.agent import LAST_WORD_S
from worker.threads import STOPPING_S

EDGE = Path(__file__).resolve().parents[2] / "deploy" / "edge"
SERVICE = EDGE / "fed-sophia-worker.service"
UNITS = sorted(each for each in EDGE.iterdir() if each.suffix != ".env")
INSTALLED = "/opt/fed-sophia/bin/fed-sophia"
OURS = Path(sys.executable).with_name("fed-sophia")
MOST_EXPOSED = 2.0
"""Of the ten that `systemd-analyze security` gives a service that is told nothing."""


def service() -> configparser.SectionProxy:
    """What the service says in its own section; of what is said more than once, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(SERVICE.read_text("utf-8"))
    return parser["Service"]


def variables() -> dict[str, str]:
    """What `worker.env` sets."""
    lines = (EDGE / "worker.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def commented() -> set[str]:
    """What `worker.env` offers to be set."""
    return set(re.findall(r"^#?([A-Z_]+)=", (EDGE / "worker.env").read_text("utf-8"), flags=re.MULTILINE))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with running(ServerProcess(tmp_path / "server")) as process:
        yield process
        await process.kill()


def systemd(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def units(tmp_path: Path, require_part: Callable[[bool, str], None]) -> list[str]:
    """The units as on a device that has fed-sophia where it is here."""
    require_part(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    copies = []
    for unit in UNITS:
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(unit.read_text("utf-8").replace(INSTALLED, str(OURS)))
    return [str(each) for each in copies]


def test_systemd_finds_nothing_to_say_of_the_units(units: list[str]) -> None:
    assert systemd("verify", "--man=no", *units) == ""


def test_systemd_finds_what_is_misspelt(units: list[str]) -> None:
    [copy] = [Path(each) for each in units if each.endswith(".service")]
    copy.write_text(copy.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in systemd("verify", "--man=no", *units)


def test_a_worker_is_exposed_to_little(units: list[str]) -> None:
    [copy] = [each for each in units if each.endswith(".service")]
    said = systemd("security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}", copy)
    assert "exposure level" in said


def test_what_a_device_sets_is_read_by_something() -> None:
    words = shlex.split(service()["ExecStart"])
    options, read = options_and_variables(words[:2])
    assert {word for word in words if word.startswith("--")} <= options
    assert {word for word in shlex.split(variables()["WORKER_OPTIONS"]) if word.startswith("--")} <= options
    asked_for = {name for word in words for name in re.findall(r"\$\{?([A-Z_]+)\}?", word)}
    assert commented() <= read | asked_for
    assert asked_for <= set(variables())


def test_a_worker_is_given_the_time_that_it_takes_to_stop() -> None:
    assert float(service()["TimeoutStopSec"].removesuffix("s")) > STOPPING_S + LAST_WORD_S


def command(folder: Path) -> list[str]:
    """What systemd makes of `ExecStart` and `worker.env`, with everything below `folder`."""
    text = service()["ExecStart"].replace(INSTALLED, str(OURS))
    text = text.replace("%d", str(folder / "credentials")).replace("%S", str(folder / "state"))
    for name, value in variables().items():
        text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
    return shlex.split(text)


@asynccontextmanager
async def a_worker(folder: Path, server: ServerProcess) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker as systemd starts it; whatever becomes of the test, it ends."""
    state = folder / "state" / service()["StateDirectory"]
    state.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(*command(folder), "--json"),
        cwd=state,
        env=os.environ | {"HOME": str(state), "FED_SOPHIA_SERVER": server.url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(worker: asyncio.subprocess.Process) -> int | None:
    """Stop it as systemd does, in the time that systemd gives it."""
    worker.send_signal(signal.SIGTERM)
    async with asyncio.timeout(float(service()["TimeoutStopSec"].removesuffix("s"))):
        await worker.communicate()
    return worker.returncode


async def said(worker: asyncio.subprocess.Process, event: str) -> None:
    assert worker.stdout is not None
    async with asyncio.timeout(READY_S):
        while json.loads(await worker.stdout.readline()).get("event") != event:
            pass


async def test_a_device_is_approved_takes_part_is_stopped_and_is_the_same_worker_afterwards(
    server: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "credentials").mkdir()
    async with server.operator() as operator:
        token = await operator.create_token(JoinTokenRequest(label="ward-7", approve=True))
        (tmp_path / "credentials" / "join-token").write_text(token.join_token + "\n")
        async with a_worker(tmp_path, server) as first:
            waiting = await the_worker_that_waits(operator)
            await operator.approve_worker(waiting.worker_id)
            run_id = await one_more_round(operator)
            await said(first, "sent")
            assert await ended(first) == 0

        async with a_worker(tmp_path, server) as second:
            more = await one_more_round(operator)
            await said(second, "sent")
            assert await ended(second) == 0

        assert [each.worker_id for each in await operator.workers()] == [waiting.worker_id]
        for each in (run_id, more):
            assert (await server.run_ended(each)).status is RunStatus.FINISHED


async def the_worker_that_waits(operator: OperatorClient) -> WorkerSummary:
    async with asyncio.timeout(READY_S):
        while not (found := await operator.workers()):
            await asyncio.sleep(0.05)
    [worker] = found
    assert worker.approved_ms is None
    return worker


async def one_more_round(operator: OperatorClient) -> str:
    """Begin a run of one round and one worker, with the encodings of thin links; give its id."""
    request = RunRequest(
        task="digits",
        name="edge",
        rounds=1,
        policies={"cohort_size": 1, "quorum": 1},
        algorithm="fed-sophia-shared",
        local_steps=5,
        encodings={"delta": "bounded_int4", "params": "bf16"},
    )
    return (await begin(operator, request)).run_id
