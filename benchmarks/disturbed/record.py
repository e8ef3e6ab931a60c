# SPDX-License-Identifier: Apache-2.0
"""What the workers of a run have seen, and the audit of it: every receipt must end in one of two ways."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from protocol.messages import Outcome, Receipt, RoundSummary, parse
from worker.events import AgentEvent, Refused, Sent

_TIMEOUT_S = 30.0


@dataclass
class Record:
    """Gathered while a run goes on; one for all its workers."""

    assignments: set[str] = field(default_factory=set)
    """Those that a worker has begun to work on."""
    receipts: dict[str, Receipt] = field(default_factory=dict)
    """{assignment: the receipt given for it}."""
    refusals: Counter[str] = field(default_factory=Counter)
    """What honest workers were told, or found themselves: {code: times}."""
    refusals_of_liars: Counter[str] = field(default_factory=Counter)
    lies: Counter[str] = field(default_factory=Counter)
    """{kind of garbage: times sent}."""
    deaths: Counter[str] = field(default_factory=Counter)
    """{"training" or "sending": times}."""

    def hear(self, event: AgentEvent) -> None:
        """What an honest worker reports."""
        match event:
            case Sent(receipt=receipt):
                self.receipts[receipt.assignment_id] = receipt
            case Refused(code=code):
                self.refusals[code] += 1
            case _:
                pass


@dataclass(frozen=True)
class Audit:
    """What became of the updates of a run."""

    given: int
    """Receipts that reached a worker."""
    held: int
    """Receipts the server has, those included that were lost with a dying worker."""
    counted: int
    not_counted: Mapping[str, int]
    """{reason: updates}."""
    violations: Sequence[str]
    """Receipts lost, changed, counted twice or without an end. None is acceptable."""


async def audit(server_url: str, operator_key: str, record: Record, rounds: Sequence[RoundSummary]) -> Audit:
    """Ask what became of every assignment that any worker of an ended run has worked on."""
    headers = {"Authorization": f"Bearer {operator_key}"}
    held: dict[str, Receipt] = {}
    async with httpx.AsyncClient(base_url=server_url, headers=headers, timeout=_TIMEOUT_S) as client:
        for assignment_id in sorted(record.assignments | set(record.receipts)):
            answer = await client.get(f"/v1/assignments/{assignment_id}/update")
            if answer.status_code != httpx.codes.NOT_FOUND:
                answer.raise_for_status()
                held[assignment_id] = parse(Receipt, answer.content)
    return judge(record.receipts, held, rounds)


def judge(given: Mapping[str, Receipt], held: Mapping[str, Receipt], rounds: Sequence[RoundSummary]) -> Audit:
    """Compare the receipts that were given with those the server has now, and these with the rounds."""
    violations = [
        f"{name}: the receipt for {receipt.digest[:12]} is gone or is for something else"
        for name, receipt in given.items()
        if name not in held or held[name].digest != receipt.digest
    ]
    counted: Counter[int] = Counter()
    not_counted: Counter[str] = Counter()
    for name, receipt in held.items():
        if receipt.outcome is Outcome.COUNTED and receipt.version is not None and receipt.reason is None:
            counted[receipt.version] += 1
        elif receipt.outcome is Outcome.NOT_COUNTED and receipt.reason and receipt.version is None:
            not_counted[receipt.reason] += 1
        else:
            violations.append(f"{name}: {receipt.outcome.value}, {receipt.version}, {receipt.reason}")
    admitted = {round_.version: round_.admitted for round_ in rounds if round_.version is not None}
    violations += [
        f"version {version}: {counted[version]} updates say they are in it, not {admitted.get(version)}"
        for version in sorted(counted.keys() | admitted.keys())
        if counted[version] != admitted.get(version)
    ]
    return Audit(len(given), len(held), counted.total(), dict(not_counted), violations)
