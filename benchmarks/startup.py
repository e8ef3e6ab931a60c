# SPDX-License-Identifier: Apache-2.0
"""How long it takes until the commands are of use, against what Python and the libraries alone take.

    python -m benchmarks.startup                         the rows of docs/explanation/performance.md; Linux
    python -m benchmarks.startup --repeats 9 --json

Real processes over loopback, one after the other; what is compared is measured in the same minutes:

    help      `fed-sophia --help`, until it has ended
    server    `fed-sophia serve` on a new data directory, and once more on the same, until it says its address
    worker    `fed-sophia worker --task digits`, new to the server, for whose task a run waits: until it asks
              for its first assignment, until it has pulled the model, until it has a receipt for its update
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.crowd.figures import table, usage_of
from benchmarks.ending import ending
from fed_sophia.federation import federation, while_alive
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Fields, Output, output_for
from protocol.errors import Internal
from protocol.messages import JoinTokenRequest

REPEATS = 5
WITHIN_S = 120.0
GRACE_S = 10.0
PYTHON = [sys.executable, "-P"]
FED_SOPHIA = [*PYTHON, "-m", "fed_sophia"]
TO_THE_END = {
    "python": [*PYTHON, "-c", "pass"],
    "import fastapi, uvicorn": [*PYTHON, "-c", "import fastapi, uvicorn"],
    "import torch": [*PYTHON, "-c", "import torch"],
    "help": [*FED_SOPHIA, "--help"],
}
SERVER = {"listening": "server"}
WORKER = {"waiting": "worker asks", "training": "worker has pulled", "sent": "worker has sent"}
"""{event that a process tells of: what it is called here}."""
A_ROUND: dict[str, object] = {"cohort_size": 1, "min_workers": 1, "quorum": 1, "deadline_s": 600}


@dataclass(frozen=True)
class Took:
    """From the start of a process."""

    seconds: float
    cpu_s: float
    """Of one core, in user and system mode: less moved by what else the machine does."""


def row(what: str, took: Sequence[Took]) -> Fields:
    """What one line of JSON says."""
    return {
        "what": what,
        "median_seconds": round(median(each.seconds for each in took), 3),
        "least_seconds": round(min(each.seconds for each in took), 3),
        "median_cpu_s": round(median(each.cpu_s for each in took), 3),
        "seconds_each": [round(each.seconds, 3) for each in took],
    }


def sentence(fields: Fields) -> str:
    return (
        f"{fields['median_seconds']:.2f} s (least {fields['least_seconds']:.2f} s), "
        f"{fields['median_cpu_s']:.2f} s of a core"
    )


async def measure(repeats: int, output: Output) -> list[Fields]:
    """A row for each moment, in the order in which they come.

    Raises:
        Internal: a process has failed, or took too long.
    """
    found: defaultdict[str, list[Took]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="fed-sophia-start-", ignore_cleanup_errors=True) as name:
        async with federation(Path(name), output) as (local, children):
            _, client = await local.start_server()
            async with client:
                for number in range(repeats):
                    measuring = _once(Path(name) / str(number), client)
                    for what, took in (await while_alive(children, measuring)).items():
                        found[what].append(took)
                    output.event("repeated", f"{number + 1} of {repeats}", {"repeat": number + 1})
    return [row(what, took) for what, took in found.items()]


async def _once(folder: Path, client: OperatorClient) -> dict[str, Took]:
    found = {what: await asyncio.to_thread(to_the_end, command) for what, command in TO_THE_END.items()}
    serving = [*FED_SOPHIA, "serve", "--port", "0", "--data-dir", str(folder / "server"), "--json"]
    for data in ("new", "its own"):
        [took] = (await moments(serving, SERVER)).values()
        found[f"server, {data} data directory"] = took
    await begin(client, RunRequest("digits", "start", 1, A_ROUND, local_steps=1))
    token = (await client.create_token(JoinTokenRequest(uses=1))).join_token
    working = [*FED_SOPHIA, "worker", "--server", client.server_url, "--task", "digits", "--device", "cpu"]
    working += ["--name", f"worker-{folder.name}", "--state-dir", str(folder / "worker"), "--json"]
    return found | await moments(working, WORKER, {"FED_SOPHIA_JOIN_TOKEN": token})


def to_the_end(command: Sequence[str]) -> Took:
    """Measure a process until it has ended.

    Raises:
        Internal: it fails, or takes too long.
    """
    began_s, usage = time.monotonic(), os.times()
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        raise Internal(f"{' '.join(command)}: took longer than {WITHIN_S:.0f} s") from None
    if done.returncode:
        raise Internal(f"{' '.join(command)}: ended with {done.returncode}")
    took_s, ended = time.monotonic() - began_s, os.times()
    used = ended.children_user + ended.children_system - usage.children_user - usage.children_system
    return Took(took_s, used)


async def moments(
    command: Sequence[str], events: Mapping[str, str], secrets: Mapping[str, str] | None = None
) -> dict[str, Took]:
    """Measure until a process tells of each of these events for the first time; then end it.

    Raises:
        Internal: it ends first, or takes too long.
    """
    began_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | dict(secrets or {}),
        start_new_session=True,
    )
    assert process.stdout is not None
    found: dict[str, Took] = {}
    try:
        async with asyncio.timeout(WITHIN_S):
            while len(found) < len(events):
                line = await process.stdout.readline()
                at_s = time.monotonic() - began_s
                fields = json.loads(line or b"{}")
                if not line or "error" in fields:
                    raise Internal(f"{command[4]} has ended early: {fields.get('detail', 'it said nothing')}")
                if name := events.get(str(fields.get("event"))):
                    found.setdefault(name, Took(at_s, usage_of(process.pid).cpu_s))
    except TimeoutError:
        raise Internal(f"{command[4]} told of nothing but {list(found)} in {WITHIN_S:.0f} s") from None
    finally:
        await _end(process)
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(GRACE_S):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of everything, in turns")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error("--repeats: at least 1")
    return given


def main() -> int:
    given = _arguments()
    output = output_for(given.json)
    with ending(output):
        rows = run_interruptibly(measure(given.repeats, output))
    output.summary(table({str(each["what"]): sentence(each) for each in rows}), {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
