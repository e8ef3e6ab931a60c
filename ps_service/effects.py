# SPDX-License-Identifier: Apache-2.0
"""Performs what committed transitions asked for, and watches deadlines: the server's background work.

After a crash the effects that are not ticked off are performed again. They are safe to repeat: all they
make is named by digest, and a round that has left AGGREGATING takes no second result. Only a store that
fails is tried again: what fails for any other reason would fail for ever, and abandons its round.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError

from protocol.errors import FedSophiaError
from protocol.messages import RoundStatus
from ps_service.aggregation import AdmittedUpdate, aggregate
from ps_service.bell import DEADLINES, EFFECTS, wait_for_ring
from ps_service.round_runner import RoundRunner
from ps_service.storage import update_records, version_records
from ps_service.storage.existing import the_round, the_run
from ps_service.storage.update_records import StoredEffect

log = logging.getLogger("fed_sophia.rounds")

RETRY_S = 1.0


@asynccontextmanager
async def background(runner: RoundRunner) -> AsyncIterator[None]:
    """While this is open, rounds are closed at their deadlines and aggregated."""

    async def performing() -> float:
        return 60.0 if await perform_effects(runner) else RETRY_S

    tasks = [
        asyncio.create_task(_watch(runner, DEADLINES, runner.tick)),
        asyncio.create_task(_watch(runner, EFFECTS, performing)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def perform_effects(runner: RoundRunner) -> bool:
    """Perform everything that is not ticked off, oldest first; False if something is to be tried again."""
    async with runner.stores.records.read() as connection:
        effects = await update_records.pending_effects(connection)
    all_done = True
    for effect in effects:
        try:
            await _perform(runner, effect)
        except Exception:
            # it stays in the records; what other runs wait for must not wait behind it
            log.exception("run %s, round %d: not aggregated yet", effect.run_id, effect.round)
            all_done = False
    return all_done


async def _perform(runner: RoundRunner, effect: StoredEffect) -> None:
    """Aggregate, or abandon the round if it cannot be.

    Raises:
        OSError, SQLAlchemyError: a store fails for now (a full disk, say). Nothing is lost.
    """
    try:
        await _aggregate(runner, effect)
    except (OSError, SQLAlchemyError):
        raise
    except FedSophiaError as error:
        log.error("run %s, round %d: %s: %s", effect.run_id, effect.round, error.code, error.detail)
        await runner.aggregation_failed(effect, error.detail)
    except Exception:
        log.exception("run %s, round %d: aggregation failed", effect.run_id, effect.round)
        await runner.aggregation_failed(effect, "internal error; the server's log has the reason")


async def _aggregate(runner: RoundRunner, effect: StoredEffect) -> None:
    async with runner.stores.records.read() as connection:
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
    if stored.state.status is not RoundStatus.AGGREGATING:
        await runner.not_wanted(effect)
        return
    async with runner.stores.records.read() as connection:
        updates = await update_records.updates_of_round(connection, effect.run_id, effect.round)
        tensors = await version_records.tensors_of(connection, effect.run_id, stored.state.base_version)
    started = time.perf_counter()
    combined = await asyncio.to_thread(
        aggregate,
        runner.stores.blobs,
        run.spec,
        tensors,
        [AdmittedUpdate(update.digest, update.header) for update in updates],
        partial=stored.state.partial,
    )
    runner.meters.aggregation_seconds.observe(time.perf_counter() - started)
    await runner.aggregated(effect, combined)


async def _watch(runner: RoundRunner, topic: str, work: Callable[[], Awaitable[float]]) -> None:
    """Do the work now, and again whenever the topic rings or the time it asked for has passed."""
    with runner.bell.listen([topic]) as rung:
        while True:
            try:
                wait_s = await work()
            except Exception:
                # the work is in the records: nothing is lost by trying again, everything by giving up
                log.exception("%s: failed; trying again in %s s", topic, RETRY_S)
                wait_s = RETRY_S
            await wait_for_ring(rung, wait_s)
