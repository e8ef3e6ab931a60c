# SPDX-License-Identifier: Apache-2.0
"""What many assignments have in common, read once: for one read transaction, whose view does not change."""

from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage import version_records
from ps_service.storage.existing import the_round, the_run
from ps_service.storage.run_records import StoredRound, StoredRun


class Known:
    """Runs, rounds and versions as one read transaction sees them; each is read once it is asked for."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._runs: dict[str, StoredRun] = {}
        self._rounds: dict[tuple[str, int], StoredRound] = {}
        self._tensors: dict[tuple[str, int], dict[str, str]] = {}

    async def run(self, run_id: str) -> StoredRun:
        """Raises: NotFound."""
        if run_id not in self._runs:
            self._runs[run_id] = await the_run(self._connection, run_id)
        return self._runs[run_id]

    async def round(self, run_id: str, number: int) -> StoredRound:
        """Raises: NotFound."""
        key = (run_id, number)
        if key not in self._rounds:
            self._rounds[key] = await the_round(self._connection, run_id, number)
        return self._rounds[key]

    async def tensors(self, run_id: str, version: int) -> dict[str, str]:
        """{bundle: digest} of a version that exists."""
        key = (run_id, version)
        if key not in self._tensors:
            self._tensors[key] = await version_records.tensors_of(self._connection, run_id, version)
        return self._tensors[key]
