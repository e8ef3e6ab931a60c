# SPDX-License-Identifier: Apache-2.0
"""The laws of a token bucket, and who is told to come again when."""

import asyncio
import math

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from ps_service.rates import TokenBuckets, network_of

NOW_S = 1_700_000_000.0


@given(
    per_s=st.floats(1, 1_000),
    burst_s=st.floats(1, 30),
    pauses_s=st.lists(st.floats(0, 2), min_size=1, max_size=300),
)
def test_never_more_than_the_burst_and_the_rate_allow(per_s, burst_s, pauses_s):
    buckets, now_s, taken = TokenBuckets(per_s, burst_s), NOW_S, 0
    for pause_s in pauses_s:
        now_s += pause_s
        taken += buckets.take("w-1", now_s) == 0.0
        assert taken <= per_s * (burst_s + now_s - NOW_S) + 1e-3


@given(per_s=st.floats(1, 1_000), taken=st.integers(0, 3_000))
def test_a_request_that_comes_when_it_was_told_to_is_answered(per_s, taken):
    buckets = TokenBuckets(per_s, burst_s=1.0)
    for _ in range(taken):
        buckets.take("w-1", NOW_S)
    wait_s = buckets.take("w-1", NOW_S)
    assert wait_s == 0.0 or buckets.take("w-1", NOW_S + wait_s) == 0.0
    assert wait_s <= 1.0 / per_s + 1e-6  # a refusal costs nothing: it does not move the time


def test_a_whole_burst_fits_and_one_more_does_not():
    buckets = TokenBuckets(per_s=2.0, burst_s=10.0)
    assert [buckets.take("w-1", NOW_S) for _ in range(20)] == [0.0] * 20
    assert buckets.take("w-1", NOW_S) == pytest.approx(0.5)
    assert buckets.take("w-2", NOW_S) == 0.0


@pytest.mark.parametrize("back_s", [0.1, 20.0, 3_600.0])
def test_a_clock_that_is_set_back_keeps_nobody_waiting(back_s):
    buckets = TokenBuckets(per_s=2.0, burst_s=10.0)
    for _ in range(21):
        buckets.take("w-1", NOW_S)
    assert [buckets.take("w-1", NOW_S - back_s) for _ in range(20)] == [0.0] * 20
    assert buckets.take("w-1", NOW_S - back_s) > 0.0


def test_memory_is_bounded_and_those_that_ask_are_the_ones_remembered():
    buckets = TokenBuckets(per_s=1.0, burst_s=1.0, most_keys=3)
    buckets.take("busy", NOW_S)
    for number in range(100):
        buckets.take(f"passing {number}", NOW_S + number / 1_000)
        assert buckets.take("busy", NOW_S + number / 1_000) > 0.0
        assert len(buckets) <= 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8:0:0:ffff::9", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("no:address", "no:address", True),
    ],
)
def test_one_subscriber_is_one_address(one, other, same):
    assert (network_of(one) == network_of(other)) is same


def told_to_wait(answer):
    return (answer.status_code, answer.json()["code"]) == (429, "too-many-requests")


async def test_a_worker_that_asks_too_often_waits_and_the_others_do_not(start_server):
    server = await start_server(requests_per_s_per_worker=1)
    busy, calm = await server.enrol("busy"), await server.enrol("calm")
    for _ in range(10):
        assert (await busy.ask()).status_code == 204
    refused = await busy.ask()
    assert told_to_wait(refused)
    assert (await calm.ask()).status_code == 204
    server.clock.advance(1_000 * int(refused.headers["retry-after"]))
    assert (await busy.ask()).status_code == 204


async def from_address(server, address, path="/v1/runs"):
    transport = httpx.ASGITransport(server.app, client=(address, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.get(path)


async def test_an_address_that_asks_too_often_waits_whoever_it_says_it_is(start_server):
    server = await start_server(requests_per_s_per_address=2)
    for _ in range(40):
        assert (await from_address(server, "10.0.0.1")).status_code == 401
    refused = await from_address(server, "10.0.0.1")
    assert told_to_wait(refused)
    assert (await from_address(server, "10.0.0.2")).status_code == 401
    server.clock.advance(1_000 * math.ceil(int(refused.headers["retry-after"])))
    assert (await from_address(server, "10.0.0.1")).status_code == 401


async def test_probes_hear_the_truth_from_a_flooded_address(start_server):
    server = await start_server(requests_per_s_per_address=1)
    for _ in range(25):
        last = await from_address(server, "10.0.0.1")
    assert told_to_wait(last)
    for probe in ("/healthz", "/readyz"):
        assert (await from_address(server, "10.0.0.1", probe)).status_code == 200
    text = (await server.operator.get("/metrics")).text
    assert 'fed_sophia_refusals_total{code="too-many-requests"} 5.0' in text


async def test_a_flood_of_probes_takes_one_turn_at_writing(start_server):
    """All who ask while somebody else writes are answered by one look at the stores."""
    server = await start_server(on_disk=True)
    committed = []
    event.listen(server.stores.records.engine.sync_engine, "commit", committed.append)
    async with server.stores.records.write(), asyncio.timeout(30):
        probes = [asyncio.create_task(server.client().get("/readyz")) for _ in range(200)]
        for _ in range(1_000):  # each is where it waits by now
            await asyncio.sleep(0)
    assert [(await probe).status_code for probe in probes] == [200] * 200
    assert len(committed) <= 1 + 10
