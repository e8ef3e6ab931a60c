# SPDX-License-Identifier: Apache-2.0
"""Measures one peer in a process of its own, for who has other things in this one.

That process enters a network of its own and starts all others; it ends them, and then itself, when it is
asked to, and when this process is gone.
"""

import asyncio
import dataclasses
import json
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.peers.figures import Figures
from benchmarks.peers.measuring import PEERS
from benchmarks.peers.peer import ROOT, Plan
from benchmarks.peers.processes import last_words
from protocol.errors import Internal, InvalidUsage

GRACE_S = 30.0
"""Within which it ends its processes: it asks them first."""


async def measure_peer(peer: str, plan: Plan, folder: Path) -> Figures:
    """What synchronous rounds without training cost in a peer; its files and logs stay in the folder.

    Args:
        folder: an absolute path.

    Raises:
        InvalidUsage: it is not installed, or the plan is none.
        Internal: it failed, or took too long; with its last words.
    """
    plan.check()
    PEERS[peer].check_installed()
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    errors = folder / f"{peer}.log"
    with errors.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_command(peer, plan, folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C reaches us alone
        )
    try:
        async with asyncio.timeout(plan.time_limit_s() + GRACE_S):
            assert process.stdout is not None
            said = await process.stdout.read()
            await process.wait()
    except TimeoutError:
        raise Internal(f"{peer}: nothing was heard after {plan.time_limit_s() + GRACE_S:.0f} s") from None
    finally:
        await _end(process)
    return _figures(peer, said, errors)


def _command(peer: str, plan: Plan, folder: Path) -> list[str]:
    numbers = ["--mb", f"{plan.mb:f}", "--workers", str(plan.workers), "--rounds", str(plan.rounds)]
    place = ["--folder", str(folder), "--json", "--exit-with-parent"]
    return [sys.executable, "-m", "benchmarks.peers", peer, *numbers, *place]


def _figures(peer: str, said: bytes, errors: Path) -> Figures:
    try:
        fields = json.loads(said)
    except ValueError:
        raise Internal(f"{peer}: measuring it failed: {last_words([errors])}") from None
    if "error" in fields:
        kind = InvalidUsage if fields["error"] == InvalidUsage.code else Internal
        raise kind(str(fields["detail"]))
    return Figures(**{field.name: fields[field.name] for field in dataclasses.fields(Figures)})


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(GRACE_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
