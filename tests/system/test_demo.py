# SPDX-License-Identifier: Apache-2.0
"""The demo, with real processes: it trains, and however it ends it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DIGITS = ["--task", "digits", "--workers", "4", "--local-steps", "2", "--json"]
LONG_ENOUGH_S = 60.0


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A demo that runs beside the test, with `folder` for its temporary files."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fed_sophia", "demo", *DIGITS, *arguments],
        env=os.environ | {"TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LONG_ENOUGH_S)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def events_until(process: subprocess.Popen[str], event: str) -> list[dict[str, object]]:
    """What the demo says up to and including this event."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(json.loads(line))
        if said[-1].get("event") == event:
            return said
    raise AssertionError(f"the demo ended without {event}: {said}")


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    give_up = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def on_linux(require_part: Callable[[bool, str], None]) -> None:
    require_part(Path("/proc/self/stat").exists(), "/proc")


def test_a_federation_of_four_trains_three_rounds(tmp_path: Path) -> None:
    with demo(tmp_path, "--rounds", "3") as process:
        stdout, stderr = process.communicate(timeout=LONG_ENOUGH_S * 2)
    said = [json.loads(line) for line in stdout.splitlines()]
    assert process.returncode == 0, stdout + stderr
    rounds = [each for each in said if each.get("event") == "round"]
    assert [each["round"] for each in rounds] == [1, 2, 3]
    assert all(each["admitted"] == 4 for each in rounds)
    assert all(0 <= each["test_accuracy"] <= 1 for each in rounds)
    summary = said[-1]
    assert summary["summary"] is True
    assert (summary["algorithm"], summary["rounds"]) == ("fed-sophia-shared", 3)
    assert summary["test_accuracy"] == rounds[-1]["test_accuracy"]
    assert set(summary["rounds_to_target"]) == {"75", "80"}
    assert summary["bytes_up"] == sum(each["bytes_up"] for each in rounds) > 0
    assert summary["bytes_down"] > 0
    assert summary["seconds"] > 0
    assert len(summary["final_digest"]) == 64
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("on_linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_interrupted_leaves_no_process_and_no_file(
    number: signal.Signals, tmp_path: Path
) -> None:
    with demo(tmp_path, "--rounds", "100000") as process:
        pids = [each["pid"] for each in events_until(process, "round") if each.get("event") == "process"]
        assert len(pids) == 3
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=LONG_ENOUGH_S)
    assert process.returncode == 128 + number
    assert json.loads(stdout.splitlines()[-1]) == {"summary": True, "interrupted": number.name}
    assert "Traceback" not in stderr
    assert [pid for pid in pids if alive(int(str(pid)))] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("on_linux")
def test_the_children_of_a_demo_that_is_killed_stop_by_themselves(tmp_path: Path) -> None:
    with demo(tmp_path, "--rounds", "100000") as process:
        pids = [
            int(str(each["pid"])) for each in events_until(process, "round") if each.get("event") == "process"
        ]
        process.kill()
        process.communicate(timeout=LONG_ENOUGH_S)
        assert wait_until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.usefixtures("on_linux")
def test_a_demo_whose_swarm_dies_says_so_and_stops(tmp_path: Path) -> None:
    with demo(tmp_path, "--rounds", "100000") as process:
        pids = {
            each["name"]: int(str(each["pid"]))
            for each in events_until(process, "round")
            if each.get("event") == "process"
        }
        os.kill(pids["swarm-1"], signal.SIGKILL)
        stdout, _ = process.communicate(timeout=LONG_ENOUGH_S)
    summary = json.loads(stdout.splitlines()[-1])
    assert process.returncode == 1
    assert summary["error"] == "internal"
    assert "swarm-1 ended early" in summary["detail"]
    assert [pid for pid in pids.values() if alive(pid)] == []


def test_the_example_task_trains(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "my_task.py"
    arguments = ["--task", str(example), "--partition", "iid", "--rounds", "5", "--local-steps", "10"]
    with demo(tmp_path, *arguments) as process:
        stdout, stderr = process.communicate(timeout=LONG_ENOUGH_S * 2)
    assert process.returncode == 0, stdout + stderr
    assert json.loads(stdout.splitlines()[-1])["test_accuracy"] > 0.85
