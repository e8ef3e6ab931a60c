# SPDX-License-Identifier: Apache-2.0
"""Tells rounds and runs that their time has come."""

import logging

from ps_service import round_machine, run_machine
from ps_service.round_runner import RoundRunner
from ps_service.storage import run_records
from ps_service.storage.existing import the_round, the_run
from ps_service.transitions import round_event, time_passed
from ps_service.troubles import Troubles

log = logging.getLogger("fed_sophia.rounds")

RETRY_S = 1.0
LONGEST_WAIT_S = 60.0


async def tick(runner: RoundRunner, troubles: Troubles | None = None) -> float:
    """Do what is due by now; give the seconds until something is due again (at most 60).

    What fails is said by `troubles` and tried again in a second; it stands in nobody else's way.
    """
    troubles = troubles or Troubles(log)
    async with runner.stores.records.read() as connection:
        rounds = await run_records.collecting_rounds(connection)
        runs = await run_records.open_runs(connection)
    now_ms = runner.clock.now_ms()
    wakes = [(run_machine.wake_ms(run.spec, run.state), run.run_id, None) for run in runs]
    closes = [(round_.state.deadline_ms, round_.run_id, round_.state.number) for round_ in rounds]
    waits_s = [LONGEST_WAIT_S]
    for due_ms, run_id, number in [*closes, *wakes]:
        if due_ms is None:
            continue
        if due_ms > now_ms:
            waits_s.append((due_ms - now_ms) / 1000)
            continue
        what = f"deadlines of {run_id}"
        try:
            await _time_has_come(runner, run_id, number)
            troubles.worked(what)
        except Exception as error:
            troubles.failed(what, error)
            waits_s.append(RETRY_S)
    return min(waits_s)


async def _time_has_come(runner: RoundRunner, run_id: str, number: int | None) -> None:
    """Step the round of this number, or the run where there is none."""
    async with runner.transition() as transition:
        run = await the_run(transition.connection, run_id)
        if number is None:
            await time_passed(transition, run)
        else:
            stored = await the_round(transition.connection, run_id, number)
            await round_event(transition, run, stored, round_machine.Tick(transition.now_ms))
