# SPDX-License-Identifier: Apache-2.0
"""What can happen to a request on its way, and the plans that say to which request it does.

A plan is a function from a request to its fault; the proxy asks it once for every request it sees. PURE.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Request:
    """What a plan knows of a request."""

    method: str
    path: str
    size_bytes: int
    """Of its body, as announced."""
    ordinal: int
    """Its place among the requests of its route, from 1."""
    attempt: int
    """Its place among the requests with this very method and path, from 1."""

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def route(self) -> str:
        """Method and path with every identifier a star: `PATCH /v1/uploads/*`. The query is left out."""
        parts = self.path.partition("?")[0].split("/")
        starred = [
            "*" if number > 1 and re.search(r"\d", part) else part for number, part in enumerate(parts)
        ]
        return f"{self.method} {'/'.join(starred)}"


class Kind(StrEnum):
    """Faults by the names under which the proxy counts them, each when it really took effect."""

    DELAYED = "delayed"
    OVERTAKEN = "overtaken"
    REQUEST_CUT = "request cut"
    ANSWER_LOST = "answer lost"
    ANSWER_CUT = "answer cut"
    SENDER_GONE = "sender gone"
    SLOW_UP = "slow up"
    SLOW_DOWN = "slow down"
    STALLED = "stalled"
    TWICE_IN_A_ROW = "twice in a row"
    TWICE_AT_ONCE = "twice at once"
    REPLAYED = "replayed"


@dataclass(frozen=True)
class Behind:
    """Later: once the server has answered `more` further requests of a route (or of one request line)."""

    route: str
    more: int = 1
    at_most_s: float = 1.0
    """The time after which it goes on although they have not come."""


@dataclass(frozen=True)
class Stall:
    """A pause in the middle of a request's body."""

    after_bytes: int
    for_s: float
    until: str = ""
    """A route or a request line: it ends early once the server has answered one of these."""
    every: bool = False
    """Again and again, each time after so many bytes."""

    def place_after(self, passed: int) -> int | None:
        """Behind how many bytes the next pause comes, when so many have passed."""
        return passed + self.after_bytes if self.every else None


class Twice(StrEnum):
    """A second copy of a request on a connection of its own; the sender hears one answer alone."""

    IN_A_ROW = "in a row"
    """The second once the first is answered; the sender hears the second."""
    AT_ONCE_FIRST_HEARD = "at once, the first is heard"
    AT_ONCE_SECOND_HEARD = "at once, the second is heard"


@dataclass(frozen=True)
class Fault:
    """How one request is mistreated; what is left out is left alone, and what is given is combined."""

    delay_s: float = 0.0
    """Wait before anything of it goes to the server."""
    behind: Behind | None = None
    """Hold it back until others have passed."""
    cut_request_at: int | None = None
    """Both connections close when so many bytes of its body have gone to the server."""
    lose_answer: bool = False
    """The server answers; the sender's connection closes without a byte of it."""
    cut_answer_at: int | None = None
    """The sender's connection closes when so many bytes of the answer's body have gone to it."""
    sender_gone: bool = False
    """The sender's connection closes once the request is read; the request goes on, perhaps held back."""
    up_bytes_per_s: int | None = None
    down_bytes_per_s: int | None = None
    stall: Stall | None = None
    twice: Twice | None = None
    replay: Behind | None = None
    """It passes, and a recorded copy of it is sent once more later."""


Plan = Callable[[Request], Fault]

UNHARMED = Fault()


def every_request_unharmed(_request: Request) -> Fault:
    return UNHARMED


def on_route(route: str, *faults: Fault) -> Plan:
    """The first requests of a route meet these faults, one each; all others pass unharmed."""

    def plan(request: Request) -> Fault:
        met = request.route == route and request.ordinal <= len(faults)
        return faults[request.ordinal - 1] if met else UNHARMED

    return plan


def shuffled(seed: int, menus: Mapping[str, Sequence[Fault]]) -> Plan:
    """Each request of a route meets a fault of that route's menu, and every dish is served before one again.

    The same seed serves the same order. A request that must get through in the end needs `UNHARMED` among
    its dishes.
    """

    def plan(request: Request) -> Fault:
        menu = menus.get(request.route)
        if menu is None:
            return UNHARMED
        sitting, place = divmod(request.ordinal - 1, len(menu))
        order = list(menu)
        random.Random(f"{seed}/{request.route}/{sitting}").shuffle(order)
        return order[place]

    return plan
