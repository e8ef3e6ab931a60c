# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments in an asynchronous run: no digest is promised, and every receipt stands."""

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx

from protocol.messages import Outcome, Receipt, parse
from tests.system.crash.federation import ROUNDS, WORKERS, Federation, a_federation
from tests.system.crash.laws import (
    ids_of_updates,
    receipts_given,
    require_nothing_half_done,
)
from tests.system.crash.test_random_kills import kill_until_ended, murders

KILLS = 12
COHORT_SIZE = 2
ROUND_S = 0.4


async def test_kills_lose_no_receipt_and_count_none_twice(tmp_path: Path) -> None:
    async with a_federation(tmp_path / "killed") as federation, asyncio.timeout(150):
        to_come = murders(federation, KILLS, ROUND_S)
        run_ids: list[str] = []
        while federation.killed < KILLS:
            run_id = await federation.begin(
                f"run-{len(run_ids)}",
                "fed-sophia-shared",
                cohort_size=COHORT_SIZE,
                quorum=COHORT_SIZE,
                min_workers=WORKERS,
                asynchronous={"max_staleness": 4},
            )
            run_ids.append(run_id)
            federation.start_workers()
            await kill_until_ended(federation, run_id, to_come)
            assert (await federation.ended(run_id)).version == ROUNDS
        # such a run may end without a worker that was killed last; this one needs all of them in every round
        await federation.final_tensors(await federation.begin("synchronous", "fedavg"))
        await federation.restart_tidily()
        receipts = await receipts_now(federation)
        await federation.stop()
        require_the_records_to_agree(federation, receipts, run_ids)
        require_nothing_half_done(federation)


async def receipts_now(federation: Federation) -> dict[str, Receipt]:
    """What the server says of each receipt that a worker was given; the same update, and an end."""
    key = (federation.data_dir / "operator.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    found = {}
    async with httpx.AsyncClient(base_url=federation.url, headers=headers) as client:
        for assignment_id, digests in receipts_given(federation).items():
            answer = await client.get(f"/v1/assignments/{assignment_id}/update")
            receipt = parse(Receipt, answer.raise_for_status().content)
            assert digests == {receipt.digest}, f"{assignment_id}: receipts for other updates"
            counted = receipt.outcome is Outcome.COUNTED and receipt.version is not None
            assert counted != (receipt.outcome is Outcome.NOT_COUNTED and receipt.reason is not None)
            found[assignment_id] = receipt
    return found


def require_the_records_to_agree(
    federation: Federation, receipts: dict[str, Receipt], run_ids: list[str]
) -> None:
    """Each version counts as many updates as its round admitted, of no more than the staleness allowed."""
    with closing(sqlite3.connect(f"file:{federation.data_dir}/records.sqlite?mode=ro", uri=True)) as records:
        assert receipts.keys() == ids_of_updates(records), "one receipt, one update"
        counted = Counter(
            {
                (run_id, version): count
                for run_id, version, count in records.execute(
                    "SELECT run_id, version, count(*) FROM updates WHERE version IS NOT NULL"
                    " GROUP BY run_id, version"
                )
            }
        )
        for run_id, state in records.execute("SELECT run_id, state FROM rounds WHERE status = 'committed'"):
            round_ = json.loads(state)
            assert round_["admitted"] == counted.pop((run_id, round_["base_version"] + 1)) >= COHORT_SIZE
            if run_id in run_ids:
                assert sum(round_["staleness"]) == round_["admitted"]
                assert len(round_["staleness"]) <= 5
        assert not counted, "versions that no round made"
        (undone,) = records.execute("SELECT count(*) FROM effects WHERE done_ms IS NULL").fetchone()
        assert undone == 0
