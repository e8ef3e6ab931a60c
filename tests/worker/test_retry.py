# SPDX-License-Identifier: Apache-2.0
"""When a worker tries again."""

import pytest

from protocol.errors import NotReady, RoundClosed, ServerUnreachable
from worker.retry import LONGEST_RETRY_AFTER_S, WAIT_CAP_S, RetryAfter, wait_before_retry

ALMOST_ONE = 1 - 2**-53


def not_ready_for(wait_s: float) -> NotReady:
    error = NotReady("starting")
    error.__cause__ = RetryAfter(wait_s)
    return error


def test_an_error_that_cannot_be_mended_by_waiting_is_given_up_at_once():
    assert wait_before_retry(RoundClosed("closed"), attempt=0, jitter=0.5) is None


def test_the_longest_wait_doubles_with_every_attempt_and_stops_at_the_cap():
    longest = [wait_before_retry(ServerUnreachable(), n, ALMOST_ONE) for n in range(9)]
    assert longest == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])


def test_the_thousandth_attempt_still_waits_no_longer_than_the_cap():
    assert wait_before_retry(ServerUnreachable(), 1000, ALMOST_ONE) == pytest.approx(WAIT_CAP_S)


def test_jitter_is_full_so_the_wait_may_be_anything_from_nothing():
    assert wait_before_retry(ServerUnreachable(), 5, jitter=0.0) == 0
    assert wait_before_retry(ServerUnreachable(), 5, jitter=0.25) == 4


def test_what_the_server_asked_for_is_waited_at_least_with_the_jitter_on_top():
    assert wait_before_retry(not_ready_for(7.0), 0, jitter=0.0) == 7
    assert wait_before_retry(not_ready_for(7.0), 0, jitter=0.5) == 7.25


def test_a_retry_after_may_exceed_the_cap_but_not_without_limit():
    assert wait_before_retry(not_ready_for(120.0), 0, jitter=0.0) == 120
    assert wait_before_retry(not_ready_for(1e9), 0, jitter=0.0) == LONGEST_RETRY_AFTER_S


def test_a_retry_after_does_not_make_a_final_refusal_retryable():
    error = RoundClosed("closed")
    error.__cause__ = RetryAfter(1.0)
    assert wait_before_retry(error, 0, jitter=0.5) is None
