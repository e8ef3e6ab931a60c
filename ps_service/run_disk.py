# SPDX-License-Identifier: Apache-2.0
"""How much disk the updates of one run may take: those declared and those held.

What is remembered of a run is never less than what it takes, so room that seems to be there is there, and
most declarations cost an addition. Only where it seems to be gone are the records asked, once a second.
"""

from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import RunDiskFull
from ps_service.clock import Clock
from ps_service.storage import update_records
from ps_service.storage.assignment_records import StoredAssignment
from ps_service.storage.update_records import StoredUpload

MOST_RUNS = 1_000
ASKED_EVERY_MS = 1_000


@dataclass
class _Taken:
    """At most so much is taken, as of the records at this time and all that was declared since."""

    size_bytes: int
    asked_ms: int


class RunDisk:
    """The disk of every run of one server."""

    def __init__(self, clock: Clock, most_bytes: int, *, shared: bool = False) -> None:
        """Args: shared: whether other servers take disk, too; then the records are asked again and again."""
        self._shared = shared
        self._clock = clock
        self._most_bytes = most_bytes
        self._of_run: OrderedDict[str, _Taken] = OrderedDict()  # the one asked about last is the last

    async def take(
        self, connection: AsyncConnection, assignment: StoredAssignment, upload: StoredUpload
    ) -> None:
        """Let an update be declared for an assignment, in place of what was declared for it before.

        Raises:
            RunDiskFull: there is no room for it beside the others of the run.
        """
        run_id, size_bytes = assignment.run_id, upload.header.size_bytes
        taken = self._of_run.get(run_id)
        if taken is not None and self._shared and self._clock.now_ms() - taken.asked_ms >= ASKED_EVERY_MS:
            taken = None
        if taken is None or taken.size_bytes + size_bytes > self._most_bytes:
            if await update_records.load_upload(connection, upload.upload_id) is not None:
                return  # declared before: it has its room
            taken = await self._asked(connection, assignment, taken)
        if taken.size_bytes + size_bytes > self._most_bytes:
            raise RunDiskFull(
                f"size_bytes: {size_bytes}; the run's other updates take up to {taken.size_bytes} "
                f"of the {self._most_bytes} that they may"
            )
        taken.size_bytes += size_bytes

    async def _asked(
        self, connection: AsyncConnection, assignment: StoredAssignment, taken: _Taken | None
    ) -> _Taken:
        """What the records say, unless they were asked a moment ago."""
        now_ms, run_id = self._clock.now_ms(), assignment.run_id
        if taken is not None and now_ms - taken.asked_ms < ASKED_EVERY_MS:
            return taken
        held_bytes = await update_records.bytes_of_run(connection, run_id, without=assignment.assignment_id)
        taken = self._of_run[run_id] = _Taken(held_bytes, now_ms)
        self._of_run.move_to_end(run_id)
        if len(self._of_run) > MOST_RUNS:
            self._of_run.popitem(last=False)
        return taken
