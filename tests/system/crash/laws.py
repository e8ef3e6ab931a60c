# SPDX-License-Identifier: Apache-2.0
"""What must hold after any number of deaths: asked of the server, of its records, and of every file."""

import hashlib
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx

from protocol.messages import Outcome, Receipt, RoundStatus, parse
from tests.system.crash.federation import ROUNDS, WORKERS, Federation

TEMPORARY = re.compile(r"\.new-.*|\.old-.*|\..*\.new|\.probe|.*\.part|.*\.tmp")
RUNS_ONCE = [(number, number) for number in range(1, ROUNDS + 1)]
"""Every round of a run, in order, with the version it made."""


async def require_all_laws(federation: Federation, run_ids: list[str]) -> None:
    """Stop and start everybody once more, then look everywhere. It ends with everybody stopped."""
    await federation.restart_tidily()
    for run_id in run_ids:
        await require_no_round_lost_or_repeated(federation, run_id)
    await require_every_receipt_stands(federation)
    await federation.stop()
    with closing(sqlite3.connect(f"file:{federation.data_dir}/records.sqlite?mode=ro", uri=True)) as records:
        require_everything_concluded(records, run_ids)
        assert receipts_given(federation).keys() == ids_of_updates(records), "one receipt, one update"
    require_nothing_half_done(federation)


async def require_no_round_lost_or_repeated(federation: Federation, run_id: str) -> None:
    operator = federation.operator()
    rounds = await operator.rounds(run_id)
    run = await operator.run(run_id)
    for digest in run.tensors.values():
        assert await operator.tensors(run_id, digest), "the last version can be fetched"
    assert [(each.round, each.version) for each in rounds] == RUNS_ONCE
    assert {(each.status, each.admitted) for each in rounds} == {(RoundStatus.COMMITTED, WORKERS)}


async def require_every_receipt_stands(federation: Federation) -> None:
    """Every receipt that a worker ever held names one update, and that update was counted.

    Every worker is needed in every round and no round was abandoned: none can be left out for a reason.
    """
    key = (federation.data_dir / "operator.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=federation.url, headers=headers) as client:
        for assignment_id, digests in receipts_given(federation).items():
            answer = await client.get(f"/v1/assignments/{assignment_id}/update")
            receipt = parse(Receipt, answer.raise_for_status().content)
            assert digests == {receipt.digest}, f"{assignment_id}: receipts for other updates"
            assert (receipt.outcome, receipt.reason) == (Outcome.COUNTED, None)
            assert receipt.version is not None


def receipts_given(federation: Federation) -> dict[str, set[str]]:
    """{assignment: digests of the receipts that a worker was given for it}"""
    given: dict[str, set[str]] = {}
    for path in sorted(federation.folder.glob("*.receipts")):
        for line in path.read_text().splitlines():
            receipt = parse(Receipt, line)
            given.setdefault(receipt.assignment_id, set()).add(receipt.digest)
    return given


def ids_of_updates(records: sqlite3.Connection) -> set[str]:
    return {assignment_id for (assignment_id,) in records.execute("SELECT assignment_id FROM updates")}


def require_everything_concluded(records: sqlite3.Connection, run_ids: list[str]) -> None:
    """In each version of a run exactly the updates of its round were counted, each slot once."""
    outcomes = records.execute("SELECT DISTINCT outcome, version IS NULL, reason IS NULL FROM updates")
    assert set(outcomes) <= {("counted", 0, 1), ("not-counted", 1, 0)}
    for run_id in run_ids:
        counted = records.execute(
            "SELECT round, version, count(*), count(DISTINCT slot) FROM updates"
            " WHERE run_id = ? AND outcome = 'counted' GROUP BY round, version ORDER BY round",
            (run_id,),
        )
        assert list(counted) == [(*each, WORKERS, WORKERS) for each in RUNS_ONCE]
    (undone,) = records.execute("SELECT count(*) FROM effects WHERE done_ms IS NULL").fetchone()
    assert undone == 0, "effects that nobody performed"


def require_nothing_half_done(federation: Federation) -> None:
    """No temporary file anywhere; what is named by its digest has it; a worker keeps one state a run."""
    files = [path for path in federation.folder.rglob("*") if path.is_file()]
    shown = {path: str(path.relative_to(federation.folder)) for path in files}
    temporary = [shown[path] for path in federation.folder.rglob("*") if TEMPORARY.fullmatch(path.name)]
    assert temporary == []
    assert [shown[path] for path in files if "staging" in path.parts or "outbox" in path.parts] == []
    blobs = [path for path in files if "blobs" in path.parts]
    assert [shown[path] for path in blobs if digest_of(path) != path.name] == []
    for state in federation.folder.glob("w*/local_state"):
        kept = sorted(path.name.partition("@")[0] for path in state.glob("*.tensors"))
        assert kept == sorted(path.stem for path in state.glob("*.json")), f"{state}: one state a run"


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
