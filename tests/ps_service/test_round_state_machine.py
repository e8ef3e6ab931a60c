# SPDX-License-Identifier: Apache-2.0
"""A whole server under arbitrary orders of events: duplicates, late ones, conflicting ones, a jumping clock.

`round_laws` says what holds at every moment, `worker_events` what workers do; here are time, the operator
and the end. The same examples are tried each time, and one that fails is shown as it is. More, others each
time, and the smallest of those that fail:

    FED_SOPHIA_EXAMPLES=2000 pytest tests/ps_service/test_round_state_machine.py --timeout=0
"""

import os
import shutil
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from protocol.messages import Outcome, RoundStatus, Standing
from ps_service.run_machine import wake_ms
from tests.ps_service.any_policies import jumps_ms, one_of, policies, which
from tests.ps_service.round_laws import OPEN, check_moment, check_passage, needed_tensors
from tests.ps_service.small_federation import LOST_AFTER_MS, code_of
from tests.ps_service.worker_events import WORKERS, WorkerEvents, is_revoked

EXAMPLES = os.environ.get("FED_SOPHIA_EXAMPLES")
TRIED = settings(
    max_examples=int(EXAMPLES or 25),
    stateful_step_count=30,
    deadline=None,
    derandomize=EXAMPLES is None,
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
MOST_RUNS = 3
COLLECTING, AGGREGATING = RoundStatus.COLLECTING, RoundStatus.AGGREGATING


class WhateverHappens(WorkerEvents):
    """Runs, workers, an operator, a clock and a server, none of which can be relied upon."""

    # --- what holds -------------------------------------------------------------------------------

    @invariant()
    def every_law_holds(self) -> None:
        ledger = self.field.ledger()
        check_moment(ledger)
        check_passage(self.before, ledger)
        assert ledger.updates.keys() == self.given.keys(), "a receipt for whatever is kept, and for no more"
        for assignment_id, receipt in self.given.items():
            assert ledger.updates[assignment_id]["digest"] == receipt.digest
        for worker_id, row in ledger.workers.items():
            if row["lost_ms"] is not None and self.before.workers[worker_id]["lost_ms"] is None:
                silent_ms = self.field.clock.now_ms() - self.field.heard_ms[worker_id]
                assert silent_ms >= LOST_AFTER_MS, "it was heard of"
        self.before = ledger

    # --- time and the server ----------------------------------------------------------------------

    @rule(milliseconds=jumps_ms)
    def the_clock_jumps(self, milliseconds: int) -> None:
        self.field.jump(milliseconds)
        self.clock_was_set_back |= milliseconds < 0

    @precondition(lambda self: self.before.rounds_that_are(COLLECTING))
    @rule(late_ms=st.sampled_from([0, 0, 1, 700]))
    def a_deadline_passes(self, late_ms: int) -> None:
        due_ms = min(round_.deadline_ms for round_ in self.before.rounds_that_are(COLLECTING).values())
        self.field.jump(max(0, due_ms - self.field.clock.now_ms()) + late_ms)
        self.the_clock_ticks()

    @rule()
    def the_clock_ticks(self) -> None:
        """Whatever was due is done, no deadline is left in the past, and it is said when to look again."""
        self.field.tick()
        ledger, now_ms = self.field.ledger(), self.field.clock.now_ms()
        wait_s = self.field.tick()
        assert not self.field.ledger().changes_since(ledger), (
            "a second tick at the same time finds nothing to do"
        )
        due_ms = [round_.deadline_ms for round_ in ledger.rounds_that_are(COLLECTING).values()]
        wake_at = [wake_ms(ledger.specs[run_id], run) for run_id, run in ledger.runs.items()]
        for at_ms in due_ms + [at_ms for at_ms in wake_at if at_ms is not None]:
            assert at_ms > now_ms
            assert wait_s <= (at_ms - now_ms) / 1000

    @rule()
    def it_is_looked_who_is_there(self) -> None:
        self.field.look()

    @rule()
    def effects_are_performed(self) -> None:
        self._perform()
        assert not self.field.ledger().rounds_that_are(AGGREGATING)

    @rule(collect=st.sampled_from(["tidy", "sweep"]))
    def the_house_is_kept(self, collect: str) -> None:
        getattr(self.field, collect)()
        for digest in needed_tensors(self.field.ledger()):
            self.field.read_tensors(digest)

    @rule()
    def the_server_is_restarted(self) -> None:
        self.field.restart()
        assert not self.field.ledger().changes_since(self.before)

    # --- the operator -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.before.runs) < MOST_RUNS)
    @rule(policies=policies(WORKERS))
    def another_run_is_created(self, policies: dict) -> None:
        self.field.create_run(**policies)

    @precondition(lambda self: self.before.rounds)
    @rule(number=which)
    def a_round_is_closed_now(self, number: int) -> None:
        key = one_of(sorted(self.before.rounds, key=lambda key: (-key[1], key[0])), number)
        round_ = self.before.rounds[key]
        answer = self._operate(f"{key[0]}/rounds/{key[1]}/aggregate")
        after = self.field.ledger()
        if round_.status is not COLLECTING:
            assert answer is None
            assert replace(after.rounds[key], now_ms=round_.now_ms) == round_
        elif round_.admitted >= round_.quorum:
            assert answer is None
            assert after.rounds[key].status is AGGREGATING
        elif self.field.clock.now_ms() < round_.deadline_ms or round_.extensions_left:
            assert answer == "quorum-missing"
            assert not after.changes_since(self.before)
        else:
            assert after.rounds[key].status is RoundStatus.ABANDONED, "its deadline had passed"

    @rule(number=which, verb=st.sampled_from(["pause", "resume"]))
    def a_run_is_paused_or_resumed(self, number: int, verb: str) -> None:
        run_id = one_of(list(self.before.runs), number)
        answer = self._operate(f"{run_id}/{verb}")
        if self.before.runs[run_id].status.ended:
            assert answer == "run-ended"
            assert not self.field.ledger().changes_since(self.before)
        else:
            assert answer is None
            assert (self.field.ledger().runs[run_id].status == "paused") == (verb == "pause")

    @rule(number=st.integers(0, 30))
    def a_run_is_cancelled(self, number: int) -> None:
        """Seldom: little happens after it."""
        if number >= len(self.before.runs):
            return
        run_id = list(self.before.runs)[number]
        assert self._operate(f"{run_id}/cancel") is None
        after = self.field.ledger()
        assert after.runs[run_id].status.ended
        assert not after.changes_since(self.before) or not self.before.runs[run_id].status.ended

    @rule(number=st.integers(0, 15))
    def a_worker_is_revoked(self, number: int) -> None:
        if number >= WORKERS - 1:  # one is left to go on with
            return
        worker = self.field.workers[number]
        again = is_revoked(self.before, worker)
        self.field.revoke(worker)
        after = self.field.ledger()
        assert is_revoked(after, worker)
        assert not after.changes_since(self.before) or not again

    def _perform(self) -> None:
        """Until there is nothing left: what waited for a round may fill it as soon as it is opened."""
        for _ in range(100):
            self.field.perform()
            if not self.field.ledger().pending_effects:
                return
        raise AssertionError("there is always something to perform")

    def _operate(self, path: str) -> str | None:
        return code_of(self.field.operate(f"/v1/runs/{path}"))

    # --- the end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "before"):
                self._time_alone_ends_every_round()
                self._every_receipt_has_an_end()
                self._every_worker_stands_somewhere()
                self._nothing_happens_any_more()
        finally:
            self.field.close()
            shutil.rmtree(self.directory)

    def _time_alone_ends_every_round(self) -> None:
        self.the_clock_ticks()
        self._perform()
        self.every_law_holds()
        latest_ms = {
            key: round_.deadline_ms + round_.extensions_left * round_.extension_ms
            for key, round_ in self.before.rounds_that_are(COLLECTING).items()
        }
        for _ in range(1000):  # each a minute at most, and the clock may have been set back by hours
            self.field.jump(max(1, round(self.field.tick() * 1000)))
            self.field.tick()
            self._perform()
            self.every_law_holds()
            if not any(round_.status in OPEN for round_ in self.before.rounds.values()):
                break
        else:
            raise AssertionError("rounds are opened for ever")
        for key, until_ms in latest_ms.items():
            assert (self.before.rounds[key].ended_ms or 0) <= until_ms, "it collected for too long"

    def _every_receipt_has_an_end(self) -> None:
        for assignment_id, first in self.given.items():
            receipt = self.field.receipt(self.before.assignments[assignment_id])
            assert (receipt.digest, receipt.received_ms) == (first.digest, first.received_ms)
            counted = receipt.outcome is Outcome.COUNTED and receipt.version is not None
            assert counted != (receipt.outcome is Outcome.NOT_COUNTED and receipt.reason is not None)
            assert first.outcome in (Outcome.PENDING, receipt.outcome)

    def _every_worker_stands_somewhere(self) -> None:
        for key, round_ in self.before.rounds.items():
            rows = self.field.look_up(f"/v1/runs/{key[0]}/rounds/{key[1]}/workers")["workers"]
            assert [row["assignment_id"] for row in rows] == [
                row["assignment_id"] for row in self.before.invited_to(key)
            ]
            received = {row["assignment_id"] for row in rows if row["received_ms"] is not None}
            assert received == {row["assignment_id"] for row in rows} & self.given.keys()
            if round_.buffered:  # its updates are of other workers, and its workers' are of other rounds
                continue
            standing = Counter(row["standing"] for row in rows)
            counted = Standing.COUNTED if round_.status is RoundStatus.COMMITTED else Standing.NOT_COUNTED
            assert standing[counted] == round_.admitted == len(received)
            refused = standing[Standing.REFUSED]  # told of a worker whatever it did then
            assert 0 <= round_.declined - standing[Standing.DECLINED] <= refused
            assert 0 <= round_.lost - standing[Standing.LOST] <= refused
            assert not standing.keys() & {Standing.ASKED, Standing.RECEIVED}, "the round has ended"

    def _nothing_happens_any_more(self) -> None:
        for run_id in self.before.runs:
            self._operate(f"{run_id}/cancel")
        for worker in self.field.workers:
            self.field.heartbeat(worker)
        self.every_law_holds()
        last = self.before
        self.field.jump(10**6)
        self.field.tick()
        self._perform()
        for run_id in last.runs:
            for verb in ("pause", "resume", "cancel"):
                self._operate(f"{run_id}/{verb}")
        for assignment_id in list(last.assignments)[-WORKERS:]:
            self._send(assignment_id, seed=1)
            self._decline(assignment_id)
        assert not self.field.ledger().changes_since(last)
        self._only_what_is_needed_is_kept()

    def _only_what_is_needed_is_kept(self) -> None:
        for collect in (self.field.tidy, self.field.sweep, self.field.sweep):
            collect()
        ledger = self.field.ledger()
        assert {file.rpartition("/")[2] for file in ledger.files} == needed_tensors(ledger)


def test_whatever_happens_in_whatever_order_the_laws_of_a_round_hold():
    run_state_machine_as_test(WhateverHappens, settings=TRIED)
