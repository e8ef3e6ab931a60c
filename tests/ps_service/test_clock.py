# SPDX-License-Identifier: Apache-2.0
"""The machine's clock, set back or forward while the server runs."""

import time

import pytest

from ps_service.clock import SystemClock


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_setting_the_machine_s_clock_moves_no_deadline(step_s):
    utc_s, passed_s = [1_000_000], [5]
    clock = SystemClock(lambda: utc_s[0] * 10**9, lambda: passed_s[0] * 10**9)
    assert clock.now_ms() == 1_000_000_000
    utc_s[0] += step_s
    passed_s[0] += 2
    assert clock.now_ms() == 1_000_002_000


def test_it_begins_at_the_machine_s_time():
    assert abs(SystemClock().now_ms() - time.time() * 1000) < 10_000
