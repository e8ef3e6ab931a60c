# SPDX-License-Identifier: Apache-2.0
"""A run moves from one real server to another in the middle, and ends as if it had stayed."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import torch

from fed_sophia.new_run import RunRequest, begin
from protocol.messages import RoundStatus, RunStatus, RunSummary
from tests.fed_sophia.small_run import FakeServer, files_in
from tests.system.conftest import ServerProcess, running
from worker.agent import serve
from worker.options import WorkerOptions
from worker.tasks import load_task
from worker.tasks.partition import parse_partition
from worker.training import Trainer

WORKERS = 4
ROUNDS = 6
EXPORTED_AFTER = 3
WITHIN_S = 100.0


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A second server, with a disk of its own."""
    async with running(ServerProcess(tmp_path / "other")) as process:
        yield process


async def command(server: ServerProcess, *arguments: str) -> asyncio.subprocess.Process:
    """Start `fed-sophia run …` as the server's operator."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "fed_sophia", "run", *arguments, "--json"),
        *("--server", server.url, "--operator-key-file", str(server.data_dir / "operator.key")),
        stdout=asyncio.subprocess.PIPE,
    )


async def summary_of(server: ServerProcess, *arguments: str) -> dict[str, object]:
    """Run `fed-sophia run …` to its end; give its summary."""
    process = await command(server, *arguments)
    async with asyncio.timeout(WITHIN_S):
        stdout, _ = await process.communicate()
    summary: dict[str, object] = json.loads(stdout.splitlines()[-1])
    assert process.returncode == 0, summary
    return summary


@asynccontextmanager
async def workers_at(
    server: ServerProcess, run_id: str, folder: Path, assignments: int
) -> AsyncIterator[None]:
    """Real workers in this process, each with its part of the digits; at the end all have done so much.

    They come in the wrong order, one after the other: their slots follow their names.
    """
    torch.set_num_threads(1)
    task = load_task("digits", None)
    examples = task.training_data()
    partition = parse_partition("shards:2")
    token = await server.join_token(uses=WORKERS)
    async with asyncio.timeout(WITHIN_S), server.operator() as operator, asyncio.TaskGroup() as workers:
        for come, index in enumerate(reversed(range(WORKERS))):
            mine = examples.batch(partition.indices(examples.targets.numpy(), index, WORKERS, 0))
            options = WorkerOptions(
                server_url=server.url,
                join_token=token,
                name=f"w{index}",
                state_dir=folder / f"w{index}",
                task="digits",
                max_assignments=assignments,
            )
            trainer = Trainer(task, mine, torch.device("cpu"))
            workers.create_task(serve(options, "digits", trainer, lambda _event: None))
            while (await operator.run(run_id)).members <= come:
                await asyncio.sleep(0.02)
        yield


async def a_run(server: ServerProcess, algorithm: str) -> str:
    request = RunRequest(
        task="digits",
        name="moving",
        rounds=ROUNDS,
        policies={"cohort_size": WORKERS, "quorum": WORKERS},
        algorithm=algorithm,
        local_steps=5,
        seed=3,
    )
    async with server.operator() as operator:
        return (await begin(operator, request)).run_id


async def undisturbed(server: ServerProcess, folder: Path, algorithm: str) -> RunSummary:
    """The same run from its beginning to its end on one server."""
    run_id = await a_run(server, algorithm)
    async with workers_at(server, run_id, folder, ROUNDS):
        pass
    return await server.run_ended(run_id)


async def exported_in_the_middle(server: ServerProcess, folder: Path, algorithm: str) -> tuple[str, Path]:
    """Hold some rounds, then export the run while the next one is open; give its id and the archive."""
    run_id = await a_run(server, algorithm)
    async with workers_at(server, run_id, folder, EXPORTED_AFTER):
        pass
    async with server.operator() as operator, asyncio.timeout(WITHIN_S):
        while (await operator.run(run_id)).round <= EXPORTED_AFTER:
            await asyncio.sleep(0.02)
    await summary_of(server, "pause", run_id)
    archive = folder / "run.tar"
    exported = await summary_of(server, "export", run_id, "-o", str(archive))
    assert (exported["rounds"], exported["versions"]) == (EXPORTED_AFTER, [EXPORTED_AFTER])
    return run_id, archive


@pytest.mark.parametrize("algorithm", ["fed-sophia-shared", "fed-sophia"])
async def test_a_run_that_moves_to_another_server_ends_as_if_it_had_stayed(
    server: ServerProcess, other: ServerProcess, tmp_path: Path, algorithm: str
) -> None:
    expected = await undisturbed(server, tmp_path / "undisturbed", algorithm)
    run_id, archive = await exported_in_the_middle(server, tmp_path / "before", algorithm)

    imported = await summary_of(other, "import", str(archive), "--name", "moved")
    assert (imported["status"], imported["version"], imported["name"]) == ("paused", EXPORTED_AFTER, "moved")
    new_id = str(imported["run"])
    async with workers_at(other, new_id, tmp_path / "after", ROUNDS - EXPORTED_AFTER):
        await summary_of(other, "resume", new_id)
    ended = await other.run_ended(new_id)

    assert (ended.status, ended.version, ended.round) == (RunStatus.FINISHED, ROUNDS, ROUNDS)
    async with server.operator() as at_home, other.operator() as away:
        there, here = await at_home.rounds(run_id), await away.rounds(new_id)
    assert here[:EXPORTED_AFTER] == there[:EXPORTED_AFTER]
    assert [round_.status for round_ in here] == [RoundStatus.COMMITTED] * ROUNDS
    # m and h of the paper's form stay with the workers of the other run: these began with fresh ones
    assert (ended.tensors == expected.tensors) == (algorithm == "fed-sophia-shared")


async def test_ctrl_c_in_the_middle_of_an_export_leaves_no_file(tmp_path: Path) -> None:
    stalled = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One answer a connection; that with tensors never ends."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.decode().split(" ")[:2]
        if "/tensors/" in path:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
            stalled.set()
            with suppress(ConnectionError):
                await reader.read()  # until the other side has gone
        else:
            body = await (await run.handle_async_request(httpx.Request(method, f"http://run{path}"))).aread()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
        writer.close()
        await writer.wait_closed()

    run = FakeServer()
    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    slow = ServerProcess(tmp_path / "slow")
    slow.data_dir.mkdir()
    (slow.data_dir / "operator.key").write_text("key")
    slow.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    (tmp_path / "out").mkdir()
    async with listening, asyncio.timeout(WITHIN_S):
        process = await command(slow, "export", "r", "-o", str(tmp_path / "out" / "run.tar"))
        await stalled.wait()
        while not files_in(tmp_path / "out"):
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, _ = await process.communicate()
    assert process.returncode == 130
    assert json.loads(stdout.splitlines()[-1]) == {"summary": True, "interrupted": "SIGINT"}
    assert files_in(tmp_path / "out") == {}
