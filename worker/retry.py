# SPDX-License-Identifier: Apache-2.0
"""When to try again after an error: a pure decision, exponential with full jitter.

    wait = jitter · min(WAIT_CAP_S, FIRST_WAIT_S · 2^attempt)          jitter drawn from [0, 1)

Full jitter, so that workers who lost the server in the same moment do not return in the same moment.
A `Retry-After` is honoured: the wait is that long, and the jitter comes on top.
"""

from protocol.errors import FedSophiaError

FIRST_WAIT_S = 0.5
WAIT_CAP_S = 30.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for a longer pause is asked again after this one."""


class RetryAfter(Exception):
    """The cause of an error whose answer said when to come back: `raise NotReady(…) from RetryAfter(3.0)`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"the server asks to wait {wait_s:g} s")
        self.wait_s = wait_s


def backoff(attempt: int, jitter: float) -> float:
    """How long to wait after `attempt` failures before this one; `jitter` from [0, 1)."""
    return jitter * min(WAIT_CAP_S, FIRST_WAIT_S * 2.0 ** min(attempt, 16))


def wait_before_retry(error: FedSophiaError, attempt: int, jitter: float) -> float | None:
    """Seconds to wait before the same request may be sent again; None to give up.

    Args:
        attempt: failures before this one, from 0.
        jitter: drawn from [0, 1).
    """
    if not error.retryable:
        return None
    wait_s = backoff(attempt, jitter)
    if isinstance(error.__cause__, RetryAfter):
        wait_s += min(max(error.__cause__.wait_s, 0.0), LONGEST_RETRY_AFTER_S)
    return wait_s
