# SPDX-License-Identifier: Apache-2.0
"""A server whose disk is full or read-only says so, keeps nothing by halves, and goes on once it may."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from fed_sophia.operator_client import OperatorClient
from fed_sophia.whole_file import whole_file
from protocol.errors import InvalidUsage, StorageNotWritable
from protocol.messages import Outcome, RoundStatus
from ps_service.operator_keys import write_private
from tests.small_disk import Disk, a_small_disk
from tests.system.conftest import READY_S, ServerProcess
from tests.system.held_cohort import SMALL, a_cohort, a_run, a_state, has_admitted, until
from worker.events import Sent

DISK_BYTES = 96 * 1024 * 1024
PAGE_BYTES = 4096
SOME_ROOM_BYTES = 512 * 1024
"""For the database; too little for a tensor message of these tests."""
LITTLE_ROOM_BYTES = 9 * PAGE_BYTES
"""To open the database, and not to write to it."""


class ServerOnDisk(ServerProcess):
    """A server that keeps everything on a small disk."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.mount_point)
        self.disk = disk
        self.prefix = disk.enter

    def operator(self) -> OperatorClient:
        return OperatorClient(self.url, (self.disk.path / "operator.key").read_text().strip())

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        return (self.data_dir.parent / "server.log").read_text()

    async def readiness(self) -> tuple[int, str]:
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.get(f"{self.url}/readyz")
        return answer.status_code, answer.json().get("detail", "")

    async def undisturbed(self, operator: OperatorClient) -> dict[str, str]:
        """The digests at the end of a run of the same workers with nothing in its way."""
        return dict((await self.run_ended((await a_run(operator)).run_id)).tensors)


@pytest.fixture
def disk(tmp_path: Path, require_part: Callable[[bool, str], None]) -> Iterator[Disk]:
    with a_small_disk(tmp_path / "server", DISK_BYTES, require_part) as disk:
        yield disk


@pytest.fixture
async def server(disk: Disk) -> AsyncIterator[ServerOnDisk]:
    process = ServerOnDisk(disk)
    await process.start()
    try:
        yield process
    finally:
        await process.end(signal.SIGKILL)


async def test_an_update_that_finds_no_room_stays_with_its_worker_and_counts_once_there_is_some(
    server: ServerOnDisk, disk: Disk, tmp_path: Path
) -> None:
    async with a_cohort(server, tmp_path, rounds=2) as cohort, server.operator() as operator:
        run = await a_run(operator)
        await has_admitted(operator, run, 1)
        before = disk.names()
        disk.fill(leaving_bytes=SOME_ROOM_BYTES)
        cohort.release()
        assert await cohort.refusals() == ["the server's disk is full: No space left on device"]
        assert disk.names() == before, "nothing is half-written"
        assert [round_.admitted for round_ in await operator.rounds(run.run_id)] == [1]
        disk.make_room()
        cohort.may_try_again.set()
        ended = await server.run_ended(run.run_id)
        assert dict(ended.tensors) == await server.undisturbed(operator)
    assert sorted(cohort.trainer.trained.count((run.run_id, slot)) for slot in (0, 1)) == [1, 1]


async def test_a_round_that_finds_no_room_for_its_aggregate_waits_and_commits_when_there_is(
    server: ServerOnDisk, disk: Disk, tmp_path: Path
) -> None:
    async with a_cohort(server, tmp_path, rounds=2) as cohort, server.operator() as operator:
        run = await a_run(operator)
        await has_admitted(operator, run, 1)
        update_bytes = max(path.stat().st_size for path in (disk.path / "blobs").rglob("*"))
        disk.fill(leaving_bytes=update_bytes + SOME_ROOM_BYTES)
        cohort.release()
        await until(lambda: "aggregation of run" in server.log())
        assert [round_.status for round_ in await operator.rounds(run.run_id)] == [RoundStatus.AGGREGATING]
        outcomes = [event.receipt.outcome for event in cohort.events if isinstance(event, Sent)]
        assert outcomes == [Outcome.PENDING] * 2
        disk.make_room()
        ended = await server.run_ended(run.run_id)
        assert dict(ended.tensors) == await server.undisturbed(operator)
    assert server.log().count(f"aggregation of run {run.run_id}, round 1: the server's disk is full") == 1
    assert f"aggregation of run {run.run_id}, round 1: works again" in server.log()
    assert "Traceback" not in server.log()


async def test_no_receipt_is_given_for_what_the_database_had_no_room_to_write_down(
    server: ServerOnDisk, disk: Disk, tmp_path: Path
) -> None:
    async with a_cohort(server, tmp_path, rounds=1) as cohort, server.operator() as operator:
        run = await a_run(operator, SMALL)
        await has_admitted(operator, run, 1)
        disk.fill(leaving_bytes=PAGE_BYTES)  # for the update's file
        cohort.release()
        (refusal,) = await cohort.refusals()
        assert refusal.startswith("the server's disk is full")
        with pytest.raises(StorageNotWritable, match="the server's disk is full: database or disk is full"):
            await operator.pause(run.run_id)
        status, why = await server.readiness()
        assert (status, why.partition(":")[0]) == (503, "the server's disk is full")
        assert [(r.admitted, r.status) for r in await operator.rounds(run.run_id)] == [(1, "collecting")]
        assert len([event for event in cohort.events if isinstance(event, Sent)]) == 1
        disk.make_room()
        assert (await server.readiness())[0] == 200
        cohort.may_try_again.set()
        assert (await server.run_ended(run.run_id)).version == 1


async def test_a_disk_gone_read_only_refuses_what_writes_and_still_gives_what_is_there(
    server: ServerOnDisk, disk: Disk, tmp_path: Path
) -> None:
    async with a_cohort(server, tmp_path, rounds=2) as cohort, server.operator() as operator:
        run = await a_run(operator)
        await has_admitted(operator, run, 1)
        before = disk.names()
        disk.make_read_only(server.pid)
        cohort.release()
        (refusal,) = await cohort.refusals()
        assert refusal.startswith("the server's disk is read-only: ")
        for request in (operator.put_tensors(a_state(0.2)), operator.pause(run.run_id)):
            with pytest.raises(StorageNotWritable, match="the server's disk is read-only"):
                await request
        assert [each.run_id for each in await operator.runs()] == [run.run_id]
        assert await operator.tensors(run.run_id, run.tensors["params"]) == b"".join(a_state(0.1))
        status, why = await server.readiness()
        assert (status, why.partition(":")[0]) == (503, "the server's disk is read-only")
        assert disk.names() == before
        disk.make_writable(server.pid)
        cohort.may_try_again.set()
        ended = await server.run_ended(run.run_id)
        assert dict(ended.tensors) == await server.undisturbed(operator)
    assert not [name for name in disk.names() if name.startswith("staging")]


@asynccontextmanager
async def inside(disk: Disk, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python that has the disk where it is mounted; ended with the block, or when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *disk.enter,
        *(sys.executable, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(READY_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


WRITE_DURING_AND_AFTER = """
import asyncio, sys
from pathlib import Path
from protocol.errors import StorageNotWritable
from ps_service.storage.records import open_records

async def main():
    records = await open_records(Path(sys.argv[1]) / "records.sqlite")
    async with records.read():  # so that what writes meanwhile opens the file anew
        print("opened", flush=True)
        sys.stdin.readline()
        try:
            await records.check()
        except StorageNotWritable as error:
            print(error.detail, flush=True)
        sys.stdin.readline()
        await records.check()
        print("written", flush=True)
    await records.close()

asyncio.run(main())
"""


async def test_a_database_opened_on_a_read_only_disk_is_written_to_once_the_disk_is_not(disk: Disk) -> None:
    async with inside(disk, "-c", WRITE_DURING_AND_AFTER, str(disk.mount_point)) as process:
        assert process.stdin is not None and process.stdout is not None
        assert await process.stdout.readline() == b"opened\n"
        disk.make_read_only()
        process.stdin.write(b"\n")
        said = await process.stdout.readline()
        assert said == b"the server's disk is read-only: attempt to write a readonly database\n"
        disk.make_writable()
        said, _ = await process.communicate(b"\n")
    assert said == b"written\n"


async def test_a_server_says_in_one_sentence_why_it_does_not_start(disk: Disk) -> None:
    disk.fill()
    assert await why_it_does_not_start(disk) == "full"
    assert disk.names() == set()
    disk.make_room()
    server = ServerOnDisk(disk)
    try:
        await server.start()
    finally:
        assert await server.end(signal.SIGTERM) == 0
    before = disk.names()
    for leaving_bytes in (0, LITTLE_ROOM_BYTES):
        disk.fill(leaving_bytes)
        assert await why_it_does_not_start(disk) == "full"
        disk.make_room()
    disk.make_read_only()
    assert await why_it_does_not_start(disk) == "read-only"
    assert disk.names() == before


async def why_it_does_not_start(disk: Disk) -> str:
    """Start a server on the disk; give what it says of it, in a sentence and no more."""
    options = ("--port", "0", "--data-dir", str(disk.mount_point))
    async with inside(disk, "-P", "-m", "fed_sophia", "serve", *options) as process:
        stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (1, b"")
    (sentence,) = stderr.decode().splitlines()
    start = f"error: data directory {disk.mount_point}: the server's disk is "
    assert sentence.startswith(start)
    assert sentence.endswith(" (storage-not-writable)")
    return sentence.removeprefix(start).partition(":")[0]


def test_a_secret_and_an_exported_file_are_whole_or_absent(disk: Disk) -> None:
    write_private(disk.path / "operator.key", "old")
    disk.fill()
    with pytest.raises(StorageNotWritable, match="the server's disk is full"):
        write_private(disk.path / "operator.key", "new")
    with pytest.raises(InvalidUsage, match="No space left"), whole_file(disk.path / "export") as file:
        file.write(bytes(PAGE_BYTES))
    assert disk.names() == {"operator.key"}
    assert (disk.path / "operator.key").read_text() == "old\n"
