# SPDX-License-Identifier: Apache-2.0
"""The benchmark with a simulated population: what it reports must add up, and be the same for a seed."""

import math
from functools import cache

import numpy as np
import pytest

from benchmarks.populated.collection import Collection, Held, Standing
from benchmarks.populated.figures import FATES
from benchmarks.populated.policies import POLICIES, spec_for
from benchmarks.populated.population import DAY_MS, HOUR_MS, LOOK_EVERY_MIN, Population
from benchmarks.populated.simulation import Simulation
from benchmarks.population import BEGIN_MS, measure
from protocol.messages import RoundStatus, RunStatus
from ps_service.round_machine import UpdateAdmitted, WorkerLost, WorkerReturned

DEVICES, COHORT, HOURS = 1_500, 40, 24.0


class Unheard:
    """An output that nobody reads."""

    def event(self, event, text, fields) -> None: ...

    def summary(self, text, fields) -> None: ...

    def error(self, error) -> None: ...


class Certain(np.random.Generator):
    """Chance without noise: nobody declines, and work takes its median."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def standard_normal(self, size=None):
        return np.zeros(size)

    def random(self, size=None):
        return np.ones(size)


@cache
def a_day(policy: str, devices: int = DEVICES, regions: str = "world") -> tuple[Simulation, Population]:
    population = Population(devices, seed=3, regions=regions)
    population.advance(BEGIN_MS)
    population.times_present[:] = 0
    simulation = Simulation(spec_for(policy, COHORT, seed=3, hours=HOURS), population, 3, BEGIN_MS)
    simulation.run_until(BEGIN_MS + DAY_MS + 2 * HOUR_MS)
    return simulation, population


def held(policy: str) -> list[Held]:
    return a_day(policy)[0].held


async def figures(policy: str, seed: int) -> dict[str, object]:
    [found] = await measure([policy], 1_000, 30, 12.0, seed, "world", Unheard())
    fields = found.fields()
    del fields["costs"], fields["peak_rss_mb"]  # the machine's, not the population's
    return fields


# --- conservation -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_every_invited_device_ends_as_exactly_one_of_admitted_declined_lost_and_late(policy):
    assert held(policy)
    for each in held(policy):
        round_, devices = each.round, each.devices
        assert sum(devices.values()) == round_.invited
        assert devices[Standing.ADMITTED] == round_.admitted
        assert devices[Standing.DECLINED] == round_.declined
        assert devices[Standing.LOST] == round_.lost


@pytest.mark.parametrize("policy", POLICIES)
def test_a_version_has_its_target_or_a_quorum_when_nothing_more_was_to_come(policy):
    for each in held(policy):
        round_ = each.round
        assert round_.status.ended
        if round_.status is RoundStatus.ABANDONED:
            assert round_.admitted < round_.quorum
            continue
        assert round_.quorum <= round_.admitted <= round_.target
        nobody_awaited = each.devices[Standing.ASKED] == 0
        assert round_.admitted == round_.target or nobody_awaited or each.closed_ms == round_.deadline_ms


@pytest.mark.parametrize("policy", POLICIES)
def test_no_round_collects_past_its_deadline_or_before_the_round_before_has_ended(policy):
    last_ended_ms = BEGIN_MS
    for number, each in enumerate(held(policy), start=1):
        round_ = each.round
        assert round_.number == number
        assert last_ended_ms <= round_.opened_ms <= each.closed_ms <= round_.deadline_ms
        assert round_.deadline_ms <= round_.last_deadline_ms == BEGIN_MS + DAY_MS
        last_ended_ms = round_.ended_ms


@pytest.mark.parametrize("policy", POLICIES)
def test_invited_are_as_many_as_were_asked_for_and_each_counts_where_it_was_counted(policy):
    simulation, population = a_day(policy)
    rounds = [each.round for each in simulation.held]
    over_selection = spec_for(policy, COHORT, 3, HOURS).over_selection
    assert all(round_.invited <= math.ceil(round_.target * over_selection - 1e-9) for round_ in rounds)
    assert population.times_invited.sum() == sum(round_.invited for round_ in rounds)
    counted = sum(round_.admitted for round_ in rounds if round_.status is RoundStatus.COMMITTED)
    assert population.times_counted.sum() == counted
    assert simulation.run.status is RunStatus.FINISHED
    assert simulation.run.version == sum(round_.status is RoundStatus.COMMITTED for round_ in rounds)


@pytest.mark.parametrize("policy", POLICIES)
def test_devices_work_no_longer_than_they_are_there(policy):
    simulation, population = a_day(policy)
    spent_s = sum(sum(each.spent_s.values()) for each in simulation.held)
    present_s = float(population.times_present.sum()) * LOOK_EVERY_MIN * 60
    assert 0 < spent_s < present_s
    assert all(0 <= each.after_close_s <= sum(each.spent_s.values()) for each in simulation.held)


# --- the population -----------------------------------------------------------------------------


def test_a_device_that_is_lost_and_comes_back_begins_again():
    """Gone at 10 s, missed at 100 s, back at 200 s, done 20 s later."""
    population = Population(1, seed=0)
    population.starts_ms[0], population.ends_ms[0], population.work_ms[0] = 0, 10_000, 20_000
    collection = Collection(population, np.array([0]), Certain(), now_ms=0)
    population.starts_ms[0], population.ends_ms[0] = 200_000, 900_000
    events = [collection.next_event() for _ in range(3)]
    assert events == [(0, WorkerLost(100_000)), (0, WorkerReturned(200_000)), (0, UpdateAdmitted(220_000))]
    assert collection.next_ms is None


def test_a_device_that_comes_back_before_it_is_missed_is_never_lost():
    population = Population(1, seed=0)
    population.starts_ms[0], population.ends_ms[0], population.work_ms[0] = 0, 10_000, 20_000
    collection = Collection(population, np.array([0]), Certain(), now_ms=0)
    population.starts_ms[0], population.ends_ms[0] = 95_000, 900_000
    assert collection.next_event() == (0, None)
    assert collection.next_event() == (0, UpdateAdmitted(115_000))


def test_a_busy_device_does_its_earlier_work_first():
    population = Population(1, seed=0)
    population.starts_ms[0], population.ends_ms[0], population.work_ms[0] = 0, 900_000, 20_000
    population.busy_until_ms[0] = 50_000
    collection = Collection(population, np.array([0]), Certain(), now_ms=0)
    assert collection.next_event() == (0, UpdateAdmitted(70_000))


def test_more_are_there_by_night_than_by_day():
    eligible = [number for _, number in a_day("1.3-fixed", regions="one")[0].eligible]
    assert max(eligible) > 3 * min(eligible)


def test_a_run_waits_while_fewer_than_a_quorum_are_awake():
    simulation, _ = a_day("1.3-fixed", devices=200, regions="one")
    assert simulation.waited_ms > HOUR_MS
    assert any(each.round.target < COHORT for each in simulation.held), "a smaller cohort is better than none"


def test_a_round_without_a_quorum_gets_its_time_again_where_the_policy_says_so():
    simulation, _ = a_day("1.0-extended", regions="one")
    rounds = [each.round for each in simulation.held]
    assert any(round_.deadline_ms == round_.opened_ms + 2 * round_.extension_ms for round_ in rounds)


# --- the figures --------------------------------------------------------------------------------


async def test_the_same_seed_gives_the_same_figures():
    first = await figures("1.3-adaptive", seed=5)
    assert first == await figures("1.3-adaptive", seed=5)
    assert first != await figures("1.3-adaptive", seed=6)


async def test_all_work_has_a_fate():
    [found] = await measure(["1.1-fixed"], 1_000, 30, 12.0, 5, "world", Unheard())
    assert set(found.devices) == set(found.work_s) == set(FATES)
    assert 0 < found.wasted(found.work_s) < 1
    assert found.wasted(found.devices) == pytest.approx(
        1 - found.updates_a_round * found.committed / sum(found.devices.values()), rel=0.01
    )
