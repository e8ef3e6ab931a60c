# SPDX-License-Identifier: Apache-2.0
"""Workers that come and go, as pods do: one that was idle for longer than its join token lets it be expires.

Its place is free for another then: it gives its use of the token back. It may enrol again, also with the
same key.
"""

from ps_service.round_runner import RoundRunner
from ps_service.storage import credential_records, key_records

MOST_AT_ONCE = 100


async def expire_idle(runner: RoundRunner) -> list[str]:
    """Let those expire who have been idle for too long, so many at most; give their ids."""
    now_ms = runner.clock.now_ms()
    async with runner.stores.records.read() as connection:
        if not await credential_records.idle_workers(connection, now_ms, 1):
            return []
    async with runner.transition() as transition:
        idle = await credential_records.idle_workers(transition.connection, now_ms, MOST_AT_ONCE)
        for worker in idle:  # each is lost already: no round waits for it
            await credential_records.set_expired(transition.connection, worker.worker_id, now_ms)
            await key_records.end_access_tokens(transition.connection, worker.worker_id)
            if worker.token_id is not None:
                await key_records.give_join_token_use_back(transition.connection, worker.token_id)
    return [worker.worker_id for worker in idle]
