# SPDX-License-Identifier: Apache-2.0
"""What workers do to a server, in any order, and what it must answer them each time.

Rules for a hypothesis state machine; the expected answer is worked out from the ledger as it was before.
"""

import shutil
import tempfile
from pathlib import Path

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from protocol.messages import Receipt, RoundStatus
from tests.ps_service.any_policies import one_of, policies, seeds, which
from tests.ps_service.conftest import Update, Worker
from tests.ps_service.ledger import Ledger
from tests.ps_service.small_federation import LOST_AFTER_MS, SmallFederation, code_of

WORKERS = 4


class WorkerEvents(RuleBasedStateMachine):
    """Workers that answer, repeat, contradict themselves, come late, fall silent and return."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fed-sophia-test-"))
        self.given: dict[str, Receipt] = {}
        """{assignment_id: the first receipt}."""
        self.sent: dict[str, Update] = {}
        self.offers: list[tuple[str, str, Update]] = []
        """(assignment_id, upload_url, update) of what was declared and may never be sent."""
        self.clock_was_set_back = False
        try:
            self.field = SmallFederation(self.directory)
        except BaseException:
            shutil.rmtree(self.directory)
            raise

    @initialize(policies=policies(WORKERS), present=st.sampled_from([WORKERS, WORKERS, 2]))
    def begin(self, policies: dict, present: int) -> None:
        for number in range(WORKERS):
            self.field.enrol(f"worker-{number}")
        self.judge = self.field.enrol("judge", role="evaluator")
        self.field.create_run(**policies)
        for worker in self.field.workers[:present]:
            self.field.ask(worker)
        self.before = self.field.ledger()

    # --- asking -----------------------------------------------------------------------------------

    @rule(number=which)
    def a_worker_asks(self, number: int) -> None:
        worker = one_of(self.field.workers, number)
        answer = self.field.ask(worker)
        ledger = self.field.ledger()
        its_own = [
            id_ for id_ in ledger.awaited() if ledger.assignments[id_]["worker_id"] == worker.worker_id
        ]
        if is_revoked(ledger, worker):
            assert code_of(answer) == "worker-revoked"
        elif its_own:
            assert answer.json()["assignment_id"] in its_own
        else:
            assert answer.status_code == 204

    @rule(number=which)
    def a_worker_is_heard_of(self, number: int) -> None:
        worker = one_of(self.field.workers, number)
        answer = self.field.heartbeat(worker)
        ledger = self.field.ledger()
        if is_revoked(ledger, worker):
            assert code_of(answer) == "worker-revoked"
        else:
            assert ledger.workers[worker.worker_id]["lost_ms"] is None, "a return is welcome"

    # --- sending ----------------------------------------------------------------------------------

    @precondition(lambda self: self.before.awaited())
    @rule(number=which, seed=seeds)
    def an_update_is_sent(self, number: int, seed: int) -> None:
        self._send(one_of(self.before.awaited(), number), seed)

    @precondition(lambda self: self.before.awaited())
    @rule(number=which, seed=seeds)
    def a_whole_cohort_answers(self, number: int, seed: int) -> None:
        run_id = self.before.assignments[one_of(self.before.awaited(), number)]["run_id"]
        for assignment_id in self.before.awaited():
            if self.before.assignments[assignment_id]["run_id"] == run_id:
                self._send(assignment_id, seed)

    @precondition(lambda self: self.before.assignments)
    @rule(number=which, seed=seeds)
    def an_update_is_sent_for_any_round(self, number: int, seed: int) -> None:
        self._send(one_of(list(self.before.assignments), number), seed)

    @precondition(lambda self: self.sent)
    @rule(number=which)
    def the_same_bytes_are_sent_again(self, number: int) -> None:
        assignment_id = one_of(list(self.sent), number)
        self._send_update(assignment_id, self.sent[assignment_id])

    @precondition(lambda self: self.sent)
    @rule(number=which)
    def another_update_is_sent_after_the_receipt(self, number: int) -> None:
        self._send(one_of(list(self.sent), number), seed=9)

    @precondition(lambda self: self.before.awaited())
    @rule(number=which, seed=seeds)
    def an_update_is_declared(self, number: int, seed: int) -> None:
        assignment, _ = self._heard(one_of(self.before.awaited(), number))
        update = self.field.an_update(assignment, seed)
        answer = self.field.declare(assignment, update)
        if answer.status_code == 201:
            self.offers.append((assignment["assignment_id"], answer.json()["upload_url"], update))

    @precondition(lambda self: self.offers)
    @rule(number=which, spoilt=st.booleans())
    def a_declared_body_arrives(self, number: int, spoilt: bool) -> None:
        assignment_id, url, update = one_of(self.offers, number)
        assignment, ledger = self._heard(assignment_id)
        refusal = self._refusal(ledger, assignment, update)
        declared = {f"/v1/uploads/{row['upload_id']}" for row in ledger.rows["uploads"]}
        if url not in declared and refusal != "worker-revoked":
            refusal = "not-found"
        if refusal is None and spoilt and assignment_id not in self.given:
            refusal = "digest-mismatch"
        other = self.field.an_update(assignment, seed=9)
        answer = self.field.put(assignment, url, other.body if spoilt else update.body)
        self._answered(assignment_id, update, answer, refusal, ledger)

    def _send(self, assignment_id: str, seed: int) -> None:
        self._send_update(assignment_id, self.field.an_update(self.before.assignments[assignment_id], seed))

    def _send_update(self, assignment_id: str, update: Update) -> None:
        assignment, ledger = self._heard(assignment_id)
        refusal = self._refusal(ledger, assignment, update)
        self._answered(assignment_id, update, self.field.send(assignment, update), refusal, ledger)

    def _heard(self, assignment_id: str) -> tuple[dict, Ledger]:
        """Its worker is heard of, and no longer lost: the assignment, and the ledger then."""
        assignment = self.before.assignments[assignment_id]
        self.field.heartbeat(self.field.worker_of(assignment))
        return assignment, self.field.ledger()

    def _refusal(self, ledger: Ledger, assignment: dict, update: Update) -> str | None:
        """The code that this update is refused with; None if it is taken, or held already."""
        assignment_id = assignment["assignment_id"]
        if is_revoked(ledger, self.field.worker_of(assignment)):
            return "worker-revoked"
        if assignment_id in self.given:
            same = self.given[assignment_id].digest == update.header["digest"]
            return None if same else "update-conflict"
        if ledger.assignments[assignment_id]["declined_reason"] is not None:
            return "assignment-declined"
        if ledger.runs[assignment["run_id"]].status.ended:
            return "run-ended"
        spec, run = ledger.specs[assignment["run_id"]], ledger.runs[assignment["run_id"]]
        if spec.asynchronous is not None:
            open_round = ledger.rounds[assignment["run_id"], run.round]
            joins = run.version + (open_round.status is RoundStatus.AGGREGATING)
            stale = joins - assignment["version"] > spec.asynchronous.max_staleness
            return "too-stale" if stale else None
        collects = ledger.round_of(assignment_id).status is RoundStatus.COLLECTING
        return None if collects else "round-closed"

    def _answered(
        self, assignment_id: str, update: Update, answer: httpx.Response, refusal: str | None, before: Ledger
    ) -> None:
        after = self.field.ledger()
        assert code_of(answer) == refusal, (answer.status_code, answer.text, refusal)
        if refusal == "digest-mismatch":
            assert after.assignments[assignment_id]["refused_code"] == refusal
            assert (after.updates, after.rounds, after.files) == (before.updates, before.rounds, before.files)
            return
        if refusal is not None:
            assert not after.changes_since(before), "a refused update changes nothing"
            return
        receipt = Receipt.model_validate(answer.json())
        assert receipt.digest == update.header["digest"]
        row = after.updates[assignment_id]
        assert (receipt.outcome, receipt.version, receipt.reason) == (
            row["outcome"],
            row["version"],
            row["reason"],
        )
        if assignment_id in self.given:
            assert not after.changes_since(before), "twice is once"
        self.given.setdefault(assignment_id, receipt)
        self.sent[assignment_id] = update

    # --- declining, falling silent, measuring -------------------------------------------------------

    @precondition(lambda self: self.before.assignments)
    @rule(number=which)
    def an_assignment_is_declined(self, number: int) -> None:
        self._decline(one_of(list(self.before.assignments), number))

    def _decline(self, assignment_id: str) -> None:
        assignment, ledger = self._heard(assignment_id)
        answer = self.field.decline(assignment)
        after = self.field.ledger()
        if is_revoked(ledger, self.field.worker_of(assignment)):
            assert code_of(answer) == "worker-revoked"
        elif assignment_id in self.given:
            assert code_of(answer) == "update-conflict"
        else:
            assert answer.status_code == 204
            if assignment_id in ledger.awaited():
                assert after.assignments[assignment_id]["declined_reason"] == "busy"
                return
        assert not after.changes_since(ledger), "a decline that is refused, repeated or late changes nothing"

    @rule(silent=st.sets(st.integers(0, WORKERS - 1)))
    def some_fall_silent(self, silent: set[int]) -> None:
        began_ms = self.field.clock.now_ms()
        for _ in range(4):
            self.field.jump(LOST_AFTER_MS // 3)
            for number, worker in enumerate(self.field.workers):
                if number not in silent:
                    self.field.heartbeat(worker)
            self.field.look()
        ledger = self.field.ledger()
        for number in silent if not self.clock_was_set_back else ():
            worker = ledger.workers[self.field.workers[number].worker_id]
            assert self.field.heard_ms[worker["worker_id"]] <= began_ms
            assert worker["lost_ms"] is not None or worker["revoked_ms"] is not None, "silence was not found"
        for key, round_ in ledger.rounds_that_are(RoundStatus.ABANDONED).items():
            if key not in self.before.rounds or not self.before.rounds[key].status.ended:
                assert "the deadline passed" in (round_.reason or ""), "the lost abandon nothing"

    @rule(run=which, behind=st.integers(0, 2), loss=st.sampled_from([0.1, 0.9]))
    def a_version_is_measured(self, run: int, behind: int, loss: float) -> None:
        run_id = one_of(list(self.before.runs), run)
        version = max(0, self.before.runs[run_id].version - behind)
        assert self.field.measure(self.judge, run_id, version, loss).status_code == 204


def is_revoked(ledger: Ledger, worker: Worker) -> bool:
    return ledger.workers[worker.worker_id]["revoked_ms"] is not None
