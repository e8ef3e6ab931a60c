# SPDX-License-Identifier: Apache-2.0
"""Workers driven by hand, one request at a time, and updates of a size that takes a while to send."""

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from fed_sophia.operator_client import OperatorClient
from protocol.assertions import Purpose, public_key_of, thumbprint, use_of
from protocol.codec import NamedTensor, digest_of, encode_bundle, encode_message
from protocol.join_token import JoinToken
from protocol.messages import Assignment, Enrolment, Receipt, RunSpec, TensorSpec, UpdateHeader, UploadOffer
from tests.system.conftest import ServerProcess
from worker.client import ServerClient
from worker.credentials import Signer
from worker.patience import Pauses, persistently
from worker.uploader import Uploader

TASK = "by-hand"
NUMBERS = 50_000
"""In the one tensor of the model: an update has 200 kB."""
PATIENT = Pauses(sleep=lambda wait_s: asyncio.sleep(min(wait_s, 0.2)))


@dataclass(frozen=True)
class Update:
    """A finished update: its declaration and its bytes."""

    header: UpdateHeader
    body: bytes


@dataclass(frozen=True)
class Device:
    """One enrolled worker."""

    client: ServerClient
    worker_id: str

    async def assignment(self) -> Assignment:
        assignment = await self.client.next_assignment(self.worker_id, wait_s=30)
        assert isinstance(assignment, Assignment)
        return assignment

    async def declare(self, assignment: Assignment, update: Update) -> str:
        """Give the address for the body."""
        offer = await self.client.declare(assignment.assignment_id, update.header)
        assert isinstance(offer, UploadOffer), "the server had no update before"
        return offer.upload_url

    async def send(self, upload_url: str, update: Update, first: int = 0) -> Receipt:
        """Send the body, from byte `first` on."""
        rest = update.body[first:]
        receipt = await self.client.send_part(upload_url, first, len(rest), _in_chunks(rest), whole=True)
        assert isinstance(receipt, Receipt)
        return receipt

    async def receipt(self, assignment: Assignment, update: Update) -> Receipt:
        """The receipt of an update that the server has; declaring it gives it."""
        receipt = await self.client.declare(assignment.assignment_id, update.header)
        assert isinstance(receipt, Receipt), "the server has the update"
        return receipt


@asynccontextmanager
async def a_device(
    server: ServerProcess, url: str, name: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Device]:
    """Enrol a new device, whose server is at `url`."""
    token, private_key = JoinToken.parse(await server.join_token()), secrets.token_urlsafe(32)
    public_key, signer = public_key_of(private_key), Signer(private_key, token.server_id)
    proof = signer.sign(Purpose.ENROL, thumbprint(public_key), use_of(token.secret))
    async with ServerClient(url, tls=tls) as client:
        enrolment = Enrolment(name=name, public_key=public_key, proof=proof, tasks=(TASK,))
        enrolled = await client.enrol(str(token), enrolment)
        client.authenticate(signer, enrolled.worker_id)
        yield Device(client, enrolled.worker_id)


@asynccontextmanager
async def a_run(
    server: ServerProcess,
    cohort: int,
    quorum: int,
    numbers: int = NUMBERS,
    new_operator: Callable[[], OperatorClient] | None = None,
) -> AsyncIterator[str]:
    """Hold a run of one round, without bounds to what may be sent, and cancel it afterwards; give its id.

    Args: new_operator: who begins it, if not one who reaches the server itself.
    """
    message = encode_bundle("params", {"w": np.zeros(numbers, dtype=np.float32)})
    async with (new_operator or server.operator)() as operator:
        spec = RunSpec(
            name="by-hand",
            task=TASK,
            algorithm="fedavg",
            model=(TensorSpec(name="w", shape=(numbers,)),),
            params_digest=await operator.put_tensors(message),
            rounds=1,
            local_steps=1,
            cohort_size=cohort,
            quorum=quorum,
        )
        run_id = (await operator.create_run(spec)).run_id
    try:
        yield run_id
    finally:
        async with server.operator() as operator:  # a new one: the server may have been started anew
            await operator.cancel(run_id)


def an_update(value: float, numbers: int = NUMBERS) -> Update:
    """An update that moves every parameter by `value`."""
    delta = NamedTensor("delta", "w", np.full(numbers, value, dtype=np.float32))
    message = encode_message("update", [delta])
    body = b"".join(message)
    header = UpdateHeader(
        digest=digest_of(message),
        size_bytes=len(body),
        bundles=("delta",),
        encodings={"delta": "f32"},
        num_examples=10,
        local_steps=1,
    )
    return Update(header, body)


def as_operator(
    server: ServerProcess, url: str | None = None, tls: ssl.SSLContext | None = None
) -> httpx.AsyncClient:
    """Ask as the operator, through a proxy at `url` if one is given."""
    key = (server.data_dir / "operator.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=url or server.url, headers=headers, timeout=30, verify=tls or True)


async def deliver(device: Device, assignment_id: str, update: Update, directory: Path) -> str:
    """As a worker does that has the update in its outbox; give the outcome."""
    message = directory / "message"
    await asyncio.to_thread(message.write_bytes, update.body)
    uploader = Uploader(device.client)

    async def push() -> Receipt:
        return await uploader.push(assignment_id, update.header, message)

    receipt = await persistently(push, "device", lambda event: None, PATIENT)
    return receipt.outcome


async def received_bytes(server: ServerProcess) -> int:
    """Of bodies, by the server's own count."""
    async with as_operator(server) as http:
        text = (await http.get("/metrics")).text
    [line] = [line for line in text.splitlines() if line.startswith("fed_sophia_received_bytes_total ")]
    return int(float(line.split()[1]))


async def _in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 64 * 1024):
        yield body[start : start + 64 * 1024]
