# SPDX-License-Identifier: Apache-2.0
"""A run's life: when rounds open, who is invited, when it is over."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import RunStatus
from ps_service.run_machine import (
    CancelRound,
    OpenRound,
    RoundAbandoned,
    RoundCommitted,
    Run,
    RunCancelled,
    WorkersChanged,
    assignment_seed,
    sample,
    step,
)


def a_run(**changes) -> Run:
    fixed = {
        "seed": 7,
        "rounds": 2,
        "cohort_size": 3,
        "quorum": 2,
        "deadline_ms": 1_000,
        "max_abandoned_rounds": 2,
    }
    return Run(**fixed | changes)


def test_the_first_round_waits_for_a_whole_cohort():
    assert step(a_run(), WorkersChanged(5, (0, 1))) == (a_run(), ())
    run, [opening] = step(a_run(), WorkersChanged(5, (0, 1, 2)))
    assert (run.status, run.round) == (RunStatus.RUNNING, 1)
    assert opening == OpenRound(1, 0, (0, 1, 2), 2, opened_ms=5, deadline_ms=1_005, partial=False)


def test_workers_who_come_while_a_round_is_open_change_nothing():
    run, _ = step(a_run(), WorkersChanged(5, (0, 1, 2)))
    assert step(run, WorkersChanged(6, (0, 1, 2, 3))) == (run, ())


def test_a_committed_round_makes_a_version_and_opens_the_next():
    run, _ = step(a_run(), WorkersChanged(0, (0, 1, 2)))
    run, [opening] = step(run, RoundCommitted(9, (0, 1, 2)))
    assert (run.version, opening.number, opening.base_version) == (1, 2, 1)


def test_later_rounds_go_on_with_a_quorum_and_wait_below_it():
    run, _ = step(a_run(), WorkersChanged(0, (0, 1, 2)))
    with_two, [opening] = step(run, RoundCommitted(9, (0, 1)))
    assert (with_two.status, opening.slots) == (RunStatus.RUNNING, (0, 1))
    with_one, effects = step(run, RoundCommitted(9, (0,)))
    assert (with_one.status, effects) == (RunStatus.WAITING, ())
    again, [_] = step(with_one, WorkersChanged(10, (0, 3)))
    assert again.round == 2


def test_the_last_version_finishes_the_run():
    run, effects = step(a_run(rounds=1, status=RunStatus.RUNNING, round=1), RoundCommitted(9, (0, 1, 2)))
    assert (run.status, run.ended_ms, effects) == (RunStatus.FINISHED, 9, ())


def test_too_many_abandoned_rounds_in_a_row_fail_the_run_and_a_committed_one_forgives():
    run = a_run(status=RunStatus.RUNNING, round=1, rounds=9)
    run, _ = step(run, RoundAbandoned(1, (0, 1), "nobody came"))
    run, _ = step(run, RoundCommitted(2, (0, 1)))
    run, _ = step(run, RoundAbandoned(3, (0, 1), "nobody came"))
    assert run.status is RunStatus.RUNNING
    run, effects = step(run, RoundAbandoned(4, (0, 1), "nobody came"))
    assert (run.status, effects) == (RunStatus.FAILED, ())
    assert run.reason == "2 rounds in a row were abandoned; the last because nobody came"


def test_a_cancelled_run_cancels_its_round_and_then_nothing_more():
    run, effects = step(a_run(status=RunStatus.RUNNING, round=1), RunCancelled(3))
    assert (run.status, effects) == (RunStatus.CANCELLED, (CancelRound(),))
    assert step(run, RoundAbandoned(4, (0, 1, 2), "cancelled")) == (run, ())


def test_a_round_that_invites_only_some_is_partial():
    _, [opening] = step(a_run(), WorkersChanged(5, (0, 1, 2, 3)))
    assert opening.partial
    assert len(opening.slots) == 3


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


@given(
    st.lists(
        st.tuples(st.sampled_from(["workers", "commit", "abandon", "cancel"]), slots_strategy), max_size=25
    )
)
def test_laws_that_hold_whatever_happens_in_whatever_order(happening):
    """The shell reports the end of a round only while one is open: so does this test."""
    run, open_rounds = a_run(), 0
    for now_ms, (what, slots) in enumerate(happening):
        if what in ("commit", "abandon") and not open_rounds:
            continue
        event = {
            "workers": WorkersChanged(now_ms, slots),
            "commit": RoundCommitted(now_ms, slots),
            "abandon": RoundAbandoned(now_ms, slots, "it rained"),
            "cancel": RunCancelled(now_ms),
        }[what]
        before = run
        open_rounds -= what in ("commit", "abandon")
        run, effects = step(run, event)
        for effect in effects:
            if isinstance(effect, CancelRound):
                open_rounds = 0
                continue
            open_rounds += 1
            assert effect.number == before.round + 1
            assert effect.base_version == run.version
            assert run.quorum <= len(effect.slots) <= run.cohort_size
            assert set(effect.slots) <= set(slots)
        if before.status.ended:
            assert (run, effects) == (before, ())
        assert open_rounds <= 1
        assert (run.status is RunStatus.RUNNING) == (open_rounds == 1)
        assert run.version - before.version == (what == "commit" and not before.status.ended)
        assert run.version <= run.rounds
    assert (run.ended_ms is not None) == run.status.ended
    if run.status is RunStatus.FAILED:
        assert "it rained" in run.reason
