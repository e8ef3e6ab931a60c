# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments, to the server and to workers in turn, changes nothing.

Run follows run, for as long as there is somebody left to kill: `pytest tests/system/crash --kills 200` kills
more than the usual 20. Who is killed and after how long follows from the seed.
"""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.system.crash.conftest import ALGORITHMS, Undisturbed
from tests.system.crash.federation import Federation, a_federation
from tests.system.crash.laws import require_all_laws
from tests.system.crash.mortal import Mortal

SEED = 20240607
AT_ONCE = 0.25
"""Share of the kills that do not wait until the last victim is back at work."""
START_S = 0.5
LONGEST_S = 60.0
LONGEST_PER_KILL_S = 5.0


@dataclass(frozen=True)
class Murder:
    """One kill to come."""

    victim: Mortal
    at_once: bool
    """Whether it need not be in a new round."""
    after_s: float

    def __str__(self) -> str:
        return f"{self.victim.name} {'at once' if self.at_once else 'in a new round'}, +{self.after_s:.3f} s"


def murders(federation: Federation, kills: int, round_s: float) -> Iterator[Murder]:
    """Half of them hit the server; the moment is anywhere in a start, or in a round and a half."""
    chance = random.Random(SEED)
    in_turn = [victim for worker in federation.workers for victim in (federation.server, worker)]
    victims = list(itertools.islice(itertools.cycle(in_turn), kills))
    chance.shuffle(victims)
    for victim in victims:
        at_once = chance.random() < AT_ONCE
        yield Murder(victim, at_once, chance.uniform(0.0, START_S if at_once else 1.5 * round_s))


async def kill_until_ended(federation: Federation, run_id: str, to_come: Iterator[Murder]) -> None:
    """Carry out one murder after another, until the run has ended or nobody is to be killed any more."""
    awaited = 1
    for planned in to_come:
        run = await federation.has_opened(run_id, 1 if planned.at_once else awaited)
        await asyncio.sleep(planned.after_s)
        await planned.victim.kill_and_restart()
        federation.history.append(f"run {run_id}, round {run.round}: {planned}")
        if run.status.ended:
            return
        awaited = run.round + 1


async def test_random_kills_change_nothing(undisturbed: Undisturbed, tmp_path: Path, kills: int) -> None:
    async with a_federation(tmp_path / "killed") as federation:
        to_come = murders(federation, kills, undisturbed.round_s)
        run_ids: list[str] = []
        async with asyncio.timeout(LONGEST_S + kills * LONGEST_PER_KILL_S):
            while federation.killed < kills:
                algorithm = ALGORITHMS[len(run_ids) % len(ALGORITHMS)]
                run_ids.append(await federation.begin(f"run-{len(run_ids)}", algorithm))
                federation.start_workers()
                await kill_until_ended(federation, run_ids[-1], to_come)
                assert await federation.final_tensors(run_ids[-1]) == undisturbed.tensors[algorithm]
            await require_all_laws(federation, run_ids)
        assert federation.killed == kills
