# SPDX-License-Identifier: Apache-2.0
"""Collects what a run's retention does not keep, and bytes that nothing refers to.

Why this cannot delete what a transaction refers to: records forget first, in a transaction of their own.
Then a write transaction that has found nothing that refers to them condemns bytes, and they are deleted
after it; every transaction that begins to refer to a blob makes sure that it was not condemned since it was
seen (`missing_blobs`). The write lock puts the two in an order: the blob is there and referred to, or it
goes and whoever wanted it is told. Nobody waits in a transaction for a store that is slow.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import StorageNotWritable
from ps_service.clock import elapsed_ns
from ps_service.contributions import digests_still_needed
from ps_service.retention import kept_versions
from ps_service.round_runner import RoundRunner
from ps_service.storage import (
    archive_records,
    condemned_records,
    reference_records,
    report_records,
    run_records,
    update_records,
    version_records,
)
from ps_service.storage.existing import the_run
from ps_service.storage.in_parts import in_parts
from ps_service.summaries import mean_of_reports
from ps_service.to_its_end import to_its_end
from ps_service.troubles import Troubles
from ps_service.uploads import Uploads

log = logging.getLogger("fed_sophia.housekeeping")

SWEEP_EVERY_S = 3600.0
BATCH = 64
"""Files deleted together."""
CONDEMNED_FOR_S = 600.0
"""After so long somebody else deletes what was condemned."""
TRIED_AGAIN_S = 60.0
"""What could not be deleted."""
NEVER_MS = 2**62


class Housekeeping:
    """Tidies runs whose rounds have ended, and sweeps the store now and then."""

    def __init__(
        self, runner: RoundRunner, uploads: Uploads, forget_tokens: Callable[[], Awaitable[None]]
    ) -> None:
        """Args: forget_tokens: lets go of credentials whose time is over."""
        self._forget_tokens = forget_tokens
        self._runner = runner
        self._uploads = uploads
        self._suspects: set[str] = set()
        self._sweep_at_ms: int | None = None
        self._begun = False
        self._working = asyncio.Lock()
        self._troubles = Troubles(log)
        self._left = False

    async def look(self) -> float:
        """Tidy what is due; give the seconds until something is due again."""
        async with self._working:
            self._left = False
            await self._tidy_what_is_due()
        return TRIED_AGAIN_S if self._left else SWEEP_EVERY_S

    async def _tidy_what_is_due(self) -> None:
        now_ms = self._runner.clock.now_ms()
        if not self._begun:  # a start: what was due before it is not known
            async with self._runner.stores.records.read() as connection:
                self._runner.untidy.update(await run_records.all_run_ids(connection))
            self._begun = True
        troubles = await self._tidy_all()
        await self._delete_what_was_condemned()
        if self._sweep_at_ms is None or now_ms >= self._sweep_at_ms:
            self._begun = not self._runner.stores.records.shared  # others may have died, and left runs untidy
            self._sweep_at_ms = now_ms + round(SWEEP_EVERY_S * 1000)
            await self._forget_tokens()
            async with self._runner.stores.records.write() as connection:
                db_ms = await self._runner.stores.records.now_ms(connection)
                await condemned_records.forget_gone(connection, db_ms)
            await self.sweep()
        await self._discard_parts()
        if troubles:  # said once all have had their turn
            raise troubles[0]

    async def _tidy_all(self) -> list[Exception]:
        """Tidy each run that may need it; what could not be tidied may still need it."""
        untidy = self._runner.untidy
        troubles: dict[str, Exception] = {}
        while untidy:
            run_id = untidy.pop()  # before it is tidied: a round that ends meanwhile marks it again
            try:
                await self.tidy(run_id)
            except Exception as error:
                troubles[run_id] = error
            except BaseException:
                untidy.add(run_id)
                raise
            if untidy <= troubles.keys():  # marked again, and it failed just now: the next look tries again
                break
        untidy.update(troubles)
        return list(troubles.values())

    async def tidy(self, run_id: str) -> None:
        """Let a run forget what its retention does not keep, and delete what nothing needs then."""
        async with self._runner.stores.records.write() as connection:
            run = await the_run(connection, run_id)
            now_ms = self._runner.clock.now_ms()
            retention = run.spec.retention
            last_ended = run.state.round - 1 if run.state.round_open else run.state.round
            if run.state.status.ended:  # what waited for a round of an asynchronous run that did not come
                last_ended += 1
            present = await version_records.versions_with_tensors(connection, run_id)
            numbers = [version.version for version in present]
            metrics = await _metrics(connection, run_id, numbers) if retention.best is not None else {}
            kept = kept_versions(retention, numbers, metrics)
            kept |= await update_records.versions_in_use(connection, run_id)
            digests = await reference_records.forget_versions(
                connection,
                run_id,
                [version for version in present if version.version not in kept],
                [version for version in present if version.version in kept],
                now_ms,
            )
            needed = await digests_still_needed(connection, run)
            digests |= await reference_records.forget_updates(
                connection, run_id, last_ended - retention.update_rounds, needed, now_ms
            )
        await self._delete(digests)

    async def sweep(self) -> None:
        """Delete what nothing refers to now, nor did at the last sweep: it came and was not wanted."""
        listed = await asyncio.to_thread(lambda: set(self._runner.stores.blobs.digests()))
        suspects: set[str] = set()
        for batch in batches(listed):
            async with self._runner.stores.records.read() as connection:
                suspects |= set(batch) - await reference_records.referred_to(connection, batch)
        gone = await self._delete(suspects & self._suspects)
        if gone:
            log.info("%d tensor messages that nothing referred to were deleted", gone)
        self._suspects = suspects

    async def _discard_parts(self) -> None:
        """Forget the bodies that no open assignment waits for."""
        paused = await self._uploads.paused()  # first: what is declared from here on is not among them
        async with self._runner.stores.records.read() as connection:
            wanted = await update_records.awaited_uploads(connection)
        await self._uploads.discard_all(paused - wanted)

    def spare(self, digest: str) -> None:
        """Somebody is about to refer to this: it begins its time as an orphan anew."""
        self._suspects.discard(digest)

    async def _delete(self, digests: Collection[str]) -> int:
        """Delete those that nothing refers to; give how many."""
        deleted = 0
        for batch in batches(digests):
            deleted += await self._condemn_and_delete(batch)
        return deleted

    async def _condemn_and_delete(self, digests: Collection[str]) -> int:
        """Give how many are deleted; what cannot be is tried again by another look."""
        records = self._runner.stores.records
        async with records.write() as connection:
            unneeded = set(digests) - await reference_records.referred_to(connection, digests)
            claimed_ms = await records.now_ms(connection)
            claimed = await condemned_records.condemn(
                connection, unneeded, claimed_ms, self._given_up_ms(claimed_ms)
            )
        gone = await to_its_end(partial(self._delete_files, sorted(claimed)))
        async with records.write() as connection:
            now_ms = await records.now_ms(connection)
            await condemned_records.have_gone(connection, gone, claimed_ms, now_ms)
            await condemned_records.give_up(connection, claimed - set(gone), claimed_ms)
        self._left |= len(gone) < len(claimed)
        return len(gone)

    def _given_up_ms(self, now_ms: int) -> int:
        """What was condemned before, and is there, nobody is about to delete any more."""
        if self._runner.stores.records.shared:
            return now_ms - round(CONDEMNED_FOR_S * 1000)
        return NEVER_MS  # this server is the only one, and here it is, about nothing else

    async def _delete_what_was_condemned(self) -> None:
        """Whoever meant to delete these has died, or its store failed: nobody has referred to them since."""
        records = self._runner.stores.records
        async with records.read() as connection:
            before_ms = self._given_up_ms(await records.now_ms(connection))
            left = await condemned_records.condemned_before(connection, before_ms)
        for batch in batches(left):
            await self._condemn_and_delete(batch)

    def _delete_files(self, digests: Sequence[str]) -> list[str]:
        """Give those that went. It ends long before somebody else may think that nobody does it."""
        gone: list[str] = []
        until_ns = elapsed_ns() + round(CONDEMNED_FOR_S / 2 * 1e9)
        for digest in digests:
            if elapsed_ns() > until_ns:
                break
            try:
                self._runner.stores.blobs.delete(digest)
            except StorageNotWritable as error:
                self._troubles.failed("deleting tensor messages", error)
            else:
                gone.append(digest)
        return gone


async def _metrics(
    connection: AsyncConnection, run_id: str, numbers: Sequence[int]
) -> dict[int, dict[str, float]]:
    """What is known of each of these versions (ascending): archived with it, and reported here."""
    metrics = await archive_records.archived_metrics_of_kept(connection, run_id)
    reports = await report_records.reports_of(connection, run_id, numbers[0], numbers[-1])
    for version, of_version in reports.items():
        metrics[version] = metrics.get(version, {}) | mean_of_reports(of_version)
    return metrics


def batches(digests: Iterable[str]) -> Iterable[list[str]]:
    return in_parts(sorted(digests), BATCH)
