# SPDX-License-Identifier: Apache-2.0
"""Servers that share their stores are backed up at work, restored elsewhere, and left by a run for another.

As `docs/howto/back-up-and-restore.md` says.
"""

import asyncio
import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fed_sophia.operator_client import OperatorClient
from protocol.messages import Assignment, Outcome, Retention, RoundSummary
from ps_service.storage.object_access import ObjectAccess
from tests.postgres import Postgres
from tests.system.cluster.cluster import Cluster, StartsCluster
from tests.system.cluster.federation import WORKERS, all_work, begin_run, require_rounds
from tests.system.conftest import ServerProcess
from worker.events import AgentEvent, Refused, Sent

BACKED_UP_IN, COPIED_AFTER, STOPPED_IN = 1, 2, 3
"""Rounds."""
EXPORTED_IN = 2
WITHIN_S = 60.0


class Gates:
    """In each of these rounds one worker is waited for, until the test lets it go on."""

    def __init__(self, *rounds: int) -> None:
        self._gates = {number: threading.Event() for number in rounds}

    def first(self, assignment: Assignment) -> None:
        if assignment.slot == assignment.round and assignment.round in self._gates:
            assert self._gates[assignment.round].wait(WITHIN_S)

    def open(self, number: int) -> None:
        self._gates[number].set()


Said = Callable[[list[RoundSummary]], bool]


async def until(operator: OperatorClient, run_id: str, holds: Said) -> None:
    """Come back once this holds of the run's rounds."""
    async with asyncio.timeout(WITHIN_S):
        while not holds(list(await operator.rounds(run_id))):
            await asyncio.sleep(0.05)


def waits_for_one(number: int) -> Said:
    return lambda rounds: len(rounds) == number and rounds[-1].admitted == WORKERS - 1


def ended(number: int) -> Said:
    return lambda rounds: len(rounds) > number


async def fed_sophia(*arguments: str, env: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """What a command says that ends well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "fed_sophia", *arguments, "--json"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WITHIN_S):
        stdout, _ = await process.communicate()
    assert process.returncode == 0, stdout
    return [json.loads(line) for line in stdout.splitlines()]


def copy(source: ObjectAccess, destination: ObjectAccess) -> None:
    """As `aws s3 sync` and `rclone copy` do it: what is there, one object after the other."""
    for folder in ("blobs", "parts"):
        for key, size_bytes in list(source.list(folder)):
            data = source.read(key, 0, size_bytes)
            if data is not None:  # it may have gone meanwhile
                destination.put(key, bytes(data))


async def restored(
    cluster: Cluster, dump: Path, postgres: Postgres, url: str, start_cluster: StartsCluster
) -> Cluster:
    """New servers on a backup, found where those of before were."""
    prefix = f"{cluster.prefix}-restored"
    await asyncio.to_thread(postgres.restore, dump, url)
    await asyncio.to_thread(copy, cluster.s3.objects(f"{cluster.prefix}-backup"), cluster.s3.objects(prefix))
    anew = await start_cluster(2, database_url=url, prefix=prefix)
    for server in anew.servers:
        assert not (server.data_dir / "operator.key").exists()  # the keys of before are good
    shutil.copy(cluster.servers[0].data_dir / "operator.key", anew.servers[0].data_dir)
    cluster.balancer.ports[:] = [server.port for server in anew.servers]
    return anew


def kept_updates(workers: Path) -> list[str]:
    """The assignments for which a worker has an update, and no receipt."""
    return [path.name for path in workers.glob("w*/outbox/*") if not path.name.startswith(".")]


async def test_a_run_goes_on_from_a_backup_of_a_round_half_full_and_its_workers_never_stop(
    expected: dict[str, str],
    start_cluster: StartsCluster,
    postgres: Postgres,
    new_database: Callable[[], str],
    tmp_path: Path,
) -> None:
    cluster, dump, events = await start_cluster(2), tmp_path / "fed-sophia.dump", list[AgentEvent]()
    gates, token = Gates(BACKED_UP_IN, STOPPED_IN), await cluster.join_token(WORKERS)
    working = asyncio.create_task(
        all_work(cluster.url, token, tmp_path / "workers", gates.first, events.append, None)
    )
    async with cluster.operator() as operator:
        run_id = await begin_run(operator, retention=Retention(update_rounds=2))
        await until(operator, run_id, waits_for_one(BACKED_UP_IN))
        receipts = [event.receipt for event in events if isinstance(event, Sent)]
        await asyncio.to_thread(postgres.dump, cluster.database_url, dump)
        gates.open(BACKED_UP_IN)
        await until(operator, run_id, ended(COPIED_AFTER))
        backup = cluster.s3.objects(f"{cluster.prefix}-backup")
        await asyncio.to_thread(copy, cluster.s3.objects(cluster.prefix), backup)
        await until(operator, run_id, waits_for_one(STOPPED_IN))
    for server in cluster.servers:
        assert await server.end(signal.SIGTERM) == 0
    gates.open(STOPPED_IN)
    async with asyncio.timeout(WITHIN_S):
        while not kept_updates(tmp_path / "workers"):  # the backup knows nothing of what it is for
            await asyncio.sleep(0.05)

    anew = await restored(cluster, dump, postgres, new_database(), start_cluster)
    end = await anew.run_ended(run_id)
    assert not working.done()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await require_rounds(anew, end)
    assert end.tensors == expected
    assert {event.code for event in events if isinstance(event, Refused)} == {"not-found"}
    assert len(receipts) > WORKERS // 2
    for receipt in receipts:
        stands = await anew.receipt(receipt.assignment_id)
        assert (stands.digest, stands.outcome) == (receipt.digest, Outcome.COUNTED)

    data_dir = str(anew.servers[0].data_dir)
    *checks, _ = await fed_sophia("doctor", "--data-dir", data_dir, env=anew.environment)
    # how much memory there is now, and how quick the store is, is not what is asked
    wrong = [check for check in checks if check["check"] != "limits" and check["level"] == "error"]
    assert wrong == []
    assert len(checks) > 5


async def test_a_run_that_is_exported_at_work_from_one_of_the_servers_ends_alike_on_a_single_server(
    expected: dict[str, str], start_cluster: StartsCluster, server: ServerProcess, tmp_path: Path
) -> None:
    cluster, archive = await start_cluster(2), str(tmp_path / "run.tar")
    key = ("--operator-key-file", str(cluster.servers[0].data_dir / "operator.key"))
    gates, token = Gates(EXPORTED_IN), await cluster.join_token(WORKERS)
    working = asyncio.create_task(
        all_work(cluster.url, token, tmp_path / "workers", gates.first, lambda _event: None, None)
    )
    async with cluster.operator(cluster.servers[0]) as operator:
        run_id = await begin_run(operator)
        await until(operator, run_id, waits_for_one(EXPORTED_IN))
        for url in (cluster.servers[1].url, cluster.url):  # which the run was not made at; whichever
            exporting = ("run", "export", run_id, "--versions", "all", "-o", archive, "--server", url)
            exported = (await fed_sophia(*exporting, *key))[-1]
            assert (exported["rounds"], exported["versions"]) == (EXPORTED_IN - 1, list(range(EXPORTED_IN)))
        versions = await operator.versions(run_id)
        gates.open(EXPORTED_IN)
        assert (await cluster.run_ended(run_id)).tensors == expected
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    key = ("--operator-key-file", str(server.data_dir / "operator.key"))
    imported = (await fed_sophia("run", "import", archive, "--server", server.url, *key))[-1]
    async with server.operator() as operator:
        there = await operator.versions(str(imported["run"]))
        assert [each.tensors for each in there] == [each.tensors for each in versions]
        await operator.resume(str(imported["run"]))
    token = await server.join_token(uses=WORKERS)
    working = asyncio.create_task(
        all_work(server.url, token, tmp_path / "others", lambda _: None, lambda _: None, None)
    )
    assert (await server.run_ended(str(imported["run"]))).tensors == expected
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
