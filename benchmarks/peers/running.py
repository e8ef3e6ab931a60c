# SPDX-License-Identifier: Apache-2.0
"""Measures one peer in a process of its own, for who has other things in this one.

That process enters a network of its own and starts all others; it ends them, and then itself, when it is
asked to, and when this process is gone.
"""

import asyncio
import dataclasses
import json
import os
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


async def measure_peer(peer: str, mb: float, workers: int, rounds: int, folder: Path) -> dict[str, object]:
    """What `rounds` synchronous rounds without training cost in a peer; keys as in `figures.Figures`.

    Args:
        mb: of the float32 arrays together, in 10^6 bytes.
        folder: where the peer's files and logs stay.

    Raises:
        InvalidUsage: there is no such peer, it is not installed, or the numbers are none.
        Internal: it failed, or took too long; with its last words.
    """
    if peer not in PEERS:
        raise InvalidUsage(f"there is no peer {peer!r}; there are {', '.join(sorted(PEERS))}")
    plan = Plan(mb, workers, rounds)
    plan.check()
    folder = await asyncio.to_thread(_placed, peer, folder)
    numbers = ["--mb", f"{mb:f}", "--workers", str(workers), "--rounds", str(rounds)]
    errors = folder / f"{peer}.log"
    with errors.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.peers", peer, *numbers),
            *("--folder", str(folder), "--json", "--exit-with-parent"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=dict(os.environ),
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


def _figures(peer: str, said: bytes, errors: Path) -> dict[str, object]:
    try:
        fields: dict[str, object] = json.loads(said)
    except ValueError:
        raise Internal(f"{peer}: measuring it failed: {last_words([errors])}") from None
    if "error" in fields:
        kind = InvalidUsage if fields["error"] == InvalidUsage.code else Internal
        raise kind(str(fields["detail"]))
    return {field.name: fields[field.name] for field in dataclasses.fields(Figures)}


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


def _placed(peer: str, folder: Path) -> Path:
    folder = folder.absolute()
    PEERS[peer].place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
