# SPDX-License-Identifier: Apache-2.0
"""A run's life: when rounds open, who is invited, how long they may take, when it is over."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import RunSpec, RunStatus, parse
from ps_service import run_machine
from ps_service.round_length import round_length_ms
from ps_service.run_machine import (
    CancelRound,
    MetricsReported,
    OpenRound,
    RoundAbandoned,
    RoundCommitted,
    Run,
    RunCancelled,
    RunPaused,
    RunResumed,
    Tick,
    WorkersChanged,
    wake_ms,
)
from ps_service.sampling import assignment_seed, sample

ALL = (0, 1, 2)
OPEN = Run(status=RunStatus.RUNNING, round=1, round_open=True, started_ms=0)


def a_spec(**changes) -> RunSpec:
    fixed = {
        "name": "run",
        "task": "digits",
        "algorithm": "fedavg",
        "model": [{"name": "w", "shape": [2]}],
        "params_digest": "ab" * 32,
        "seed": 7,
        "rounds": 2,
        "cohort_size": 3,
        "quorum": 2,
        "deadline_s": 1,
        "max_abandoned_rounds": 2,
    }
    return parse(RunSpec, fixed | changes)


SPEC = a_spec()


def after(run, *events, spec=SPEC):
    for event in events:
        run, _ = run_machine.step(spec, run, event)
    return run


def step(run, event, spec=SPEC):
    return run_machine.step(spec, run, event)


# --- opening ------------------------------------------------------------------------------------


def test_the_first_round_waits_for_a_whole_cohort():
    assert step(Run(), WorkersChanged(5, (0, 1))) == (Run(), ())
    run, [opening] = step(Run(), WorkersChanged(5, ALL))
    assert (run.status, run.round, run.started_ms) == (RunStatus.RUNNING, 1, 5)
    assert opening == OpenRound(
        1,
        0,
        ALL,
        target=3,
        quorum=2,
        opened_ms=5,
        deadline_ms=1_005,
        last_deadline_ms=None,
        extensions=0,
        workers=3,
        partial=False,
        concurrency=None,
    )


def test_a_run_may_wait_for_more_workers_than_a_cohort():
    spec = a_spec(min_workers=5)
    assert step(Run(), WorkersChanged(5, ALL), spec)[1] == ()
    _, [opening] = step(Run(), WorkersChanged(5, (0, 1, 2, 3, 4)), spec)
    assert (len(opening.slots), opening.workers, opening.partial) == (3, 5, True)


def test_workers_who_come_while_a_round_is_open_change_nothing():
    assert step(OPEN, WorkersChanged(6, (0, 1, 2, 3))) == (OPEN, ())


def test_a_committed_round_makes_a_version_and_opens_the_next():
    run, [opening] = step(OPEN, RoundCommitted(9, ALL, 9))
    assert (run.version, opening.number, opening.base_version) == (1, 2, 1)


def test_later_rounds_go_on_with_a_quorum_and_wait_below_it():
    with_two, [opening] = step(OPEN, RoundCommitted(9, (0, 1), 9))
    assert (with_two.status, opening.slots, opening.target) == (RunStatus.RUNNING, (0, 1), 2)
    with_one, effects = step(OPEN, RoundCommitted(9, (0,), 9))
    assert (with_one.status, effects) == (RunStatus.WAITING, ())
    again, [_] = step(with_one, WorkersChanged(10, (0, 3)))
    assert again.round == 2


def test_a_fraction_of_the_workers_is_rounded_up():
    spec = a_spec(cohort_size=None, cohort_fraction=0.3, min_workers=4)
    for eligible, target in ((4, 2), (10, 3), (11, 4)):
        _, [opening] = step(Run(), WorkersChanged(0, tuple(range(eligible))), spec)
        assert (opening.target, len(opening.slots)) == (target, target)


def test_more_are_invited_than_wanted_as_far_as_there_are_any():
    spec = a_spec(over_selection=1.5)
    for eligible, invited in ((3, 3), (4, 4), (20, 5)):
        _, [opening] = step(Run(), WorkersChanged(0, tuple(range(eligible))), spec)
        assert (opening.target, len(opening.slots)) == (3, invited)


# --- deadlines ----------------------------------------------------------------------------------


def test_an_adaptive_deadline_is_the_median_and_so_many_deviations():
    """Lengths 100, 200, 300, 400 ms: median 250, deviations 150 50 50 150, their median 100; 250 + 4·100."""
    spec = a_spec(adaptive_deadline={"spread": 4.0, "floor_s": 0.1, "ceiling_s": 10.0})
    assert round_length_ms(spec, (100, 400, 200, 300)) == 650


@pytest.mark.parametrize(("lengths", "length_ms"), [((), 1_000), ((5, 5), 1_000), ((5, 5, 5), 100)])
def test_an_adaptive_deadline_begins_fixed_and_keeps_between_floor_and_ceiling(lengths, length_ms):
    spec = a_spec(adaptive_deadline={"floor_s": 0.1, "ceiling_s": 0.3})
    assert round_length_ms(spec, lengths) == length_ms
    assert round_length_ms(spec, (9_000,) * 3) == 300


def test_rounds_that_all_took_alike_leave_the_next_some_room():
    """Median 1000, no deviation: a twentieth of the median, 4 times; with k = 0 the median it is."""
    for spread, length_ms in ((4.0, 1_200), (0.0, 1_000)):
        spec = a_spec(adaptive_deadline={"spread": spread, "floor_s": 0.1, "ceiling_s": 10.0})
        assert round_length_ms(spec, (1_000,) * 5) == length_ms


def test_a_round_that_ran_out_of_time_doubles_the_next_until_one_fits_again():
    spec = a_spec(rounds=99, max_abandoned_rounds=9, adaptive_deadline={"floor_s": 0.1, "ceiling_s": 3.0})
    run = replace(OPEN, round_lengths_ms=(1_000,) * 3)
    out_of_time = RoundAbandoned(0, ALL, "the deadline passed", out_of_time=True)
    run, [opening] = step(run, RoundAbandoned(0, ALL, "all declined"), spec)
    assert opening.deadline_ms == 1_200
    for length_ms in (2_400, 3_000, 3_000, 3_000):
        run, [opening] = step(run, out_of_time, spec)
        assert opening.deadline_ms == length_ms
    run, [opening] = step(run, RoundCommitted(0, ALL, 2_000), spec)
    assert opening.deadline_ms == 3_000, "it was too long for the deadline that the lengths give"
    run, [opening] = step(run, RoundCommitted(0, ALL, 1_100), spec)
    assert opening.deadline_ms < 2_000


def slowest(round_number, factor):
    """When the last of some workers answers, in ms: not twice the same."""
    return round(factor * (1_000 + 37 * (round_number * 7919 % 11)))


def deadlines(spec, rounds, factor_of):
    """The lengths a run gives its rounds when the workers need so long, and those that ran out of it."""
    run, given, abandoned = replace(OPEN, round_lengths_ms=()), [], []
    length_ms = round(spec.deadline_s * 1000)
    for number in range(rounds):
        needed_ms = slowest(number, factor_of(number))
        if needed_ms <= length_ms:
            event = RoundCommitted(0, ALL, needed_ms)
        else:
            event = RoundAbandoned(0, ALL, "the deadline passed", out_of_time=True)
            abandoned.append(number)
        run, [opening] = step(run, event, spec)
        length_ms = opening.deadline_ms
        given.append(length_ms)
    return given, abandoned


@pytest.mark.parametrize(("factor", "abandoned_at_most"), [(1.1, 1), (1.5, 2), (3.0, 3), (10.0, 5)])
def test_an_adaptive_deadline_follows_workers_that_all_become_slower(factor, abandoned_at_most):
    spec = a_spec(rounds=999, deadline_s=60, adaptive_deadline={}, max_abandoned_rounds=9)
    given, abandoned = deadlines(spec, 120, lambda number: factor if number > 40 else 1)
    assert len([number for number in abandoned if number > 40]) <= abandoned_at_most
    assert factor * 1_370 <= given[-1] <= factor * 2_500


def test_an_adaptive_deadline_follows_workers_that_become_faster():
    spec = a_spec(rounds=999, deadline_s=60, adaptive_deadline={"floor_s": 0.01}, max_abandoned_rounds=9)
    given, abandoned = deadlines(spec, 120, lambda number: 0.1 if number > 40 else 1)
    assert max(abandoned, default=0) <= 40
    assert given[-1] <= 250


def test_a_fraction_of_the_few_who_are_left_is_still_a_quorum():
    spec = a_spec(cohort_size=None, cohort_fraction=0.1, min_workers=20, quorum=2)
    run, [opening] = step(Run(), WorkersChanged(0, tuple(range(20))), spec)
    assert (opening.target, opening.quorum) == (2, 2)
    _, [opening] = step(run, RoundAbandoned(9, (3, 5), "it rained"), spec)
    assert (opening.target, opening.quorum, opening.slots) == (2, 2, (3, 5))


def test_only_the_last_rounds_are_remembered():
    run = OPEN
    for number in range(50):
        run = after(replace(run, round_open=True), RoundCommitted(number, (), number), spec=a_spec(rounds=99))
    assert run.round_lengths_ms == tuple(range(30, 50))


def test_no_round_outlasts_the_run():
    spec = a_spec(max_duration_s=1.5, max_extensions=5)
    run, [first] = step(Run(), WorkersChanged(1_000, ALL), spec)
    assert (first.deadline_ms, first.last_deadline_ms, first.extensions) == (2_000, 2_500, 5)
    run, [second] = step(run, RoundCommitted(2_200, ALL, 1_200), spec)
    assert second.deadline_ms == 2_500
    run, effects = step(run, RoundAbandoned(2_500, ALL, "nobody came"), spec)
    assert (run.status, effects) == (RunStatus.FINISHED, ())
    assert run.reason == "max_duration_s (1.5) has passed"


# --- the end ------------------------------------------------------------------------------------


def test_the_last_version_finishes_the_run():
    run, effects = step(replace(OPEN, version=1), RoundCommitted(9, ALL, 9))
    assert (run.status, run.ended_ms, effects) == (RunStatus.FINISHED, 9, ())


def test_too_many_abandoned_rounds_in_a_row_fail_the_run_and_a_committed_one_forgives():
    spec = a_spec(rounds=9)
    rained = RoundAbandoned(1, ALL, "nobody came")
    run = after(OPEN, rained, RoundCommitted(2, ALL, 1), rained, spec=spec)
    assert run.status is RunStatus.RUNNING
    run, effects = step(run, rained, spec)
    assert (run.status, effects) == (RunStatus.FAILED, ())
    assert run.reason == "2 rounds in a row were abandoned; the last because nobody came"


def test_a_cancelled_run_cancels_its_round_and_then_nothing_more():
    run, effects = step(OPEN, RunCancelled(3))
    assert (run.status, effects) == (RunStatus.CANCELLED, (CancelRound(),))
    assert step(run, RoundAbandoned(4, ALL, "cancelled")) == (run, ())


def test_a_target_metric_holds_the_next_round_until_it_is_known():
    spec = a_spec(target_metric={"name": "test_accuracy", "at_least": 0.8, "wait_s": 10})
    run, effects = step(OPEN, RoundCommitted(100, ALL, 100), spec)
    assert (effects, wake_ms(spec, run)) == ((), 10_100)
    assert step(run, Tick(10_099, ALL), spec) == (run, ())
    _, [opening] = step(run, MetricsReported(200, ALL, 1, {"test_accuracy": 0.79}), spec)
    assert opening.number == 2
    _, [opening] = step(run, Tick(10_100, ALL), spec)
    assert opening.number == 2
    ended, effects = step(run, MetricsReported(200, ALL, 1, {"test_accuracy": 0.8}), spec)
    assert (ended.status, effects) == (RunStatus.FINISHED, ())
    assert ended.reason == "test_accuracy reached 0.8 with version 1"


def test_a_metric_that_comes_late_ends_the_run_all_the_same():
    spec = a_spec(target_metric={"name": "test_loss", "at_most": 0.5}, rounds=9)
    run = replace(OPEN, version=3, round=4)
    still, effects = step(run, MetricsReported(5, ALL, 2, {"test_loss": 0.6, "test_accuracy": 0.1}), spec)
    assert (still, effects) == (run, ())
    ended, effects = step(run, MetricsReported(5, ALL, 2, {"test_loss": 0.4}), spec)
    assert (ended.status, effects) == (RunStatus.FINISHED, (CancelRound(),))


# --- pausing ------------------------------------------------------------------------------------


def test_a_paused_run_ends_its_round_and_opens_no_other_until_it_is_resumed():
    paused = after(OPEN, RunPaused(1))
    committed, effects = step(paused, RoundCommitted(9, ALL, 9))
    assert (committed.status, committed.version, effects) == (RunStatus.PAUSED, 1, ())
    assert step(committed, WorkersChanged(10, ALL)) == (committed, ())
    resumed, [opening] = step(committed, RunResumed(20, ALL))
    assert (resumed.status, opening.number) == (RunStatus.RUNNING, 2)


def test_a_run_resumed_while_its_round_is_open_goes_on_with_that_round():
    resumed, effects = step(after(OPEN, RunPaused(1)), RunResumed(2, ALL))
    assert (resumed, effects) == (OPEN, ())


def test_a_paused_run_that_waited_for_a_metric_is_not_woken_for_it():
    """A time to wake that has passed and changes nothing would be asked for again at once, for ever."""
    spec = a_spec(target_metric={"name": "loss", "at_most": 0.1, "wait_s": 10}, max_duration_s=60)
    paused = after(OPEN, RoundCommitted(100, ALL, 100), RunPaused(200), spec=spec)
    assert wake_ms(spec, paused) == 60_000
    _, [opening] = step(paused, RunResumed(20_000, ALL), spec)
    assert opening.number == 2


def test_resuming_what_is_not_paused_changes_nothing():
    assert step(OPEN, RunResumed(2, ALL)) == (OPEN, ())


# --- sampling -----------------------------------------------------------------------------------

slots_strategy = st.lists(st.integers(0, 200), unique=True, max_size=30).map(tuple)


@given(st.integers(0, 2**63 - 1), st.integers(1, 1_000), slots_strategy, st.integers(1, 40), st.randoms())
def test_sampling_depends_on_seed_round_and_slots_alone(seed, number, slots, size, shuffle):
    chosen = sample(seed, number, slots, size)
    shuffled = list(slots)
    shuffle.shuffle(shuffled)
    assert sample(seed, number, tuple(shuffled), size) == chosen
    assert chosen == tuple(sorted(set(chosen)))
    assert set(chosen) <= set(slots)
    assert len(chosen) == min(size, len(slots))


def test_every_slot_is_invited_sooner_or_later():
    invited = {slot for number in range(1, 60) for slot in sample(1, number, tuple(range(20)), 3)}
    assert invited == set(range(20))


@given(st.integers(0, 2**63 - 1), st.integers(1, 10**6), st.integers(0, 10**5))
def test_training_seeds_fit_their_message_and_differ_between_neighbours(seed, number, slot):
    here = assignment_seed(seed, number, slot)
    assert 0 <= here < 2**63
    assert len({here, assignment_seed(seed, number + 1, slot), assignment_seed(seed, number, slot + 1)}) == 3


# --- asynchronous runs --------------------------------------------------------------------------

BUFFERED = a_spec(asynchronous={"concurrency": 5}, min_workers=3)


def test_the_first_buffer_waits_for_the_workers_awaited_and_invites_nobody_itself():
    assert step(Run(), WorkersChanged(5, (0, 1)), BUFFERED) == (Run(), ())
    _, [opening] = step(Run(), WorkersChanged(5, ALL), BUFFERED)
    assert (opening.slots, opening.target, opening.partial) == ((), 3, True)
    assert opening.concurrency == 3, "no more can train than there are"


def test_later_buffers_go_on_with_as_many_workers_as_a_version_needs():
    run = after(OPEN, RoundCommitted(9, (1, 2), 4), spec=BUFFERED)
    assert (run.status, run.round_open, run.round) == (RunStatus.RUNNING, True, 2)
    assert after(OPEN, RoundCommitted(9, (2,), 4), spec=BUFFERED).status is RunStatus.WAITING


def test_no_buffer_waits_for_a_metric():
    spec = a_spec(asynchronous={}, target_metric={"name": "loss", "at_most": 0.1})
    run = after(OPEN, RoundCommitted(9, ALL, 4), spec=spec)
    assert (run.round_open, run.metric_until_ms) == (True, None)
    assert after(run, MetricsReported(10, ALL, 1, {"loss": 0.0}), spec=spec).status is RunStatus.FINISHED


# --- laws ---------------------------------------------------------------------------------------

specs = st.builds(
    lambda over_selection, asynchronous, adaptive_deadline, **changes: a_spec(
        rounds=4,
        adaptive_deadline=None if asynchronous else adaptive_deadline,
        over_selection=1.0 if asynchronous else over_selection,
        asynchronous={"concurrency": asynchronous} if asynchronous else None,
        **changes,
    ),
    over_selection=st.sampled_from([1.0, 1.4]),
    asynchronous=st.sampled_from([None, None, 1, 4]),
    max_extensions=st.integers(0, 2),
    adaptive_deadline=st.sampled_from([None, {"floor_s": 0.5, "ceiling_s": 2.0}]),
    target_metric=st.sampled_from([None, {"name": "loss", "at_most": 0.1, "wait_s": 0.003}]),
    max_duration_s=st.sampled_from([None, 0.02]),
)
WHAT = ["workers", "commit", "abandon", "measured", "reached", "tick", "pause", "resume", "cancel"]


@given(specs, st.lists(st.tuples(st.sampled_from(WHAT), slots_strategy, st.integers(-3, 5)), max_size=40))
def test_laws_that_hold_whatever_happens_in_whatever_order_and_however_the_clock_jumps(spec, happening):
    """The shell reports the end of a round only while one is open: so does this test."""
    run, is_open, now_ms = Run(), False, 1_000
    for what, slots, passed_ms in happening:
        if what in ("commit", "abandon") and not is_open:
            continue
        now_ms += passed_ms
        event = {
            "workers": WorkersChanged(now_ms, slots),
            "commit": RoundCommitted(now_ms, slots, 3),
            "abandon": RoundAbandoned(now_ms, slots, "it rained", out_of_time=passed_ms > 2),
            "measured": MetricsReported(now_ms, slots, run.version, {"loss": 1.0}),
            "reached": MetricsReported(now_ms, slots, run.version, {"loss": 0.0}),
            "tick": Tick(now_ms, slots),
            "pause": RunPaused(now_ms),
            "resume": RunResumed(now_ms, slots),
            "cancel": RunCancelled(now_ms),
        }[what]
        before = run
        is_open = is_open and what not in ("commit", "abandon")
        run, effects = run_machine.step(spec, run, event)
        if before.status.ended:
            assert (run, effects) == (before, ())
        for effect in effects:
            if isinstance(effect, CancelRound):
                assert is_open
                is_open = False
                continue
            assert not is_open
            is_open = True
            assert (effect.number, effect.base_version) == (before.round + 1, run.version)
            assert spec.quorum == effect.quorum <= effect.target
            if spec.asynchronous is None:
                assert effect.target <= len(effect.slots)
            else:
                assert 0 < effect.concurrency <= min(spec.concurrency, len(slots))
            assert set(effect.slots) <= set(slots)
            assert effect.opened_ms <= effect.deadline_ms
            assert effect.last_deadline_ms is None or effect.deadline_ms <= effect.last_deadline_ms
        assert run.round_open == is_open
        assert not (run.status is RunStatus.WAITING and is_open)
        assert run.version - before.version == (what == "commit" and not before.status.ended)
        assert run.version <= spec.rounds
        assert (run.ended_ms is not None) == run.status.ended
        if run.status.ended:
            assert run.reason or run.version == spec.rounds
        elif not is_open and run.status is RunStatus.RUNNING:
            assert wake_ms(spec, run) is not None, "a run that waits for nothing would wait for ever"
        wake_at_ms = wake_ms(spec, run)
        if wake_at_ms is not None:
            woken, _ = run_machine.step(spec, run, Tick(wake_at_ms, slots))
            again_ms = wake_ms(spec, woken)
            assert again_ms is None or again_ms > wake_at_ms, "a tick that changes nothing comes for ever"


@pytest.mark.parametrize("status", RunStatus)
@pytest.mark.parametrize("round_open", [False, True])
@pytest.mark.parametrize("slots", [(), ALL])
def test_a_run_that_does_not_heed_its_workers_is_not_changed_by_them(status, round_open, slots):
    run = replace(OPEN, status=status, round_open=round_open)
    if not run_machine.heeds_workers(run):
        assert run_machine.step(SPEC, run, WorkersChanged(10**9, slots)) == (run, ())


def test_a_run_heeds_its_workers_unless_a_round_is_open_or_it_is_over():
    assert run_machine.heeds_workers(Run())
    assert run_machine.heeds_workers(replace(OPEN, round_open=False))
    assert not run_machine.heeds_workers(OPEN)
    assert not run_machine.heeds_workers(replace(OPEN, status=RunStatus.FINISHED, round_open=False))
