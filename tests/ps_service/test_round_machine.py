# SPDX-License-Identifier: Apache-2.0
"""One round's fate, from counts alone."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import RoundStatus
from ps_service.round_machine import (
    Aggregated,
    AggregationFailed,
    Cancelled,
    CloseNow,
    Round,
    RoundEffect,
    Tick,
    UpdateAdmitted,
    UpdatesRefused,
    UpdatesWaited,
    WorkerDeclined,
    WorkerLost,
    WorkerReturned,
    WorkersInvited,
    step,
)

DEADLINE_MS = 1_000


def a_round(*, invited=3, quorum=2, **changes) -> Round:
    fixed = {
        "number": 1,
        "base_version": 0,
        "invited": invited,
        "target": invited,
        "quorum": quorum,
        "opened_ms": 0,
        "deadline_ms": DEADLINE_MS,
        "now_ms": 0,
    }
    return Round(**fixed | changes)


def after(round_, *events):
    for event in events:
        round_, _ = step(round_, event)
    return round_


def test_the_last_invited_worker_closes_the_round():
    round_ = after(a_round(), UpdateAdmitted(1), UpdateAdmitted(2))
    assert round_.status is RoundStatus.COLLECTING
    round_, effects = step(round_, UpdateAdmitted(3))
    assert (round_.status, effects) == (RoundStatus.AGGREGATING, (RoundEffect.AGGREGATE,))


def test_a_straggler_is_left_behind_once_the_deadline_finds_a_quorum():
    round_ = after(a_round(), UpdateAdmitted(1), UpdateAdmitted(2), Tick(DEADLINE_MS))
    assert round_.status is RoundStatus.AGGREGATING


def test_a_deadline_without_a_quorum_may_be_extended_a_number_of_times():
    round_ = a_round(extension_ms=500, extensions_left=1)
    round_, effects = step(round_, Tick(DEADLINE_MS + 7))
    assert (round_.status, effects) == (RoundStatus.COLLECTING, (RoundEffect.RESCHEDULE,))
    assert (round_.deadline_ms, round_.extensions_left) == (DEADLINE_MS + 507, 0)
    assert after(round_, Tick(DEADLINE_MS + 507)).status is RoundStatus.ABANDONED


def test_no_extension_goes_beyond_the_last_deadline():
    round_ = a_round(extension_ms=500, extensions_left=5, last_deadline_ms=DEADLINE_MS + 300)
    round_ = after(round_, Tick(DEADLINE_MS + 7))
    assert (round_.deadline_ms, round_.extensions_left) == (DEADLINE_MS + 300, 4)
    assert after(round_, Tick(DEADLINE_MS + 299)).status is RoundStatus.COLLECTING
    assert after(round_, Tick(DEADLINE_MS + 300)).status is RoundStatus.ABANDONED


def test_a_round_knows_when_its_last_update_came_and_whether_it_ran_out_of_time():
    round_ = after(a_round(), UpdateAdmitted(5), WorkerDeclined(8))
    assert (round_.last_admitted_ms, round_.out_of_time) == (5, False)
    assert after(round_, Tick(DEADLINE_MS)).out_of_time
    assert not after(a_round(), WorkerDeclined(1), WorkerDeclined(2)).out_of_time
    assert not after(round_, UpdateAdmitted(DEADLINE_MS), AggregationFailed(DEADLINE_MS, "?")).out_of_time


def test_a_round_that_all_have_answered_is_not_extended():
    round_ = a_round(extension_ms=500, extensions_left=1)
    assert after(round_, *[WorkerDeclined(1)] * 3).status is RoundStatus.ABANDONED


def test_the_first_so_many_of_those_invited_close_the_round():
    round_ = a_round(invited=5, target=2)
    assert after(round_, UpdateAdmitted(1), UpdateAdmitted(2)).status is RoundStatus.AGGREGATING


def test_a_deadline_without_a_quorum_abandons_the_round_and_says_why():
    round_ = after(a_round(), UpdateAdmitted(1), Tick(DEADLINE_MS))
    assert round_.status is RoundStatus.ABANDONED
    assert round_.reason == "the deadline passed with 1 updates; the quorum is 2 of 3"
    assert round_.ended_ms == DEADLINE_MS


def test_a_tick_before_the_deadline_changes_nothing_but_the_time():
    assert after(a_round(), Tick(DEADLINE_MS - 1)) == a_round(now_ms=DEADLINE_MS - 1)


def test_declines_that_leave_a_quorum_are_waited_past():
    round_ = after(a_round(), WorkerDeclined(1), UpdateAdmitted(2), UpdateAdmitted(3))
    assert round_.status is RoundStatus.AGGREGATING


def test_declines_that_leave_no_quorum_abandon_at_once():
    round_ = after(a_round(), WorkerDeclined(1), WorkerDeclined(2))
    assert round_.status is RoundStatus.ABANDONED


def test_closing_now_needs_a_quorum():
    round_ = after(a_round(), UpdateAdmitted(1))
    assert after(round_, CloseNow(2)).status is RoundStatus.COLLECTING
    assert after(round_, UpdateAdmitted(2), CloseNow(3)).status is RoundStatus.AGGREGATING


def test_an_aggregate_commits_and_a_second_one_changes_nothing():
    closed = after(a_round(invited=1, quorum=1), UpdateAdmitted(1))
    committed, effects = step(closed, Aggregated(5))
    assert (committed.status, effects) == (RoundStatus.COMMITTED, (RoundEffect.END,))
    assert step(committed, Aggregated(6)) == (committed, ())


def test_a_failed_aggregation_abandons_and_says_why():
    closed = after(a_round(invited=1, quorum=1), UpdateAdmitted(1))
    assert after(closed, AggregationFailed(2, "a sum overflowed")).reason == (
        "aggregation failed: a sum overflowed"
    )


def test_an_aggregate_nobody_asked_for_changes_nothing():
    assert after(a_round(), Aggregated(0), AggregationFailed(0, "?")) == a_round()


@pytest.mark.parametrize("events", [[], [UpdateAdmitted(1), UpdateAdmitted(1), UpdateAdmitted(1)]])
def test_a_cancelled_run_abandons_a_round_that_collects_or_aggregates(events):
    round_, effects = step(after(a_round(), *events), Cancelled(9))
    assert (round_.status, effects) == (RoundStatus.ABANDONED, (RoundEffect.END,))


# --- lost workers -------------------------------------------------------------------------------


def test_nobody_waits_for_the_lost_once_a_quorum_is_held():
    round_ = after(a_round(), UpdateAdmitted(1), UpdateAdmitted(2))
    round_, effects = step(round_, WorkerLost(3))
    assert (round_.status, effects) == (RoundStatus.AGGREGATING, (RoundEffect.AGGREGATE,))
    assert (round_.admitted, round_.lost) == (2, 1)


def test_one_who_may_still_answer_is_waited_for_whoever_is_lost():
    round_ = after(a_round(), UpdateAdmitted(1), UpdateAdmitted(2))
    round_ = replace(round_, invited=4, target=4)
    assert after(round_, WorkerLost(3)).status is RoundStatus.COLLECTING
    assert after(round_, WorkerLost(3), WorkerDeclined(4)).status is RoundStatus.AGGREGATING


def test_the_lost_are_waited_for_until_the_deadline_while_a_quorum_is_missing():
    round_ = after(a_round(), UpdateAdmitted(1), WorkerLost(2), WorkerLost(3), Tick(DEADLINE_MS - 1))
    assert round_.status is RoundStatus.COLLECTING
    assert after(round_, Tick(DEADLINE_MS)).status is RoundStatus.ABANDONED


def test_one_who_returns_in_time_makes_the_quorum():
    round_ = after(a_round(), UpdateAdmitted(1), WorkerLost(2), WorkerLost(3))
    round_ = after(round_, WorkerReturned(4), UpdateAdmitted(4))
    assert (round_.status, round_.admitted, round_.lost) == (RoundStatus.AGGREGATING, 2, 1)


def test_a_round_whose_workers_are_all_lost_is_extended_like_any_other():
    round_ = after(a_round(extension_ms=500, extensions_left=1), *[WorkerLost(1)] * 3, Tick(DEADLINE_MS))
    assert (round_.status, round_.deadline_ms) == (RoundStatus.COLLECTING, DEADLINE_MS + 500)


# --- buffered rounds ----------------------------------------------------------------------------


def a_buffer(*, target=3, quorum=2, **changes) -> Round:
    return a_round(invited=0, target=target, quorum=quorum, concurrency=8, **changes)


def test_a_buffer_waits_for_its_target_whoever_declines_or_is_lost():
    round_ = after(a_buffer(), WorkersInvited(0, 2), UpdateAdmitted(1, 0), UpdateAdmitted(2, 4))
    round_ = after(round_, *[WorkerDeclined(3)] * 5, *[WorkerLost(3)] * 5)
    assert (round_.status, round_.invited) == (RoundStatus.COLLECTING, 2)
    round_ = after(round_, UpdateAdmitted(4, 0))
    assert (round_.status, round_.staleness) == (RoundStatus.AGGREGATING, (2, 0, 0, 0, 1))


def test_a_buffer_that_its_deadline_finds_with_a_quorum_is_closed_by_it():
    round_ = after(a_buffer(), UpdateAdmitted(1, 0), UpdateAdmitted(2, 0), Tick(DEADLINE_MS))
    assert round_.status is RoundStatus.AGGREGATING
    round_ = after(a_buffer(), UpdateAdmitted(1, 0), UpdateAdmitted(2, 0, again=True), Tick(DEADLINE_MS))
    assert (round_.status, round_.out_of_time) == (RoundStatus.ABANDONED, True)
    assert round_.reason == "the deadline passed with 2 updates of 1 workers; the quorum is 2"


def test_a_buffer_is_filled_by_no_fewer_workers_than_the_quorum():
    round_ = after(a_buffer(), UpdateAdmitted(1, 0), *[UpdateAdmitted(2, 0, again=True)] * 7)
    assert (round_.status, round_.admitted, round_.contributors) == (RoundStatus.COLLECTING, 8, 1)
    assert after(round_, UpdateAdmitted(3, 0)).status is RoundStatus.AGGREGATING


def test_what_waited_for_a_buffer_may_be_more_than_its_target():
    round_, effects = step(a_buffer(target=2), UpdatesWaited(7, (0, 1, 1, 5), 2))
    assert (round_.admitted, round_.staleness) == (4, (1, 2, 0, 0, 0, 1))
    assert (round_.last_admitted_ms, effects) == (7, (RoundEffect.AGGREGATE,))


@pytest.mark.parametrize(("workers", "share"), [(1, 0.125), (2, 0.25), (8, 1.0), (12, 1.0)])
def test_the_share_is_that_of_the_workers_who_train(workers, share):
    round_ = after(a_buffer(target=20), UpdatesWaited(1, (0,) * 12, workers))
    assert round_.share == share
    assert a_round().share == 1.0


# --- what is found not good when it is to be combined -------------------------------------------


def refused(round_, now_ms, count):
    """So many of the updates that the round has are not good, the stalest, each of a worker of its own."""
    count = min(count, round_.admitted)
    stale = [each for each, number in enumerate(round_.staleness) for _ in range(number)]
    left = max(round_.contributors - count, 0) if round_.buffered else 0
    return UpdatesRefused(now_ms, count, tuple(stale[len(stale) - count :]) if round_.buffered else (), left)


def test_a_round_goes_on_with_the_good_updates_if_they_are_a_quorum():
    round_ = after(a_round(), *[UpdateAdmitted(1)] * 3)
    round_, effects = step(round_, refused(round_, 5, 1))
    assert (round_.status, round_.admitted, round_.refused, effects) == (RoundStatus.AGGREGATING, 2, 1, ())
    round_, effects = step(round_, refused(round_, 6, 1))
    assert (round_.status, effects) == (RoundStatus.ABANDONED, (RoundEffect.END,))
    assert round_.reason == "2 updates were not good, 1 are left; the quorum is 2"


def test_a_buffer_counts_the_workers_that_are_left_and_is_not_out_of_time_for_it():
    round_ = after(a_buffer(), UpdateAdmitted(1, 0), UpdateAdmitted(2, 4), Tick(DEADLINE_MS))
    round_, _ = step(round_, refused(round_, DEADLINE_MS + 1, 1))
    assert (round_.status, round_.staleness) == (RoundStatus.ABANDONED, (1, 0, 0, 0, 0))
    assert round_.reason == "1 updates were not good, 1 are left of 1 workers; the quorum is 2"
    assert not round_.out_of_time


def test_nothing_is_refused_late_of_a_round_that_collects():
    round_ = after(a_round(), UpdateAdmitted(1))
    assert step(round_, refused(round_, 2, 1)) == (replace(round_, now_ms=2), ())


# --- laws ---------------------------------------------------------------------------------------

times = st.integers(0, 2 * DEADLINE_MS)
events = st.one_of(
    *(times.map(kind) for kind in (UpdateAdmitted, WorkerDeclined, Tick, CloseNow, Aggregated, Cancelled)),
    *(times.map(kind) for kind in (WorkerLost, WorkerReturned)),
    times.map(lambda now_ms: AggregationFailed(now_ms, "it broke")),
)
rounds = st.integers(1, 6).flatmap(
    lambda invited: st.integers(1, invited).map(lambda quorum: a_round(invited=invited, quorum=quorum))
)
buffers = st.integers(1, 6).flatmap(
    lambda target: st.integers(1, target).map(lambda quorum: a_buffer(target=target, quorum=quorum))
)
events_of_buffers = st.one_of(
    events,
    st.builds(UpdateAdmitted, times, st.integers(0, 5), st.booleans()),
    st.lists(st.integers(0, 5), max_size=4).flatmap(
        lambda each: st.builds(UpdatesWaited, times, st.just(tuple(each)), st.integers(0, len(each)))
    ),
    st.builds(WorkersInvited, times, st.integers(1, 4)),
)
REFUSALS = st.tuples(times, st.integers(1, 4))
ORDER = [RoundStatus.COLLECTING, RoundStatus.AGGREGATING, RoundStatus.COMMITTED, RoundStatus.ABANDONED]


@given(st.one_of(rounds, buffers), st.lists(events_of_buffers | REFUSALS, max_size=20))
def test_laws_that_hold_whatever_happens_in_whatever_order(round_, happening):
    ends = aggregates = 0
    for event in happening:
        before = round_
        if isinstance(event, tuple):
            event = refused(round_, *event)
        round_, effects = step(round_, event)
        assert min(round_.admitted, *round_.staleness, 0) == 0
        ends += effects.count(RoundEffect.END)
        aggregates += effects.count(RoundEffect.AGGREGATE)
        if before.status.ended:
            assert (round_, effects) == (before, ())  # nothing after the end
        assert round_.now_ms >= before.now_ms  # time does not run backwards
        assert ORDER.index(round_.status) >= ORDER.index(before.status)
        if isinstance(event, Tick) and event.now_ms >= round_.deadline_ms:
            assert round_.status is not RoundStatus.COLLECTING  # nobody collects past the deadline
        if round_.status in (RoundStatus.AGGREGATING, RoundStatus.COMMITTED):
            assert round_.has_quorum
    assert (round_.reason is not None) == (round_.status is RoundStatus.ABANDONED)
    assert (round_.ended_ms is not None) == round_.status.ended
    assert ends == round_.status.ended
    assert aggregates <= 1


counts = st.integers(0, 6)


@given(rounds, counts, counts, counts, st.randoms(use_true_random=False))
def test_the_order_of_what_is_counted_changes_nothing(
    round_, admitted, declined, lost, shuffle: random.Random
):
    kinds = [UpdateAdmitted] * admitted + [WorkerDeclined] * declined + [WorkerLost] * lost
    happening = [kind(5) for kind in kinds[: round_.invited]]
    shuffled = list(happening)
    shuffle.shuffle(shuffled)
    one, other = after(round_, *happening), after(round_, *shuffled)
    assert one.status is other.status
    assert one.admitted == other.admitted or one.status is RoundStatus.ABANDONED  # ended before the last
    assert one == other or one.status.ended


@given(rounds, counts)
def test_quorum_and_deadline_alone_decide_a_round_of_admissions(round_, admitted):
    round_ = replace(round_, target=round_.invited)
    admitted = min(admitted, round_.invited)
    ended = after(round_, *[UpdateAdmitted(1)] * admitted, Tick(DEADLINE_MS))
    expected = RoundStatus.AGGREGATING if admitted >= round_.quorum else RoundStatus.ABANDONED
    assert ended.status is expected


def events_of_workers(invited, what_they_do):
    """What the machine hears of it, as the shell has it: one answer a worker, its return before that."""
    state = dict.fromkeys(range(invited), "awaited")
    for worker, what, now_ms in what_they_do:
        was = state.get(worker % invited)
        if was == "lost" and what != "falls silent":
            state[worker % invited] = "awaited"
            yield WorkerReturned(now_ms)
        if was != "answered" and what in ("sends", "declines"):
            state[worker % invited] = "answered"
            yield UpdateAdmitted(now_ms) if what == "sends" else WorkerDeclined(now_ms)
        if was == "awaited" and what == "falls silent":
            state[worker % invited] = "lost"
            yield WorkerLost(now_ms)


doings = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["sends", "declines", "falls silent", "returns"]), times),
    max_size=30,
)


@given(rounds, st.integers(0, 2), doings)
def test_laws_of_workers_that_fall_silent_and_return_whenever_they_like(round_, extensions, what_they_do):
    round_ = replace(round_, extension_ms=DEADLINE_MS, extensions_left=extensions)
    for event in events_of_workers(round_.invited, what_they_do):
        before = round_
        round_, _ = step(round_, event)
        assert round_.lost >= 0
        assert round_.admitted + round_.declined + round_.lost <= round_.invited
        if isinstance(event, WorkerLost | WorkerReturned) and round_.now_ms < before.deadline_ms:
            assert round_.status is before.status or isinstance(event, WorkerLost)
            assert round_.status is not RoundStatus.ABANDONED or before.status is RoundStatus.ABANDONED
        if round_.status is RoundStatus.AGGREGATING and before.status is RoundStatus.COLLECTING:
            assert round_.admitted >= round_.quorum
            settled = round_.admitted + round_.declined + round_.lost >= round_.invited
            assert settled or round_.now_ms >= before.deadline_ms, "it closed on somebody who may answer"


@given(rounds, doings)
def test_to_fall_silent_and_return_changes_nothing_unless_the_round_closed_meanwhile(round_, what_they_do):
    round_ = after(round_, *events_of_workers(round_.invited, what_they_do))
    silent = after(round_, WorkerLost(round_.now_ms))
    if silent.status is round_.status:
        assert after(silent, WorkerReturned(round_.now_ms)) == round_
