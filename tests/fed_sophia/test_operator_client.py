# SPDX-License-Identifier: Apache-2.0
"""The operator's client: answers become messages, problems become errors, a cut stream is resumed."""

import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from fed_sophia.event_stream import ServerEvent, read_events
from fed_sophia.operator_client import OperatorClient
from protocol.errors import (
    DigestMismatch,
    NotFound,
    NotReady,
    QuorumMissing,
    ServerUnreachable,
    UnexpectedAnswer,
)
from protocol.messages import RunStatus

SUMMARY = {
    "run_id": "r",
    "spec": {
        "name": "n",
        "task": "t",
        "algorithm": "fedavg",
        "model": [{"name": "w", "shape": [1]}],
        "params_digest": "0" * 64,
        "rounds": 1,
        "cohort_size": 1,
        "quorum": 1,
    },
    "status": "running",
    "round": 1,
    "version": 0,
    "tensors": {},
    "members": 1,
    "created_ms": 0,
}


def client_of(answer: Callable[[httpx.Request], httpx.Response]) -> OperatorClient:
    return OperatorClient("http://server.test", "the-key", transport=httpx.MockTransport(answer))


def problem(status: int, code: str) -> httpx.Response:
    fields = {"type": "t", "title": "t", "status": status, "detail": "why", "code": code, "retryable": False}
    return httpx.Response(status, json=fields, headers={"Content-Type": "application/problem+json"})


async def lines_of(text: str) -> AsyncIterator[str]:
    for line in text.split("\n"):
        yield line


async def test_the_key_travels_in_a_header_and_never_in_the_url() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"runs": [SUMMARY]})

    async with client_of(answer) as client:
        (run,) = await client.runs()
    assert run.status is RunStatus.RUNNING
    assert seen[0].headers["Authorization"] == "Bearer the-key"
    assert "the-key" not in str(seen[0].url)


async def test_a_problem_becomes_the_error_of_its_code() -> None:
    async with client_of(lambda _: problem(409, "quorum-missing")) as client:
        with pytest.raises(QuorumMissing, match="why"):
            await client.run("r")
    async with client_of(lambda _: problem(418, "from-the-future")) as client:
        with pytest.raises(UnexpectedAnswer, match="from-the-future"):
            await client.run("r")


async def test_something_else_than_a_parameter_server_is_recognised() -> None:
    async with client_of(lambda _: httpx.Response(404, text="<html>")) as client:
        with pytest.raises(UnexpectedAnswer, match="is this the parameter server"):
            await client.run("r")
    async with client_of(lambda _: httpx.Response(200, json={"hello": 1})) as client:
        with pytest.raises(UnexpectedAnswer, match="RunSummary"):
            await client.run("r")


async def test_tensors_that_are_not_what_their_digest_names_are_refused() -> None:
    async with client_of(lambda _: httpx.Response(200, content=b"other")) as client:
        with pytest.raises(DigestMismatch):
            await client.tensors("r", "0" * 64)


async def test_an_event_stream_that_is_cut_goes_on_after_the_last_event() -> None:
    asked: list[str | None] = []
    ended = json.dumps(SUMMARY | {"status": "finished"})

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) == 1:
            return httpx.Response(200, text="id: 1\nevent: round\ndata: {}\n\nid: 2\nevent: round\nda")
        if len(asked) == 2:
            raise httpx.ReadError("cut")
        return httpx.Response(200, text=f": still here\n\nid: 2\nevent: run\ndata: {ended}\n\n")

    async with client_of(answer) as client:
        kinds = [event.kind async for event in client.events("r")]
    assert kinds == ["round", "run"]
    assert asked == [None, "1", "1"]


async def test_a_stream_that_a_server_has_no_time_for_is_asked_for_again() -> None:
    ended = json.dumps(SUMMARY | {"status": "finished"})
    answers = [problem(503, "not-ready"), httpx.Response(200, text=f"event: run\ndata: {ended}\n\n")]

    async with client_of(lambda _: answers.pop(0)) as client:
        assert [event.kind async for event in client.events("r")] == ["run"]


async def test_a_stream_that_is_always_refused_ends_with_the_refusal() -> None:
    async with client_of(lambda _: problem(503, "not-ready")) as client:
        with pytest.raises(NotReady, match=r"2 attempts .* failed: why"):
            _ = [event async for event in client.events("r", max_failures=2)]


def versions_from(first: int, count: int) -> httpx.Response:
    rows = [{"version": first + number, "tensors": {}, "created_ms": 0} for number in range(count)]
    return httpx.Response(200, json={"versions": rows})


async def test_a_list_is_asked_for_until_a_page_is_short() -> None:
    asked: list[tuple[str | None, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        asked.append((query.get("after"), query.get("limit")))
        return versions_from(1000, 7) if "after" in query else versions_from(0, 1000)

    async with client_of(answer) as client:
        versions = await client.versions("r")
    assert [version.version for version in versions] == list(range(1007))
    assert asked == [(None, "1000"), ("999", "1000")]


async def test_the_workers_of_a_round_are_asked_for_behind_the_last_slot_seen() -> None:
    asked: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.url.params.get("after")))
        first, count = (2000, 3) if "after" in request.url.params else (0, 1000)
        worker = {"worker_id": "w", "name": "n", "assignment_id": "a", "standing": "asked"}
        rows = [worker | {"slot": first + 2 * number} for number in range(count)]
        return httpx.Response(200, json={"workers": rows})

    async with client_of(answer) as client:
        workers = await client.workers_in_round("r", 7)
    assert [worker.slot for worker in workers] == list(range(0, 2006, 2))
    path = "/v1/runs/r/rounds/7/workers"
    assert asked == [(path, None), (path, "1998")]


async def test_a_server_that_gives_everything_at_once_is_asked_no_more_than_twice() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return versions_from(0, 1500)

    async with client_of(answer) as client:
        assert len(await client.versions("r")) == 1500
    assert len(asked) == 2


async def test_following_a_run_gives_up_after_so_many_failures() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with client_of(answer) as client:
        with pytest.raises(ServerUnreachable, match="2 attempts"):
            _ = [event async for event in client.events("r", max_failures=2)]


async def test_following_a_run_that_is_not_there_says_so_at_once() -> None:
    async with client_of(lambda _: problem(404, "not-found")) as client:
        with pytest.raises(NotFound):
            _ = [event async for event in client.events("r")]


async def test_events_are_read_by_the_rules_of_server_sent_events() -> None:
    whole = ": comment\nid: 7\nevent: round\ndata: one\ndata:two\n\n\nevent: empty\n\ndata: three\n\n"
    events = [event async for event in read_events(lines_of(whole + "data: unfinished"))]
    assert events == [ServerEvent("round", "7", "one\ntwo"), ServerEvent("message", "", "three")]
