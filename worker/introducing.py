# SPDX-License-Identifier: Apache-2.0
"""Tells the server what this worker trains on, once that is known.

It is for the operator's eyes and nothing depends on it: it is told beside the work, and a server that does
not want to hear it is not asked again.
"""

from collections.abc import Awaitable, Callable
from typing import NoReturn

from protocol.errors import FedSophiaError
from protocol.messages import Heartbeat
from worker.client import ServerClient
from worker.patience import Pauses
from worker.retry import wait_before_retry
from worker.shared import AT_WILL, Turns
from worker.threads import for_ever

ATTEMPTS = 10
MAX_NAME = 128

DeviceName = Callable[[], Awaitable[str | None]]
"""Gives it once the task is loaded; None if it cannot be told.

Raises: FedSophiaError: the task cannot be loaded.
"""


async def tell_device(
    client: ServerClient,
    worker_id: str,
    device_name: DeviceName,
    pauses: Pauses,
    turns: Turns = AT_WILL,
) -> NoReturn:
    """A companion that never fails: what ends a worker, its work will meet.

    Args: turns: all workers of a process know its name at the same moment.
    """
    try:
        name = await device_name()
    except FedSophiaError:
        name = None
    if name:
        await _tell(client, worker_id, Heartbeat(device=name[:MAX_NAME]), pauses, turns)
    await for_ever()


async def _tell(
    client: ServerClient,
    worker_id: str,
    beat: Heartbeat,
    pauses: Pauses,
    turns: Turns,
) -> None:
    for attempt in range(ATTEMPTS):
        try:
            async with turns:
                await client.heartbeat(worker_id, beat)
        except FedSophiaError as error:
            wait_s = wait_before_retry(error, attempt, pauses.jitter())
        else:
            wait_s = None
        if wait_s is None:
            break
        await pauses.sleep(wait_s)
