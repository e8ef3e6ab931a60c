# SPDX-License-Identifier: Apache-2.0
"""Members of a swarm wait for one another, and none suffers by another."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from protocol.codec import Bundle
from protocol.errors import FedSophiaError, InvalidTask, NotFinite
from protocol.messages import Assignment
from tests.worker.small_server import PARAMS, training
from tests.worker.workplace import StubTrained
from worker.aside import InThread
from worker.gathering import Gathering, Part, TrainsTogether, wait_before
from worker.patience import Stopped
from worker.threads import until_ended

STATE = {"params": PARAMS}
EVER_S = 3600.0


@dataclass
class Stacks:
    """Trains what it is given, and notes who was trained with whom."""

    most: int
    fails: Callable[[Sequence[Part]], Exception | None] = lambda parts: None
    works: Callable[[threading.Event], object] = lambda stop: None
    stacks: list[list[int]] = field(default_factory=list)
    fewer_after_the_first: int | None = None

    def train(
        self, parts: Sequence[Part], state: Mapping[str, Bundle], stop: threading.Event
    ) -> Sequence[StubTrained]:
        self.stacks.append([part.member for part in parts])
        self.works(stop)
        if stop.is_set():
            raise Stopped
        error = self.fails(parts)
        if error is not None:
            raise error
        self.most = self.fewer_after_the_first or self.most
        return [StubTrained({"delta": {}}, None, num_examples=part.member) for part in parts]


class NoEvaluator:
    def train(self, *_: object) -> StubTrained:
        raise AssertionError("an evaluator trains nobody")

    def evaluate(self, *_: object) -> tuple[int, dict[str, float]]:
        return 7, {"test_accuracy": 0.5}


@dataclass
class Swarm:
    """Members at one gathering; `fewer` is what it was told of the size of its stacks."""

    gathering: Gathering
    fewer: list[int]

    def sends(self, *members: int, of_round: int = 1) -> "list[asyncio.Task[int]]":
        return [asyncio.create_task(self._trained(member, of_round)) for member in members]

    async def _trained(self, member: int, of_round: int) -> int:
        assignment = an_assignment(member, of_round)
        return (await self.gathering.member(member).train(assignment, STATE, None)).num_examples


def an_assignment(member: int, of_round: int = 1) -> Assignment:
    own = {"assignment_id": f"a-{of_round}-{member}", "slot": member, "seed": member, "deadline_ms": member}
    return training(of_round).model_copy(update=own)


@asynccontextmanager
async def a_swarm(trainer: TrainsTogether, members: int, patience_s: float = EVER_S) -> AsyncIterator[Swarm]:
    fewer: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        evaluator = InThread(NoEvaluator(), executor)
        gathering = Gathering(trainer, evaluator, executor, members, fewer.append, patience_s=patience_s)
        async with asyncio.timeout(20):
            yield Swarm(gathering, fewer)


# --- when a stack is begun -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "trained", "quiet_s", "wait_s"),
    [
        (4, 0, 0.0, 0.0),  # as many as a stack takes
        (9, 0, 0.0, 0.0),
        (3, 0, 0.0, 0.2),
        (3, 0, 0.15, 0.05),
        (3, 0, 0.3, 0.0),  # nobody has come for a moment
        (2, 8, 0.0, 0.0),  # the last two of ten
        (1, 8, 0.0, 0.2),
    ],
)
def test_a_stack_is_begun_when_it_is_full_or_all_are_there_or_nobody_has_come_for_a_moment(
    here: int, trained: int, quiet_s: float, wait_s: float
):
    found = wait_before(here, trained, members=10, most=4, quiet_s=quiet_s, patience_s=0.2)
    assert found == pytest.approx(wait_s)


async def test_stacks_are_full_and_the_last_begins_when_all_have_come():
    trainer = Stacks(most=4)
    async with a_swarm(trainer, members=10) as swarm:
        assert await asyncio.gather(*swarm.sends(*range(10))) == list(range(10))
    assert trainer.stacks == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_those_who_are_there_are_begun_with_when_nobody_else_comes():
    trainer = Stacks(most=4)
    async with a_swarm(trainer, members=10, patience_s=0.05) as swarm:
        assert await asyncio.gather(*swarm.sends(2, 5)) == [2, 5]
    assert trainer.stacks == [[2, 5]]


async def test_members_in_different_rounds_are_never_stacked():
    trainer = Stacks(most=2)
    async with a_swarm(trainer, members=8) as swarm:
        late, early = swarm.sends(0, 1, of_round=1), swarm.sends(2, 3, of_round=2)
        assert await asyncio.gather(*late, *early) == [0, 1, 2, 3]
    assert sorted(trainer.stacks) == [[0, 1], [2, 3]]


async def test_a_round_that_always_fills_a_stack_keeps_no_other_waiting():
    trainer = Stacks(most=2)
    async with a_swarm(trainer, members=100, patience_s=0.0) as swarm:
        busy = [each for _ in range(10) for each in swarm.sends(0, 1)]
        (other,) = swarm.sends(2, of_round=2)
        await asyncio.gather(*busy, other)
    assert trainer.stacks.index([2]) == 1


async def test_the_next_round_gathers_anew():
    trainer = Stacks(most=8)
    async with a_swarm(trainer, members=3) as swarm:
        for number in (1, 2, 3):
            assert await asyncio.gather(*swarm.sends(0, 1, 2, of_round=number)) == [0, 1, 2]
    assert trainer.stacks == [[0, 1, 2]] * 3


async def test_a_member_measures_by_the_evaluator():
    async with a_swarm(Stacks(most=2), members=2) as swarm:
        assert await swarm.gathering.member(1).evaluate(STATE) == (7, {"test_accuracy": 0.5})


# --- cancellation --------------------------------------------------------------------------------


class Gate:
    """Work that goes on until it is let go, or stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.may_end = threading.Event()
        self.stopped = False

    def __call__(self, stop: threading.Event) -> None:
        self._loop.call_soon_threadsafe(self.begun.set)
        for _ in range(2000):
            if stop.is_set() or self.may_end.wait(0.01):
                break
        self.stopped = stop.is_set()


async def test_who_is_cancelled_while_it_waits_is_trained_with_nobody():
    trainer = Stacks(most=3)
    async with a_swarm(trainer, members=9) as swarm:
        (leaves,) = swarm.sends(0)
        await asyncio.sleep(0)
        leaves.cancel()
        await until_ended([leaves])
        assert await asyncio.gather(*swarm.sends(1, 2, 3)) == [1, 2, 3]
    assert trainer.stacks == [[1, 2, 3]]


async def test_the_work_of_a_stack_goes_on_for_the_others_when_one_is_cancelled():
    gate = Gate()
    trainer = Stacks(most=3, works=gate)
    async with a_swarm(trainer, members=3) as swarm:
        leaves, *stay = swarm.sends(0, 1, 2)
        await gate.begun.wait()
        leaves.cancel()
        await until_ended([leaves])
        gate.may_end.set()
        assert await asyncio.gather(*stay) == [1, 2]
    assert (leaves.cancelled(), gate.stopped) == (True, False)
    assert trainer.stacks == [[0, 1, 2]]


async def test_work_that_nobody_waits_for_any_more_is_stopped_and_has_ended_when_the_last_has_left():
    gate = Gate()
    trainer = Stacks(most=3, works=gate)
    async with a_swarm(trainer, members=3) as swarm:
        everyone = swarm.sends(0, 1, 2)
        await gate.begun.wait()
        for member in everyone:
            member.cancel()
        await until_ended(everyone)
        assert all(member.cancelled() for member in everyone)
        assert gate.stopped
        gate.may_end.set()
        assert await asyncio.gather(*swarm.sends(0, 1, 2, of_round=2)) == [0, 1, 2]


# --- faults --------------------------------------------------------------------------------------


def fault_of(*faulty: int) -> Callable[[Sequence[Part]], FedSophiaError | None]:
    def fails(parts: Sequence[Part]) -> FedSophiaError | None:
        found = [part.member for part in parts if part.member in faulty]
        return NotFinite(f"the loss of {found}") if found else None

    return fails


async def test_an_error_lands_on_who_caused_it_and_on_nobody_else():
    trainer = Stacks(most=8, fails=fault_of(5))
    async with a_swarm(trainer, members=8) as swarm:
        found = await asyncio.gather(*swarm.sends(*range(8)), return_exceptions=True)
    assert [each for each in found if not isinstance(each, Exception)] == [0, 1, 2, 3, 4, 6, 7]
    assert isinstance(found[5], NotFinite)
    assert found[5].detail == "the loss of [5]"


async def test_looking_for_the_faulty_costs_a_bounded_number_of_stacks():
    trainer = Stacks(most=8, fails=fault_of(*range(8)))
    async with a_swarm(trainer, members=8) as swarm:
        found = await asyncio.gather(*swarm.sends(*range(8)), return_exceptions=True)
    assert all(isinstance(each, NotFinite) for each in found)
    assert len(trainer.stacks) == 2 * 8 - 1
    assert sum(map(len, trainer.stacks)) == 8 * 4


async def test_what_is_no_error_of_ours_is_everybodys_and_nothing_is_tried_again():
    trainer = Stacks(most=4, fails=lambda parts: LookupError("a bug"))
    async with a_swarm(trainer, members=4) as swarm:
        found = await asyncio.gather(*swarm.sends(*range(4)), return_exceptions=True)
    assert [type(each) for each in found] == [LookupError] * 4
    assert len(trainer.stacks) == 1


async def test_one_member_that_fails_alone_is_not_tried_twice():
    trainer = Stacks(most=4, fails=lambda parts: InvalidTask("no"))
    async with a_swarm(trainer, members=1) as swarm:
        (found,) = await asyncio.gather(*swarm.sends(0), return_exceptions=True)
    assert isinstance(found, InvalidTask)
    assert trainer.stacks == [[0]]


async def test_nobody_waits_for_ever_when_a_report_fails():
    def told(at_once: int) -> None:
        raise BrokenPipeError("nobody reads what is told")

    trainer = Stacks(most=4, fewer_after_the_first=2)
    with ThreadPoolExecutor(1) as executor:
        gathering = Gathering(trainer, InThread(NoEvaluator(), executor), executor, 8, told)
        async with asyncio.timeout(20):
            everyone = Swarm(gathering, []).sends(*range(8))
            found = await asyncio.gather(*everyone, return_exceptions=True)
    assert found[:4] == [0, 1, 2, 3]
    assert [type(each) for each in found[4:]] == [BrokenPipeError] * 4


async def test_a_trainer_that_gives_too_few_results_is_everybodys_error():
    class Forgetful(Stacks):
        def train(
            self, parts: Sequence[Part], state: Mapping[str, Bundle], stop: threading.Event
        ) -> Sequence[StubTrained]:
            return super().train(parts, state, stop)[:-1]

    async with a_swarm(Forgetful(most=2), members=2) as swarm:
        found = await asyncio.gather(*swarm.sends(0, 1), return_exceptions=True)
    assert any(isinstance(each, ValueError) for each in found)


# --- memory --------------------------------------------------------------------------------------


async def test_what_a_stack_gave_is_forgotten_once_everyone_has_its_own():
    given: list[weakref.ref[object]] = []

    class Giving(Stacks):
        def train(
            self, parts: Sequence[Part], state: Mapping[str, Bundle], stop: threading.Event
        ) -> Sequence[StubTrained]:
            results = super().train(parts, state, stop)
            given.extend(map(weakref.ref, results))
            return results

    async with a_swarm(Giving(most=2), members=2) as swarm:
        assert await asyncio.gather(*swarm.sends(0, 1)) == [0, 1]
        gc.collect()
        assert [each() for each in given] == [None, None]


async def test_stacks_are_smaller_and_that_is_told_once_when_the_trainer_takes_fewer():
    trainer = Stacks(most=4, fewer_after_the_first=2)
    async with a_swarm(trainer, members=8) as swarm:
        assert await asyncio.gather(*swarm.sends(*range(8))) == list(range(8))
        assert swarm.fewer == [2]
    assert trainer.stacks == [[0, 1, 2, 3], [4, 5], [6, 7]]
