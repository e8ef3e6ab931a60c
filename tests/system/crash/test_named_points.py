# SPDX-License-Identifier: Apache-2.0
"""Death before and after every commit, fsync, rename, effect and request changes nothing.

The server, or every worker, dies at the first point at which it never died before, is started again, dies at
the next, until it has died once at each. `steps.py` says how, `doomed_server.py` and `doomed_worker.py` what
the points are.
"""

import asyncio
from pathlib import Path

import pytest

from tests.system.crash.conftest import Undisturbed
from tests.system.crash.federation import Federation, a_federation
from tests.system.crash.laws import require_all_laws
from tests.system.crash.steps import NOBODY, points_in

LONGEST_S = 300.0

# the first test also waits for the undisturbed runs
pytestmark = pytest.mark.timeout(LONGEST_S + 100)

# Each must be among the points, whatever else is. A commit is known by a part of what it changes.
SERVER_STEPS = (
    "+operator_keys",
    "+runs",
    "+workers",
    "+members",
    "+uploads",
    "+updates",
    "+effects",  # asks for an aggregation: the effect begins
    "~effects",  # ticks it off, with the version it made
    "+versions",
    "fsync of parts/u-… with update",  # before the rename
    "fsync of blobs/… with update",  # after it
    "fsync of staging/… with state",
    "fsync of blobs/… with state",
    "delete of a blob",
)
WORKER_STEPS = (
    "fsync of .identity.json.new",
    "POST /v1/workers",
    "GET /v1/workers/w-…/assignment",
    "GET /v1/runs/run-…/tensors/…",
    "fsync of outbox/.new-a-…/update.tensors",
    "fsync of outbox/.new-a-…/kept/.run-…@….tensors.new",
    "fsync of outbox/.new-a-…/kept/.run-….json.new",
    "fsync of outbox/.new-a-…/entry.json",
    "fsync of outbox/.new-a-…",  # before it is renamed
    "fsync of outbox",  # after that
    "POST /v1/assignments/a-…/update",
    "PATCH /v1/uploads/u-…",  # after it there is a receipt, and nothing is settled
    "fsync of local_state",  # the tensors of the new state have moved
    "fsync of local_state (no. 2)",  # the new state is the worker's
)


async def die_at_every_point(federation: Federation, algorithm: str, undisturbed: Undisturbed) -> list[str]:
    """Hold one run after another, until one in which nobody dies; give the points of death."""
    run_ids: list[str] = []
    async with asyncio.timeout(LONGEST_S):
        died = True
        while died:
            before = federation.killed
            run_ids.append(await federation.begin(f"run-{len(run_ids)}", algorithm))
            federation.start_workers()
            assert await federation.final_tensors(run_ids[-1]) == undisturbed.tensors[algorithm]
            died = federation.killed > before
        await require_all_laws(federation, run_ids)
    points = [point for point in points_in(federation.deaths) if point != NOBODY]
    assert len(points) == federation.killed, "each died where it says"
    return points


def missing(steps: tuple[str, ...], points: list[str]) -> list[str]:
    """Steps beside which nobody died."""
    return [
        f"{moment} … {step}"
        for moment in ("before", "after")
        for step in steps
        if not any(point.startswith(moment) and step in point for point in points)
    ]


async def test_a_server_that_dies_at_every_point_changes_nothing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    async with a_federation(tmp_path / "killed", mortal_server=True) as federation:
        points = await die_at_every_point(federation, "fed-sophia-shared", undisturbed)
        assert missing(SERVER_STEPS, points) == []


async def test_workers_that_die_at_every_point_change_nothing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    async with a_federation(tmp_path / "killed", mortal_workers=True) as federation:
        points = await die_at_every_point(federation, "fed-sophia", undisturbed)
        assert missing(WORKER_STEPS, points) == []
