# SPDX-License-Identifier: Apache-2.0
"""Performs what committed transitions asked for.

After a crash the effects that are not ticked off are performed again. They are safe to repeat: all they
make is named by digest, and a round that has left AGGREGATING takes no second result. Only a store that
fails, a full disk for one, is tried again: what fails for any other reason would fail for ever, and abandons
its round.
"""

import asyncio
import logging
import time
from collections.abc import Collection

from sqlalchemy.exc import SQLAlchemyError

from protocol.errors import FedSophiaError, NotReady, StorageNotWritable, StorageUnavailable
from protocol.messages import RoundStatus
from ps_service import round_machine
from ps_service.aggregation import aggregate
from ps_service.contributions import contributions
from ps_service.late_checks import Quarantined, refuse_what_is_not_good
from ps_service.round_runner import RoundRunner
from ps_service.storage import credential_records, effect_records, version_records
from ps_service.storage.effect_records import StoredEffect
from ps_service.storage.existing import missing_blobs, seen_blobs, the_round, the_run
from ps_service.storage.in_parts import in_parts
from ps_service.transitions import round_event
from ps_service.troubles import Troubles

log = logging.getLogger("fed_sophia.rounds")


def _nobody(_worker_id: str, _error: FedSophiaError) -> None:
    """Is told."""


async def perform_effects(
    runner: RoundRunner,
    troubles: Troubles | None = None,
    quarantine_after: int = 0,
    told: Quarantined = _nobody,
) -> bool:
    """Perform everything that is not ticked off, oldest first; False if something is to be tried again.

    Args:
        troubles: what failed the last time, so that it is not said each time.
        quarantine_after, told: as `refuse_what_is_not_good` has them.
    """
    troubles = troubles or Troubles(log)
    async with runner.stores.records.read() as connection:
        effects = await effect_records.pending_effects(connection)
    all_done = True
    for effect in effects:
        aggregation = f"aggregation of run {effect.run_id}, round {effect.round}"
        try:
            if not await runner.leases.take(effect.effect_id):
                all_done = False  # another server does it, or did
                continue
            async with runner.leases.kept(effect.effect_id):
                await _perform(runner, effect, quarantine_after, told)
            runner.found_good.pop(effect.effect_id, None)
            troubles.worked(aggregation)
        except Exception as error:
            # it stays in the records; what other runs wait for must not wait behind it
            troubles.failed(aggregation, error)
            all_done = False
    return all_done


async def _perform(
    runner: RoundRunner, effect: StoredEffect, quarantine_after: int, told: Quarantined
) -> None:
    """Aggregate, or abandon the round if it cannot be.

    Raises:
        StorageNotWritable, StorageUnavailable, NotReady, OSError, SQLAlchemyError: a store fails for now;
            nothing is lost.
    """
    try:
        good = await refuse_what_is_not_good(runner, effect, quarantine_after, told)
        await _aggregate(runner, effect, good)
    except (StorageNotWritable, StorageUnavailable, NotReady, OSError, SQLAlchemyError):
        raise
    except FedSophiaError as error:
        log.error("run %s, round %d: %s: %s", effect.run_id, effect.round, error.code, error.detail)
        await _aggregation_failed(runner, effect, error.detail)
    except Exception:
        log.exception("run %s, round %d: aggregation failed", effect.run_id, effect.round)
        await _aggregation_failed(runner, effect, "internal error; the server's log has the reason")


async def _aggregate(runner: RoundRunner, effect: StoredEffect, good: Collection[str]) -> None:
    async with runner.stores.records.read() as connection:
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
    if stored.state.status is not RoundStatus.AGGREGATING:
        async with runner.transition() as transition:  # the round has gone on without it
            await runner.leases.end(transition.connection, effect.effect_id)
            await effect_records.finish_effect(transition.connection, effect.effect_id, transition.now_ms)
        return
    async with runner.stores.records.read() as connection:
        rows = await contributions(connection, run, stored.state)
        tensors = await version_records.tensors_of(connection, effect.run_id, stored.state.base_version)
    started = time.perf_counter()
    combined = await asyncio.to_thread(
        aggregate,
        runner.stores.blobs,
        run.spec,
        tensors,
        rows,
        partial=stored.state.partial,
        share=stored.state.share,
        workers=stored.state.workers,
    )
    runner.meters.aggregation_seconds.observe(time.perf_counter() - started)
    await _aggregated(runner, effect, combined, good)


async def _aggregated(
    runner: RoundRunner, effect: StoredEffect, tensors: dict[str, str], good: Collection[str]
) -> None:
    """The effect's round has been combined into these bundles: record the version, tick the effect off.

    Args: good: workers whose updates were found good only now.
    """
    seen = await seen_blobs(runner.stores, set(tensors.values()))
    async with runner.transition() as transition:
        connection, now_ms = transition.connection, transition.now_ms
        if not await runner.leases.end(connection, effect.effect_id):
            return
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
        if stored.state.status is RoundStatus.AGGREGATING:
            if missing := await missing_blobs(connection, seen, set(tensors.values())):
                raise FileNotFoundError(f"{missing[0]} is gone before it was recorded")
            version = stored.state.base_version + 1
            await version_records.add_version(connection, run.run_id, version, effect.round, tensors, now_ms)
            await round_event(transition, run, stored, round_machine.Aggregated(now_ms))
            for some in in_parts(sorted(good)):
                senders = await credential_records.workers_by_id(connection, some)
                await credential_records.end_refusals(connection, senders.values())
        await effect_records.finish_effect(connection, effect.effect_id, now_ms)


async def _aggregation_failed(runner: RoundRunner, effect: StoredEffect, reason: str) -> None:
    """The effect's round cannot be combined: abandon it, tick the effect off."""
    async with runner.transition() as transition:
        connection, now_ms = transition.connection, transition.now_ms
        if not await runner.leases.end(connection, effect.effect_id):
            return
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
        await round_event(transition, run, stored, round_machine.AggregationFailed(now_ms, reason))
        await effect_records.finish_effect(connection, effect.effect_id, now_ms)
