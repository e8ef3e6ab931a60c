# SPDX-License-Identifier: Apache-2.0
"""What the worker has said survives a power cut: each request finds on the disk what it speaks of.

The whole agent runs against a small server in the place of the network; whenever a request arrives there, the
disk is asked what a power cut would leave.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.system.power.lives import IN_MEMORY
from tests.system.power.unsynced import Disk, lay_out
from tests.system.power.worker_life import no_sync
from tests.worker.small_server import JOIN_TOKEN, SmallServer, a_server, training
from tests.worker.workplace import StubTrainer
from worker.agent import serve
from worker.identity import identity_in
from worker.local_state import LocalState
from worker.options import WorkerOptions
from worker.outbox import Outbox
from worker.patience import Pauses

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's model reads /proc")

URL = "http://fed.example"
STEPS = 3
"""What the stub adds to the step that is kept, each time it trains."""

Look = Callable[[Path], None]


def look_at_all(disk: Disk, look: Look) -> None:
    """Look at everything that may be found if the power fails now."""
    for tree in disk.after_power_cut():
        with TemporaryDirectory(dir=IN_MEMORY) as place:
            lay_out(tree, Path(place))
            look(Path(place))


def at_each_request(disk: Disk, look: Look) -> Callable[[], Awaitable[None]]:
    """Look when a request arrives, before it is served."""

    async def arrives() -> None:
        look_at_all(disk, look)

    return arrives


def found_in(place: Path) -> tuple[int, list[tuple[str, bytes]]]:
    """The step kept between rounds, and the updates that wait for a receipt."""
    local_state = LocalState(place / "local_state", no_sync)
    kept = local_state.load("run-1")
    pending = Outbox(place / "outbox", local_state, no_sync).pending()
    updates = [(found.entry.assignment_id, found.message_path.read_bytes()) for found in pending]
    return 0 if kept is None else kept.step, updates


async def work(state_dir: Path, server: SmallServer, disk: Disk, assignments: int) -> None:
    """One life of the worker's process."""

    async def at_once(_wait_s: float) -> None:
        """No test waits for a pause."""

    pauses = Pauses(sleep=at_once, jitter=lambda: 0.5)
    options = WorkerOptions(
        server_url=URL,
        join_token=str(JOIN_TOKEN),
        name="mine",
        state_dir=state_dir,
        task="digits",
        max_assignments=assignments,
    )
    async with asyncio.timeout(60):
        await serve(options, "digits", StubTrainer(), lambda _event: None, pauses, None, server, disk.fsync)


async def test_each_word_of_the_worker_is_on_the_disk_before_it_is_said(tmp_path: Path) -> None:
    state_dir, server = tmp_path / "state", a_server(training(1), training(2))
    state_dir.mkdir()

    def enrolling(place: Path) -> None:
        assert (place / "identity.json").exists(), "the key is there"
        assert identity_in(place, URL, no_sync) == identity_in(state_dir, URL, no_sync)

    def asking(place: Path) -> None:
        assert found_in(place) == (len(server.received) * STEPS, []), "what had a receipt is settled"

    def sending(place: Path) -> None:
        done = len(server.received)
        [sent] = (state_dir / "outbox").glob("*/update.tensors")
        assert found_in(place) == (done * STEPS, [(f"a-{done + 1}", sent.read_bytes())])

    with Disk(state_dir) as disk:
        for route, look in {
            "enrol": enrolling,
            "next": asking,
            "declare": sending,
            "upload": sending,
        }.items():
            server.before[route] = at_each_request(disk, look)
        await work(state_dir, server, disk, assignments=2)
        look_at_all(disk, asking)

    looked_at = [route for route in server.asked if route in server.before]
    assert looked_at == ["enrol", *["next", "declare", "upload"] * 2]
