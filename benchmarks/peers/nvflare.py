# SPDX-License-Identifier: Apache-2.0
"""NVFlare in its proof-of-concept mode: a server, a site a worker, and `nvflare job submit`.

Everything is as `nvflare poc prepare` sets it, mutual TLS included. The start scripts run `--once`: they do
not wait five seconds first, and do not start again what has failed.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.loopback import is_listening
from benchmarks.peers.nvflare_app import JOB_NAME
from benchmarks.peers.peer import ENVIRONMENTS, Peer, Place, Plan
from benchmarks.peers.processes import PeerProcesses, last_words
from protocol.errors import Internal, InvalidUsage

PORTS = (8002, 8003)
"""Of its server and its administration; `poc prepare` has no option for them."""
REGISTERED = (b"New client site-", b"Re-activated")
UP_WITHIN_S = 120.0
UP_WITHIN_S_A_WORKER = 10.0
LOOK_S = 0.2


async def begin(plan: Plan, place: Place, processes: PeerProcesses) -> None:
    """Raises: InvalidUsage: its ports are taken. Internal: something does not start, or is refused."""
    for port in PORTS:
        if await is_listening(port):
            raise InvalidUsage(f"NVFlare needs port {port}, and another process listens on it")
    python, nvflare = str(place.bin / "python"), str(place.bin / "nvflare")
    numbers = [f"{plan.mb:f}", str(plan.workers), str(plan.rounds)]
    job = [python, "-m", "benchmarks.peers.nvflare_app.job", *numbers, str(place.report), str(place.folder)]
    await processes.command("export-job", job)
    await processes.command("poc-prepare", [nvflare, "poc", "prepare", "-n", str(plan.workers)])
    kits = _startup_kits(place.folder)
    log = await processes.start_server("server", _once(kits / "server"))
    for number in range(1, plan.workers + 1):
        await processes.start_worker(f"site-{number}", _once(kits / f"site-{number}"))
    await _until_registered(plan.workers, log, processes)
    admin = ["--startup-kit", str(kits / "admin@nvidia.com")]
    submit = [nvflare, "job", "submit", "-j", str(place.folder / JOB_NAME), *admin]
    await processes.command("job-submit", submit)


def _once(kit: Path) -> Sequence[str]:
    return ["bash", str(kit / "startup" / "sub_start.sh"), "--once"]


def _startup_kits(folder: Path) -> Path:
    found = sorted(folder.glob("poc/*/prod_00"))
    if not found:
        raise Internal(f"`nvflare poc prepare` has made nothing: {last_words([folder / 'poc-prepare.log'])}")
    return found[0]


async def _until_registered(workers: int, log: Path, processes: PeerProcesses) -> None:
    within_s = UP_WITHIN_S + workers * UP_WITHIN_S_A_WORKER
    try:
        async with asyncio.timeout(within_s):
            while _registered(log) < workers:
                processes.check_alive()
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise Internal(
            f"after {within_s:.0f} s, {_registered(log)} of {workers} sites are there: {last_words([log])}"
        ) from None


def _registered(log: Path) -> int:
    said = log.read_bytes()
    return sum(said.count(words) for words in REGISTERED)


def settings(place: Place) -> dict[str, str]:
    return {"NVFLARE_POC_WORKSPACE": str(place.folder / "poc")}


NVFLARE = Peer("nvflare", ENVIRONMENTS / "nvflare", begin, settings)
