# SPDX-License-Identifier: Apache-2.0
"""The machine's clock, set back or forward while the server runs."""

import time

import pytest

from ps_service.clock import SystemClock
from ps_service.storage import credential_records


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_setting_the_machine_s_clock_moves_no_deadline(step_s):
    utc_s, passed_s = [1_000_000], [5]
    clock = SystemClock(lambda: utc_s[0] * 10**9, lambda: passed_s[0] * 10**9)
    assert clock.now_ms() == 1_000_000_000
    utc_s[0] += step_s
    passed_s[0] += 2
    assert clock.now_ms() == 1_000_002_000


def test_a_clock_follows_another_by_half_a_percent_and_never_goes_backwards():
    passed_s = [0.0]
    clock = SystemClock(lambda: 10**15, lambda: int(passed_s[0] * 10**9))

    def after(seconds, follows_ms):
        passed_s[0] += seconds
        before_ms = clock.now_ms()
        clock.follow(follows_ms)
        assert clock.now_ms() >= before_ms
        passed_s[0] += 1
        return clock.now_ms() - 1_000_000_000

    assert after(10, 1_000_010_020) == 11_020, "what crystals differ by is made up for"
    assert after(9, 1_000_020_000) == 21_000
    assert after(9, 1_003_630_000) == 31_050, "who set a clock moves nobody's by much"
    assert after(9, 0) == 41_000
    assert after(9, 0) == 50_950


def test_a_clock_that_is_behind_goes_on_from_what_was_written_down():
    assert SystemClock(lambda: 10**9, lambda: 5, not_before_ms=2_000).now_ms() == 2_000
    assert SystemClock(lambda: 10**9, lambda: 5, not_before_ms=999).now_ms() == 1_000


async def test_the_last_time_written_down_is_that_of_a_worker_or_of_a_run(start_server):
    server = await start_server(performing=False)

    async def latest_ms():
        async with server.stores.records.read() as connection:
            return await credential_records.latest_ms(connection)

    assert await latest_ms() == 0
    await server.enrol("worker")
    assert await latest_ms() == server.clock.now_ms()
    server.clock.advance(5_000)
    await server.a_run()
    assert await latest_ms() == server.clock.now_ms()


def test_it_begins_at_the_machine_s_time():
    assert abs(SystemClock().now_ms() - time.time() * 1000) < 10_000
