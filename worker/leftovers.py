# SPDX-License-Identifier: Apache-2.0
"""What ended runs leave behind on a device: state that will never be asked for again."""

import asyncio
from functools import partial

from protocol.errors import FedSophiaError
from worker.client import ServerClient
from worker.local_state import LocalState
from worker.threads import to_its_end


async def forget_ended(client: ServerClient, local_state: LocalState) -> None:
    """Ask after every run that something is kept for, and keep nothing for those that have ended.

    A run the server does not know, or does not answer for, keeps what it has.

    Raises:
        StateNotWritable: the files of an ended run cannot be removed.
    """
    for run_id in await asyncio.to_thread(local_state.runs):
        try:
            run = await client.show_run(run_id)
        except FedSophiaError:
            continue
        if run.status.ended:
            await to_its_end(partial(local_state.forget, run_id))
