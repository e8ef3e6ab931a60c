# SPDX-License-Identifier: Apache-2.0
"""What workers say is said to people as sentences, and to machines by name."""

from collections.abc import Sequence

from fed_sophia.agent_events import reporting_to
from fed_sophia.output import Fields
from worker.events import AgentEvent, NotStacked, StackShrunk


class Heard:
    """An output that keeps what it is given."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, Fields]] = []

    def event(self, event: str, text: str, fields: Fields) -> None:
        self.said.append((event, text, fields))

    def rows(self, event: str, table: str, rows: Sequence[Fields]) -> None: ...

    def summary(self, text: str, fields: Fields) -> None: ...

    def error(self, error: Exception) -> None: ...


def said_of(event: AgentEvent) -> tuple[str, str, Fields]:
    heard = Heard()
    reporting_to(heard)(event)
    (said,) = heard.said
    return said


def test_a_swarm_whose_stacks_have_shrunk_says_how_many_it_trains_at_once():
    name, text, fields = said_of(StackShrunk(64, worker="worker"))
    assert (name, fields) == ("stackshrunk", {"worker": "worker", "at_once": 64})
    assert text == "worker: out of memory: training 64 at once from now on"


def test_a_swarm_that_cannot_stack_says_why():
    name, text, fields = said_of(NotStacked("task mine: its code looks at values", worker="worker"))
    assert name == "notstacked"
    assert text.endswith("since stacking failed: task mine: its code looks at values")
    assert fields["detail"] == "task mine: its code looks at values"
