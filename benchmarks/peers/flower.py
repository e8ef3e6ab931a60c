# SPDX-License-Identifier: Apache-2.0
"""Flower in its deployment mode: a SuperLink, a SuperNode a worker, and `flwr run`.

Everything is as Flower sets it, a process for each worker's part in each round included, but for two things:
TLS is off, and the SuperLink installs no dependencies at run time, for the app has none.
"""

import asyncio

from benchmarks.peers.loopback import free_port, is_listening
from benchmarks.peers.peer import ENVIRONMENTS, ROOT, Peer, Place, Plan
from benchmarks.peers.processes import PeerProcesses, last_words
from protocol.errors import Internal

APP = "benchmarks/peers/flower_app"
LISTENING_WITHIN_S = 120.0
LOOK_S = 0.1


async def begin(plan: Plan, place: Place, processes: PeerProcesses) -> None:
    """Raises: Internal: the SuperLink does not listen, or the run is refused."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    config = f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'
    (place.folder / "config.toml").write_text(config, encoding="utf-8")
    superlink = [str(place.bin / "flower-superlink"), "--insecure", "--port", str(port)]
    log = await processes.start_server("superlink", [*superlink, "--disable-runtime-dependency-installation"])
    try:
        async with asyncio.timeout(LISTENING_WITHIN_S):
            while not await is_listening(port):
                processes.check_alive()
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise Internal(
            f"the SuperLink does not listen after {LISTENING_WITHIN_S:.0f} s: {last_words([log])}"
        ) from None
    supernode = [str(place.bin / "flower-supernode"), "--insecure", "--superlink", address]
    for index in range(plan.workers):
        own = ["--port", str(free_port()), "--node-config", f"partition-id={index}"]
        await processes.start_worker(f"supernode-{index}", [*supernode, *own])
    given = f'mb={plan.mb:f} workers={plan.workers} rounds={plan.rounds} report="{place.report}"'
    run = [str(place.bin / "flwr"), "run", str(ROOT / APP), "bench", "--run-config", given]
    await processes.command("flwr-run", run)


def settings(place: Place) -> dict[str, str]:
    return {
        "FLWR_HOME": str(place.folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


FLOWER = Peer("flower", ENVIRONMENTS / "flower", begin, settings)
