# SPDX-License-Identifier: Apache-2.0
"""Asks for the next assignment, each time for as long as the server advises and the way there bears.

A server at which thousands wait advises waits of minutes. A proxy in between may cut off what is silent for a
minute: after two long waits in a row that were cut off, this worker asks for short ones for good. One alone
says nothing: the server itself may have died.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from protocol.errors import ServerUnreachable
from protocol.messages import Assignment, EvaluationAssignment
from worker.answers import NothingYet
from worker.client import ServerClient

SHORT_S = 30.0
"""A wait that ways bear which bear any."""
LONGEST_S = 600.0
CUT_OFF_FOR_GOOD = 2


@dataclass(frozen=True)
class Waits:
    """How long to wait the next time, and what has been learnt of the way."""

    next_s: float = SHORT_S
    cut_off: int = 0
    """Long waits in a row that were."""

    @property
    def short_for_good(self) -> bool:
        return self.cut_off >= CUT_OFF_FOR_GOOD

    def was_long(self, waited_s: float) -> bool:
        """Whether so long a wait says something of the way; a short one that is late does not."""
        return min(self.next_s, waited_s) > SHORT_S


def answered(waits: Waits, waited_s: float) -> Waits:
    """After a wait that brought something to do: the way has borne it."""
    if waits.short_for_good or not waits.was_long(waited_s):
        return waits
    return replace(waits, cut_off=0)


def advised(waits: Waits, waited_s: float, advice_s: float | None) -> Waits:
    """After a wait that was answered: there is nothing to do yet, and the server advises so long a wait."""
    if advice_s is None or waits.short_for_good:
        return replace(waits, next_s=SHORT_S)
    return Waits(min(max(advice_s, SHORT_S), LONGEST_S), 0 if waits.was_long(waited_s) else waits.cut_off)


def interrupted(waits: Waits, waited_s: float) -> Waits:
    """After a wait that ended without an answer."""
    return Waits(SHORT_S, waits.cut_off + waits.was_long(waited_s))


class Poller:
    """One worker's question for work, asked again and again."""

    def __init__(self, client: ServerClient, worker_id: str, clock_s: Callable[[], float]) -> None:
        self._client = client
        self._worker_id = worker_id
        self._clock_s = clock_s
        self._waits = Waits()

    async def ask(self) -> Assignment | EvaluationAssignment | None:
        """Wait once for something to do; None when there is nothing yet.

        Raises:
            NotReady: the server sends its workers home and says when to come back.
            ServerUnreachable: the wait was cut off, or could not begin.
        """
        asked_s = self._clock_s()
        try:
            answer = await self._client.next_assignment(self._worker_id, self._waits.next_s)
        except ServerUnreachable:
            self._waits = interrupted(self._waits, self._clock_s() - asked_s)
            raise
        waited_s = self._clock_s() - asked_s
        if not isinstance(answer, NothingYet):
            self._waits = answered(self._waits, waited_s)
            return answer
        self._waits = advised(self._waits, waited_s, answer.next_wait_s)
        return None
