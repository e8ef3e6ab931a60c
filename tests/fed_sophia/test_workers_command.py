# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia workers` and `fed-sophia run workers`: every worker is told of, in a table or in JSON lines."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fed_sophia.cli import run_command
from fed_sophia.workers_view import counts_text, time_text
from tests.fed_sophia.small_run import SPEC

DAY_MS = 1_767_225_600_000  # 2026-01-01 00:00:00 UTC
RUN = {
    "run_id": "run-1",
    "spec": SPEC,
    "status": "running",
    "round": 3,
    "version": 2,
    "tensors": {},
    "members": 3,
    "created_ms": 0,
}
NOT_FOUND = {
    "type": "t",
    "title": "t",
    "status": 404,
    "detail": "run run-1 has no round 9",
    "code": "not-found",
    "retryable": False,
}


def enrolled(name: str, **changes: object) -> dict[str, object]:
    fields = {
        "worker_id": f"w-{name}",
        "name": name,
        "role": "trainer",
        "tasks": ["digits"],
        "enrolled_ms": DAY_MS,
        "last_seen_ms": DAY_MS + 5_000,
        "approved_ms": DAY_MS,
    }
    return fields | changes


def invited(slot: int, standing: str, reason: str | None = None) -> dict[str, object]:
    return {
        "slot": slot,
        "worker_id": f"w-{slot}",
        "name": f"laptop-{slot}",
        "assignment_id": f"a-{slot}",
        "standing": standing,
        "reason": reason,
    }


ENROLLED = [
    enrolled("gone", lost_ms=DAY_MS + 95_000),
    enrolled("here", device="NVIDIA L4", tasks=["digits", "mnist"]),
    enrolled("judge", role="evaluator"),
    enrolled("out", lost_ms=DAY_MS + 95_000, revoked_ms=DAY_MS + 99_000),
]
LAST_ROUND = [invited(0, "counted"), invited(1, "refused", "outside-bound"), invited(4, "counted")]
FIRST_ROUND = [invited(0, "lost"), invited(1, "declined", "on [bold]battery[/bold]\n\x1b[31mnow\x9b")]

Answers = dict[str, tuple[int, object]]


@pytest.fixture
def answers() -> Answers:
    """{path: (status, JSON)} of the server that commands speak to."""
    return {
        "/v1/workers": (200, {"workers": ENROLLED}),
        "/v1/runs/run-1": (200, RUN),
        "/v1/runs/run-1/rounds/3/workers": (200, {"workers": LAST_ROUND}),
        "/v1/runs/run-1/rounds/1/workers": (200, {"workers": FIRST_ROUND}),
        "/v1/runs/run-1/rounds/9/workers": (404, NOT_FOUND),
    }


@pytest.fixture
def told(
    answers: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run a command against a server on loopback: its exit code, and what it said."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[self.path.partition("?")[0]]
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    key_file = tmp_path / "operator.key"
    key_file.write_text("key")
    monkeypatch.setenv("COLUMNS", "200")

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"

        def run(*arguments: str) -> tuple[int, str]:
            code = run_command([*arguments, "--server", url, "--operator-key-file", str(key_file)])
            said = capsys.readouterr()
            return code, said.out + said.err

        yield run
        server.shutdown()
        serving.join(timeout=10)


def cells(text: str) -> list[list[str]]:
    """The rows of a table, without its headings."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def test_every_enrolled_worker_is_a_row_with_what_is_known_of_it(
    told: Callable[..., tuple[int, str]],
) -> None:
    code, text = told("workers", "list")
    seen = "2026-01-01 00:00:05"
    assert (code, cells(text)) == (
        0,
        [
            ["gone", "w-gone", "trainer", "default", "digits", "", seen, "lost"],
            ["here", "w-here", "trainer", "default", "digits, mnist", "NVIDIA L4", seen, "present"],
            ["judge", "w-judge", "evaluator", "default", "digits", "", seen, "present"],
            ["out", "w-out", "trainer", "default", "digits", "", seen, "revoked"],
        ],
    )
    assert text.splitlines()[-1] == "2 present, 1 lost, 1 revoked"


def test_a_machine_is_told_of_every_enrolled_worker_and_how_many_are_there(
    told: Callable[..., tuple[int, str]],
) -> None:
    code, text = told("workers", "list", "--json")
    *lines, summary = (json.loads(line) for line in text.splitlines())
    assert code == 0
    assert [(line["event"], line["worker"], line["presence"]) for line in lines] == [
        ("worker", "w-gone", "lost"),
        ("worker", "w-here", "present"),
        ("worker", "w-judge", "present"),
        ("worker", "w-out", "revoked"),
    ]
    assert lines[0] == {
        "event": "worker",
        "worker": "w-gone",
        "name": "gone",
        "role": "trainer",
        "tasks": ["digits"],
        "enrolled_ms": DAY_MS,
        "last_seen_ms": DAY_MS + 5_000,
        "lost_ms": DAY_MS + 95_000,
        "revoked_ms": None,
        "label": "default",
        "run_id": None,
        "approved_ms": DAY_MS,
        "expired_ms": None,
        "key_thumbprint": None,
        "refusals": 0,
        "quarantined_ms": None,
        "device": None,
        "presence": "lost",
    }
    presences = {"lost": 1, "present": 2, "revoked": 1}
    assert summary == {"summary": True, "workers": 4, "presences": presences}


def test_without_workers_there_is_a_sentence_and_no_table(
    told: Callable[..., tuple[int, str]], answers: Answers
) -> None:
    answers["/v1/workers"] = 200, {"workers": []}
    assert told("workers", "list") == (0, "no workers have enrolled yet\n")


def test_the_last_round_is_shown_unless_another_is_asked_for(told: Callable[..., tuple[int, str]]) -> None:
    code, text = told("run", "workers", "run-1")
    assert (code, cells(text)) == (
        0,
        [
            ["0", "laptop-0", "counted", ""],
            ["1", "laptop-1", "refused", "outside-bound"],
            ["4", "laptop-4", "counted", ""],
        ],
    )
    assert text.splitlines()[-1] == "round 3: 2 counted, 1 refused"
    assert "round 1: 1 lost, 1 declined" in told("run", "workers", "run-1", "--round", "1")[1]


def test_a_worker_s_own_words_give_no_orders_to_a_terminal(told: Callable[..., tuple[int, str]]) -> None:
    _, text = told("run", "workers", "run-1", "--round", "1")
    assert cells(text)[1][-1] == "on [bold]battery[/bold] �[31mnow�"


def test_a_machine_is_told_of_every_worker_of_a_round_and_how_many_stand_where(
    told: Callable[..., tuple[int, str]],
) -> None:
    code, text = told("run", "workers", "run-1", "--json")
    *lines, summary = (json.loads(line) for line in text.splitlines())
    assert code == 0
    assert [line["slot"] for line in lines] == [0, 1, 4]
    assert lines[1] == {
        "event": "worker",
        "run": "run-1",
        "round": 3,
        "worker": "w-1",
        "slot": 1,
        "name": "laptop-1",
        "assignment_id": "a-1",
        "standing": "refused",
        "reason": "outside-bound",
        "received_ms": None,
    }
    assert summary == {
        "summary": True,
        "run": "run-1",
        "round": 3,
        "workers": 3,
        "standings": {"counted": 2, "refused": 1},
    }


def test_a_run_without_a_round_says_so(told: Callable[..., tuple[int, str]], answers: Answers) -> None:
    answers["/v1/runs/run-1"] = 200, RUN | {"round": 0}
    assert told("run", "workers", "run-1") == (0, "no round was opened yet\n")


def test_a_round_of_another_server_has_no_workers_here(
    told: Callable[..., tuple[int, str]], answers: Answers
) -> None:
    """As after an import: the history came, its workers did not."""
    answers["/v1/runs/run-1/rounds/3/workers"] = 200, {"workers": []}
    assert told("run", "workers", "run-1") == (0, "round 3: nobody was invited here\n")


def test_a_round_that_is_not_there_is_an_error_in_one_line(told: Callable[..., tuple[int, str]]) -> None:
    answer = told("run", "workers", "run-1", "--round", "9")
    assert answer == (1, "error: run run-1 has no round 9 (not-found)\n")


@pytest.mark.parametrize("number", ["0", "-1", "last"])
def test_what_is_no_round_is_wrong_usage(number: str, told: Callable[..., tuple[int, str]]) -> None:
    code, text = told("run", "workers", "run-1", "--round", number)
    assert code == 2
    assert text.endswith("(invalid-usage)\n")


def test_a_count_begins_with_the_most_frequent() -> None:
    assert counts_text(["lost", "counted", "counted"]) == "2 counted, 1 lost"
    assert counts_text([]) == ""


def test_a_time_is_told_in_utc() -> None:
    assert time_text(DAY_MS + 86_399_999) == "2026-01-01 23:59:59"
