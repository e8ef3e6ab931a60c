# SPDX-License-Identifier: Apache-2.0
"""A worker that speaks the protocol and sends garbage: at once, every round, and never declines."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import NoReturn

from benchmarks.disturbed.garbage import Forgery, forge
from benchmarks.disturbed.mortal import Surroundings
from protocol.assertions import Purpose, public_key_of, thumbprint, use_of
from protocol.errors import FedSophiaError
from protocol.join_token import JoinToken
from protocol.messages import Assignment, Enrolment, Receipt
from worker.client import ServerClient
from worker.credentials import Signer
from worker.downloader import Downloader
from worker.global_state import GlobalState
from worker.options import WorkerOptions

_LONG_POLL_S = 30.0
_PAUSE_S = 0.25
_CHUNK_BYTES = 1 << 20


class _HungUp(Exception):
    """This side has closed the connection in the middle of a body."""


async def lie(options: WorkerOptions, around: Surroundings) -> NoReturn:
    """Send garbage until cancelled.

    Raises:
        FedSophiaError: it cannot enrol.
    """
    assert options.join_token is not None
    disturbances, record = around.disturbances, around.record
    token, private_key = JoinToken.parse(options.join_token), secrets.token_urlsafe(32)
    public_key, signer = public_key_of(private_key), Signer(private_key, token.server_id)
    proof = signer.sign(Purpose.ENROL, thumbprint(public_key), use_of(token.secret))
    async with ServerClient(options.server_url) as client:
        enrolment = Enrolment(
            name=options.name, public_key=public_key, proof=proof, tasks=(around.task_name,)
        )
        enrolled = await client.enrol(str(token), enrolment)
        client.authenticate(signer, enrolled.worker_id)
        state = GlobalState(Downloader(client).fetch)
        while True:
            try:
                assignment = await client.next_assignment(enrolled.worker_id, _LONG_POLL_S)
                # an assignment that is still open is answered again at once: it has had its garbage
                if not isinstance(assignment, Assignment) or assignment.assignment_id in record.assignments:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                record.assignments.add(assignment.assignment_id)
                kind = disturbances.garbage_of(options.partition_index, assignment.round)
                chance = disturbances.chance_of(options.partition_index, assignment.round)
                tensors = await state.pull(assignment.run_id, assignment.tensors)
                forgery = await asyncio.to_thread(forge, kind, assignment, tensors, chance)
                record.lies[kind] += 1
                receipt = await _send(client, assignment, forgery)
                record.receipts[receipt.assignment_id] = receipt
            except FedSophiaError as error:
                record.refusals_of_liars[error.code] += 1
                await asyncio.sleep(_PAUSE_S)
            except _HungUp:
                continue


async def _send(client: ServerClient, assignment: Assignment, forgery: Forgery) -> Receipt:
    answer = await client.declare(assignment.assignment_id, forgery.header)
    if isinstance(answer, Receipt):
        return answer
    receipt = await client.send_part(answer.upload_url, 0, len(forgery.body), _chunks(forgery), whole=True)
    assert isinstance(receipt, Receipt), "a body that is whole is answered with a receipt, or refused"
    return receipt


async def _chunks(forgery: Forgery) -> AsyncIterator[bytes]:
    end = len(forgery.body) if forgery.hangs_up_after is None else forgery.hangs_up_after
    for start in range(0, end, _CHUNK_BYTES):
        yield forgery.body[start : min(start + _CHUNK_BYTES, end)]
    if forgery.hangs_up_after is not None:
        raise _HungUp
