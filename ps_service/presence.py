# SPDX-License-Identifier: Apache-2.0
"""Who is there: when each worker was last heard of, and what follows from silence and from a return.

Every authenticated request of a worker is a sign of life, and so is a request that is still open. Signs
are kept in memory, and each is written down once what is written of its worker is older than half of
`lost_after_s`: so a heartbeat costs no transaction and a worker that waits a row a minute, and whose row is
older than `lost_after_s` has not been heard of. What a crash takes with it is made up for at the next
start, because nobody is lost before the server has listened for `lost_after_s` without a break.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ps_service.arrivals import worker_lost, workers_returned
from ps_service.expiring import expire_idle
from ps_service.round_runner import RoundRunner
from ps_service.storage import credential_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.transitions import invite_free

LOOKS_WITHIN_LOST_AFTER = 18
HEARTBEATS_WITHIN_LOST_AFTER = 4.5
"""Asked for: every 20 s of 90."""
MOST_AT_ONCE = 100
"""Workers found lost in one transaction."""


@dataclass(slots=True)
class _Sign:
    """When a worker was heard of, and what its row says of that."""

    seen_ms: int
    written_ms: int


class Presence:
    """The signs of life of one server's workers."""

    def __init__(
        self,
        runner: RoundRunner,
        lost_after_s: float,
        expired: Callable[[str], None] = lambda worker_id: None,
    ) -> None:
        """Args: expired: hears of each worker that has been idle for too long."""
        self._runner = runner
        self._expired = expired
        self._lost_after_ms = round(lost_after_s * 1000)
        self.look_every_s = lost_after_s / LOOKS_WITHIN_LOST_AFTER
        self.heartbeat_s = lost_after_s / HEARTBEATS_WITHIN_LOST_AFTER
        """How often a worker at work is to be heard of."""
        self._signs: dict[str, _Sign] = {}
        """Of those who are here, and those of whom something is not written down."""
        self._here: Counter[str] = Counter()
        self._found_lost: set[str] = set()
        """By this process, and not welcomed back: a request of theirs may have read its record before."""
        self._returning: dict[str, None] = {}
        """Lost workers that have come, in the order in which they did."""
        self._door = asyncio.Lock()
        self._left: set[str] = set()
        """Asynchronous runs in which lost workers left places."""
        self._listening_since_ms = self._looked_ms = runner.clock.now_ms()

    async def seen(self, worker: StoredWorker) -> None:
        """A request of this worker has come; one that was lost is welcomed back."""
        self._sign_of(worker.worker_id, worker.last_seen_ms).seen_ms = self._runner.clock.now_ms()
        if worker.lost_ms is not None or worker.worker_id in self._found_lost:
            await self._welcome_back(worker.worker_id)

    def last_seen_ms(self, worker: StoredWorker) -> int:
        """When it was last heard of, as far as is known here."""
        sign = self._signs.get(worker.worker_id)
        return worker.last_seen_ms if sign is None else max(worker.last_seen_ms, sign.seen_ms)

    @contextmanager
    def here(self, worker_id: str) -> Iterator[None]:
        """While this is open, a request of the worker is: it is there."""
        self._here[worker_id] += 1
        try:
            yield
        finally:
            self._here[worker_id] -= 1
            if not self._here[worker_id]:
                del self._here[worker_id]
            self._sign_of(worker_id).seen_ms = self._runner.clock.now_ms()

    async def look(self) -> float:
        """Write down who was seen, find who is lost; give the seconds until the next look."""
        now_ms = self._runner.clock.now_ms()
        if now_ms - self._looked_ms > self._lost_after_ms / 2:
            # the server itself was not there, and heard nobody; or what it heard could not be written down
            self._listening_since_ms = now_ms
        await self._write_down(now_ms)
        self._looked_ms = now_ms
        since_ms = now_ms - self._lost_after_ms
        if self._listening_since_ms <= since_ms and await self._find_lost(since_ms) == MOST_AT_ONCE:
            return 0.0
        for worker_id in await expire_idle(self._runner):
            self._expired(worker_id)
        return self.look_every_s

    async def _write_down(self, now_ms: int) -> None:
        """Write down who was seen since what its row says, where that is old."""
        for worker_id in self._here:
            self._sign_of(worker_id).seen_ms = now_ms
        due = {
            worker_id: sign.seen_ms
            for worker_id, sign in self._signs.items()
            if sign.seen_ms != sign.written_ms and self._is_old(sign.written_ms, now_ms)
        }
        if due:
            async with self._runner.stores.records.write() as connection:
                await credential_records.set_seen(connection, due)
        for worker_id, written_ms in due.items():
            self._signs[worker_id].written_ms = written_ms
        self._signs = {
            worker_id: sign
            for worker_id, sign in self._signs.items()
            if worker_id in self._here or sign.seen_ms != sign.written_ms
        }

    def _is_old(self, written_ms: int, now_ms: int) -> bool:
        return not 0 <= now_ms - written_ms < self._lost_after_ms / 2

    def _sign_of(self, worker_id: str, written_ms: int = 0) -> _Sign:
        sign = self._signs.get(worker_id)
        if sign is None:
            sign = self._signs[worker_id] = _Sign(0, written_ms)
        return sign

    def _was_seen(self, worker_id: str, since_ms: int) -> bool:
        sign = self._signs.get(worker_id)
        return worker_id in self._here or (sign is not None and sign.seen_ms > since_ms)

    async def _find_lost(self, since_ms: int) -> int:
        """Write down who is lost; give how many were silent, of whom some may have come meanwhile."""
        records = self._runner.stores.records
        async with records.read() as connection:
            silent = await credential_records.silent_workers(connection, since_ms, MOST_AT_ONCE)
        if silent:
            self._found_lost.update(silent)  # before it is written down: who comes from now on waits for that
            async with self._runner.transition() as transition:
                still = await credential_records.silent_workers(transition.connection, since_ms, MOST_AT_ONCE)
                for worker_id in set(silent).intersection(still):  # another server may have found or heard it
                    if not self._was_seen(worker_id, since_ms):  # by now it may have been
                        self._left |= await worker_lost(transition, worker_id)
        if len(silent) < MOST_AT_ONCE:
            await self._fill_places()
        return len(silent)

    async def _fill_places(self) -> None:
        """Now that all who are silent are known: an invitation before would only go to the next of them."""
        if self._left:
            async with self._runner.transition() as transition:
                for run_id in self._left:
                    await invite_free(transition, run_id)
            self._left.clear()

    async def _welcome_back(self, worker_id: str) -> None:
        """Whoever comes first welcomes all who have come by then: a crowd returns in few transactions."""
        self._returning[worker_id] = None
        async with self._door:
            if worker_id not in self._returning:
                return
            returning = list(self._returning)[:MOST_AT_ONCE]
            if worker_id not in returning:
                returning.append(worker_id)
            async with self._runner.transition() as transition:
                await workers_returned(transition, returning)
            for each in returning:
                self._returning.pop(each, None)
                self._found_lost.discard(each)
