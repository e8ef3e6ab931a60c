# SPDX-License-Identifier: Apache-2.0
"""The laws that what a server keeps obeys at every moment, and from each moment to the next."""

import json
from collections import Counter

from protocol.messages import Outcome, RoundStatus, RunStatus
from ps_service.round_machine import Round
from tests.ps_service.ledger import Ledger, RoundKey

OPEN = (RoundStatus.COLLECTING, RoundStatus.AGGREGATING)


def check_moment(ledger: Ledger) -> None:
    """Everything that holds at every moment."""
    for run_id in ledger.runs:
        rounds_and_versions_are_consecutive(ledger, run_id)
        an_end_says_why(ledger, run_id)
        whoever_can_train_does(ledger, run_id)
    for key in ledger.rounds:
        counts_are_what_is_there(ledger, key)
        an_update_ends_as_its_round_did(ledger, key)
        a_round_says_why_it_made_nothing(ledger.rounds[key])
        a_version_is_made_of_no_fewer_than_the_spec_says(ledger, key)
        an_effect_is_asked_for_while_a_round_aggregates(ledger, key)
    for key, round_ in ledger.rounds_that_are(RoundStatus.COLLECTING).items():
        nobody_collects_who_need_not(round_)
        a_round_knows_who_is_lost(ledger, key)
    what_waits_for_a_round_is_pending(ledger)
    whoever_still_trains_can_be_heard(ledger)
    workers_read_what_is_kept(ledger)
    assert not [file for file in ledger.files if "staging" in file], "something half-written was left"


def check_passage(before: Ledger, after: Ledger) -> None:
    """Everything that holds from each moment to a later one."""
    nothing_happens_after_the_end(before, after)
    a_paused_run_opens_nothing(before, after)
    an_update_that_was_received_stays(before, after)
    turns_follow_each_other(before, after)
    for key, round_ in before.rounds.items():
        time_moves_on(round_, after.rounds[key])
        deadlines_move_by_extensions_alone(round_, after.rounds[key])
    for key in after.rounds.keys() - before.rounds.keys():
        a_round_is_as_long_as_was_said(after, key)


# --- at every moment ----------------------------------------------------------------------------


def counts_are_what_is_there(ledger: Ledger, key: RoundKey) -> None:
    """Twice is once: what is counted are distinct rows, and their bytes came once."""
    round_, invited, updates = ledger.rounds[key], ledger.invited_to(key), ledger.updates_of(key)
    declined = {row["assignment_id"] for row in invited if row["declined_reason"] is not None}
    lost = {row["assignment_id"] for row in invited if row["lost_ms"] is not None}
    received = {row["assignment_id"] for row in updates}
    assert round_.admitted == len(updates) == len(received)
    assert round_.invited == len(invited)
    if round_.buffered:
        versions = [ledger.assignments[assignment_id]["version"] for assignment_id in received]
        stale = Counter(round_.base_version - version for version in versions)
        assert {s: count for s, count in enumerate(round_.staleness) if count} == stale
        assert max(stale, default=0) <= ledger.specs[key[0]].asynchronous.max_staleness
        assert round_.contributors == len({row["slot"] for row in updates})
        assert len({(row["slot"], row["turn"]) for row in invited}) == len(invited)
    else:
        assert (round_.declined, round_.lost) == (len(declined), len(lost))
        assert received <= {row["assignment_id"] for row in invited}
        slots = {row["slot"] for row in invited}
        assert len(slots) == len({row["worker_id"] for row in invited}) == len(invited)
    assert not received & declined | received & lost | declined & lost, "one answer a worker"
    sizes = [json.loads(row["header"])["size_bytes"] for row in updates]
    assert ledger.round_rows[key]["bytes_up"] == sum(sizes), "bytes count once"


def an_update_ends_as_its_round_did(ledger: Ledger, key: RoundKey) -> None:
    round_ = ledger.rounds[key]
    for update in ledger.updates_of(key):
        ended_as = (update["outcome"], update["version"])
        if round_.status in OPEN:
            assert (*ended_as, update["reason"]) == (Outcome.PENDING, None, None)
        elif round_.status is RoundStatus.COMMITTED:
            assert (*ended_as, update["reason"]) == (Outcome.COUNTED, round_.base_version + 1, None)
        else:
            assert ended_as == (Outcome.NOT_COUNTED, None)
            assert is_a_sentence(update["reason"])


def a_round_says_why_it_made_nothing(round_: Round) -> None:
    abandoned = round_.status is RoundStatus.ABANDONED
    assert is_a_sentence(round_.reason) if abandoned else round_.reason is None
    assert (round_.ended_ms is not None) == round_.status.ended
    if round_.status in (RoundStatus.AGGREGATING, RoundStatus.COMMITTED):
        assert round_.has_quorum


def a_version_is_made_of_no_fewer_than_the_spec_says(ledger: Ledger, key: RoundKey) -> None:
    round_ = ledger.rounds[key]
    if round_.status is RoundStatus.COMMITTED:
        assert (round_.contributors if round_.buffered else round_.admitted) >= ledger.specs[key[0]].quorum


def an_end_says_why(ledger: Ledger, run_id: str) -> None:
    run = ledger.runs[run_id]
    if run.status in (RunStatus.FAILED, RunStatus.CANCELLED):
        assert is_a_sentence(run.reason)
    elif run.status is RunStatus.FINISHED:
        assert is_a_sentence(run.reason) or run.version == ledger.specs[run_id].rounds
    else:
        assert run.reason is None


def is_a_sentence(reason: str | None) -> bool:
    return reason is not None and len(reason.split()) > 2 and "\n" not in reason


def an_effect_is_asked_for_while_a_round_aggregates(ledger: Ledger, key: RoundKey) -> None:
    """A round that aggregates is never forgotten, and no round is aggregated twice over."""
    asked_for = ledger.pending_effects.count(key)
    status = ledger.rounds[key].status
    assert asked_for == 1 if status is RoundStatus.AGGREGATING else asked_for <= 1
    assert not asked_for or status in (RoundStatus.AGGREGATING, RoundStatus.ABANDONED)


def nobody_collects_who_need_not(round_: Round) -> None:
    """No round waits for what cannot change its fate."""
    answered = round_.admitted + round_.declined
    assert round_.now_ms < round_.deadline_ms
    assert round_.admitted < round_.target or not round_.has_quorum
    if round_.buffered:
        return
    assert answered < round_.invited
    assert answered + round_.lost < round_.invited or round_.admitted < round_.quorum
    assert round_.invited - round_.declined >= round_.quorum


def a_round_knows_who_is_lost(ledger: Ledger, key: RoundKey) -> None:
    for row in ledger.invited_to(key):
        if not row["settled"] and not ledger.rounds[key].buffered:
            worker = ledger.workers[row["worker_id"]]
            assert (row["lost_ms"] is None) == (worker["lost_ms"] is None)
            assert worker["revoked_ms"] is None, "an answer is waited for that cannot come"


def whoever_can_train_does(ledger: Ledger, run_id: str) -> None:
    """In an asynchronous run nobody who may be asked is idle while there is a place and a round collects."""
    run, spec = ledger.runs[run_id], ledger.specs[run_id]
    in_hand = [row for row in ledger.rows["assignments"] if row["run_id"] == run_id and not row["settled"]]
    at_work = [row["worker_id"] for row in in_hand]
    assert len(set(at_work)) == len(at_work), "two things to do at a time"
    if spec.asynchronous is None or run.status is not RunStatus.RUNNING:
        return
    if ledger.rounds[run_id, run.round].status is RoundStatus.COLLECTING:
        given = Counter(row["slot"] for row in ledger.invited_to((run_id, run.round)))
        declined = {
            row["slot"]
            for row in ledger.invited_to((run_id, run.round))
            if row["declined_reason"] is not None
        }
        idle = {
            row["worker_id"]
            for row in ledger.rows["members"]
            if row["run_id"] == run_id and row["slot"] is not None and row["free_since_ms"] is not None
            if ledger.workers[row["worker_id"]]["lost_ms"] is None
            if ledger.workers[row["worker_id"]]["revoked_ms"] is None
            if row["slot"] not in declined and given[row["slot"]] < spec.cohort_size
        }
        heard_of = [row for row in in_hand if row["lost_ms"] is None]
        assert not idle or len(heard_of) >= spec.concurrency
        assert not idle & set(at_work), "free, and at work"


def what_waits_for_a_round_is_pending(ledger: Ledger) -> None:
    """An update that came while a round was combined waits for the next, or is told that there is none."""
    for update in ledger.updates.values():
        run = ledger.runs[update["run_id"]]
        if update["round"] > run.round:
            assert ledger.is_asynchronous(update["run_id"])
            assert update["round"] == run.round + 1
            assert update["outcome"] == (Outcome.NOT_COUNTED if run.status.ended else Outcome.PENDING)
            assert is_a_sentence(update["reason"]) if run.status.ended else update["reason"] is None


def whoever_still_trains_can_be_heard(ledger: Ledger) -> None:
    """What an update is checked against, and combined with, is kept for as long as it may come."""
    for assignment_id in ledger.awaited():
        row = ledger.assignments[assignment_id]
        run, spec = ledger.runs[row["run_id"]], ledger.specs[row["run_id"]]
        assert not run.status.ended
        assert ledger.versions[row["run_id"], row["version"]]["collected_ms"] is None
        if spec.asynchronous is None:
            assert ledger.round_of(assignment_id).status is RoundStatus.COLLECTING
        else:
            assert run.version - row["version"] <= spec.asynchronous.max_staleness
    for update in ledger.updates.values():
        if update["outcome"] == Outcome.PENDING:
            version = ledger.assignments[update["assignment_id"]]["version"]
            assert ledger.versions[update["run_id"], version]["collected_ms"] is None


def rounds_and_versions_are_consecutive(ledger: Ledger, run_id: str) -> None:
    run, rounds = ledger.runs[run_id], ledger.rounds_of(run_id)
    assert [round_.number for round_ in rounds] == list(range(1, run.round + 1))
    open_rounds = [round_.number for round_ in rounds if round_.status in OPEN]
    assert open_rounds == ([run.round] if run.round_open else [])
    assert not (run.status.ended and open_rounds)

    committed = [round_ for round_ in rounds if round_.status is RoundStatus.COMMITTED]
    assert [round_.base_version for round_ in committed] == list(range(run.version))
    made_in = {row["version"]: row["round"] for (of, _), row in ledger.versions.items() if of == run_id}
    assert made_in == {0: None} | {round_.base_version + 1: round_.number for round_ in committed}
    assert run.version <= ledger.specs[run_id].rounds


def workers_read_what_is_kept(ledger: Ledger) -> None:
    """The current version and what is pending are kept; tensors can be read while a kept version has them."""
    kept = set()
    for (run_id, version), row in ledger.versions.items():
        if row["collected_ms"] is None:
            kept |= {(run_id, digest) for digest in json.loads(row["tensors"]).values()}
        else:
            assert version != ledger.runs[run_id].version, "the current version was collected"
    assert {(row["run_id"], row["digest"]) for row in ledger.rows["state_tensors"]} == kept
    for update in ledger.updates.values():
        assert update["collected_ms"] is None or update["outcome"] != Outcome.PENDING


def needed_tensors(ledger: Ledger) -> set[str]:
    """The digests of the versions that are kept and of the updates that are: what must be readable."""
    versions = [row for row in ledger.versions.values() if row["collected_ms"] is None]
    of_versions = {digest for row in versions for digest in json.loads(row["tensors"]).values()}
    return of_versions | {row["digest"] for row in ledger.updates.values() if row["collected_ms"] is None}


# --- from one moment to the next ----------------------------------------------------------------


def nothing_happens_after_the_end(before: Ledger, after: Ledger) -> None:
    for run_id, run in before.runs.items():
        if run.status.ended:
            assert after.runs[run_id] == run
            assert after.rounds_of(run_id) == before.rounds_of(run_id)
    for key, round_ in before.rounds.items():
        if round_.status.ended:
            assert after.round_rows[key] == before.round_rows[key]
            assert round_.buffered or after.invited_to(key) == before.invited_to(key)
            kept = [_but_for_collection(row) for row in before.updates_of(key)]
            assert [_but_for_collection(row) for row in after.updates_of(key)] == kept


def a_paused_run_opens_nothing(before: Ledger, after: Ledger) -> None:
    for run_id, run in before.runs.items():
        if run.status is RunStatus.PAUSED and after.runs[run_id].status is RunStatus.PAUSED:
            assert after.runs[run_id].round == run.round


def an_update_that_was_received_stays(before: Ledger, after: Ledger) -> None:
    for assignment_id, was in before.updates.items():
        now = after.updates[assignment_id]
        for field in ("run_id", "round", "slot", "digest", "header", "received_ms"):
            assert now[field] == was[field]


def turns_follow_each_other(before: Ledger, after: Ledger) -> None:
    """A worker's turns are counted, and what it was asked in one is never changed nor asked again."""
    for row in after.rows["members"]:
        turns = sorted(
            each["turn"]
            for each in after.rows["assignments"]
            if (each["run_id"], each["worker_id"]) == (row["run_id"], row["worker_id"])
        )
        if after.is_asynchronous(row["run_id"]):
            assert turns == list(range(1, row["turns"] + 1))
        else:
            assert row["turns"] == 0
    for assignment_id, was in before.assignments.items():
        now = after.assignments[assignment_id]
        for field in ("run_id", "round", "version", "worker_id", "slot", "turn"):
            assert now[field] == was[field]
        assert now["settled"] or not was["settled"]


def time_moves_on(before: Round, after: Round) -> None:
    assert after.now_ms >= before.now_ms
    assert after.ended_ms is None or after.ended_ms >= after.opened_ms


def deadlines_move_by_extensions_alone(before: Round, after: Round) -> None:
    """Which bounds the time in which a round collects by (1 + extensions) · length if ticks come in time."""
    used = before.extensions_left - after.extensions_left
    assert 0 <= used <= before.extensions_left
    assert after.last_deadline_ms is None or after.deadline_ms <= after.last_deadline_ms
    if used:
        assert after.deadline_ms <= after.now_ms + before.extension_ms
        assert after.now_ms >= before.deadline_ms, "extended before its time was over"
    else:
        assert after.deadline_ms == before.deadline_ms


def a_round_is_as_long_as_was_said(ledger: Ledger, key: RoundKey) -> None:
    round_, spec = ledger.rounds[key], ledger.specs[key[0]]
    longest_s = spec.deadline_s
    if spec.adaptive_deadline is not None:
        longest_s = max(longest_s, spec.adaptive_deadline.ceiling_s)
    assert 0 < round_.extension_ms <= longest_s * 1000
    assert round_.extensions_left <= spec.max_extensions
    started_ms = ledger.runs[key[0]].started_ms
    if spec.max_duration_s is not None and started_ms is not None:
        last_ms = started_ms + spec.max_duration_s * 1000
        assert round_.last_deadline_ms == last_ms >= round_.deadline_ms


def _but_for_collection(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "collected_ms"}
