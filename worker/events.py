# SPDX-License-Identifier: Apache-2.0
"""What a worker says of its progress to whoever started it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protocol.messages import Receipt


@dataclass(frozen=True)
class AgentEvent:
    """Something happened to the worker of this name."""

    worker: str = field(kw_only=True)


@dataclass(frozen=True)
class Enrolled(AgentEvent):
    """The server knows this worker."""

    worker_id: str


@dataclass(frozen=True)
class Waiting(AgentEvent):
    """There is nothing to do until the server has an assignment."""


@dataclass(frozen=True)
class Training(AgentEvent):
    """Local training has begun."""

    run: str
    round: int


@dataclass(frozen=True)
class Sent(AgentEvent):
    """The server gave a receipt for an update of so many bytes."""

    receipt: Receipt
    size_bytes: int


@dataclass(frozen=True)
class Evaluated(AgentEvent):
    """The metrics of a version have been reported."""

    version: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Refused(AgentEvent):
    """An assignment came to nothing; the worker goes on with the next."""

    code: str
    detail: str


@dataclass(frozen=True)
class Reconnecting(AgentEvent):
    """The server could not be asked; the worker tries again after a pause."""

    detail: str
    wait_s: float


@dataclass(frozen=True)
class NotStacked(AgentEvent):
    """The workers of a swarm train one by one, since their models cannot be stacked."""

    detail: str


@dataclass(frozen=True)
class StackShrunk(AgentEvent):
    """The device's memory was used up: a swarm's workers train so many at once from now on."""

    at_once: int


@dataclass(frozen=True)
class Failed(AgentEvent):
    """The worker ended with this error, and its swarm with it."""

    code: str
    detail: str


Report = Callable[[AgentEvent], None]
