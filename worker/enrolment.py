# SPDX-License-Identifier: Apache-2.0
"""Makes this worker known to the server: by a join token the first time, by its own key ever after."""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_urlsafe
from typing import TypeVar

from protocol.assertions import Purpose, public_key_of, thumbprint, use_of
from protocol.errors import AssertionRefused, InvalidUsage, Unauthenticated, WorkerExpired
from protocol.join_token import JoinToken
from protocol.messages import Enrolled as Answer
from protocol.messages import Enrolment, Heartbeat, KeyRotation, parse
from worker.client import ServerClient
from worker.credentials import Signer
from worker.durable import Fsync
from worker.events import Enrolled, Report
from worker.identity import Identity, save_identity
from worker.options import WorkerOptions
from worker.patience import Pauses, persistently
from worker.shared import AT_WILL, Turns
from worker.threads import to_its_end

T = TypeVar("T")


@dataclass
class Enrolling:
    """One worker that makes itself known."""

    client: ServerClient
    options: WorkerOptions
    task_name: str
    report: Report
    pauses: Pauses
    fsync: Fsync = os.fsync
    turns: Turns = AT_WILL

    async def enrol_once(self, identity: Identity) -> str:
        """Give the worker's id, kept from an earlier start or fresh from the server.

        A server that was restored from a backup may have forgotten a worker, and one that was idle for long
        may have expired: with a join token it enrols again.

        Raises:
            InvalidUsage: a join token is needed and there is none, or it is none.
            Unauthenticated, AssertionRefused, WorkerExpired: the server has this worker no more, and there
                is no join token.
            FedSophiaError: the server refuses.
        """
        worker_id, server_id = identity.worker_id, identity.server_id
        if worker_id is not None and server_id is not None:
            try:
                identity = await self._settle_keys(identity, worker_id, server_id)
                self.client.authenticate(Signer(identity.private_key, server_id), worker_id)
                await self._say_hello(worker_id)
            except (Unauthenticated, AssertionRefused, WorkerExpired) as error:
                if self.options.join_token is None:
                    raise type(error)(
                        f"the server has {self.options.name} no more, which enrolled as "
                        f"{worker_id}: start it once with a fresh join token"
                    ) from None
            else:
                if self.options.rotate_key:
                    await self._rotate(identity, worker_id, server_id)
                return worker_id
        return await self._enrol(identity)

    async def _say_hello(self, worker_id: str) -> None:
        # the task may be another than at the last start
        beat = partial(self.client.heartbeat, worker_id, Heartbeat(tasks=(self.task_name,)))
        await self._persistently(beat)
        self.report(Enrolled(worker_id, worker=self.options.name))

    async def _enrol(self, identity: Identity) -> str:
        if self.options.join_token is None:
            raise InvalidUsage(f"{self.options.name} has not enrolled yet: a join token is needed")
        token = JoinToken.parse(self.options.join_token)
        identity = identity.model_copy(update={"server_id": token.server_id, "worker_id": None})
        await self._save(identity)
        signer = Signer(identity.private_key, token.server_id)
        answer = await self._persistently(partial(signer.persuade, partial(self._ask, signer, token)))
        await self._save(identity.model_copy(update={"worker_id": answer.worker_id}))
        self.client.authenticate(signer, answer.worker_id)
        await self._say_hello(answer.worker_id)
        return answer.worker_id

    async def _ask(self, signer: Signer, token: JoinToken) -> Answer:
        public_key = public_key_of(signer.private_key)
        proof = signer.sign(Purpose.ENROL, thumbprint(public_key), use_of(token.secret))
        said = {"name": self.options.name, "public_key": public_key, "proof": proof}
        enrolment = parse(Enrolment, said | {"tasks": (self.task_name,)})
        return await self.client.enrol(str(token), enrolment)

    # --- keys ----------------------------------------------------------------------------------

    async def _rotate(self, identity: Identity, worker_id: str, server_id: str) -> None:
        """Put a new key in the place of this worker's. What breaks off is settled at the next start."""
        identity = identity.model_copy(update={"next_private_key": token_urlsafe(32)})
        await self._save(identity)
        assert identity.next_private_key is not None
        signer = Signer(identity.next_private_key, server_id)
        asking = partial(self._ask_to_rotate, signer, identity.private_key, worker_id)
        rotate = partial(signer.persuade, asking)
        try:
            await self._persistently(rotate)
        except AssertionRefused:
            # its answer was lost, and took the old key's tokens with it: only the new key is of use then
            if (await self._settle_keys(identity, worker_id, server_id)).private_key != signer.private_key:
                raise
        else:
            await self._promote(identity)
            self.client.authenticate(signer, worker_id)

    async def _ask_to_rotate(self, signer: Signer, old_key: str, worker_id: str) -> None:
        public_key, proof = public_key_of(signer.private_key), signer.sign(Purpose.ROTATE, worker_id)
        consent = replace(signer, private_key=old_key).sign(Purpose.ROTATE, worker_id, thumbprint(public_key))
        said = {"public_key": public_key, "proof": proof, "consent": consent}
        await self.client.rotate_key(worker_id, parse(KeyRotation, said))

    async def _settle_keys(self, identity: Identity, worker_id: str, server_id: str) -> Identity:
        """A rotation broke off: the server has the old key or the new one. Keep the one that it has.

        Raises:
            AssertionRefused: it takes neither, and both are kept: a refusal may have another reason.
        """
        if identity.next_private_key is None:
            return identity
        try:
            await self._is_had(identity.next_private_key, worker_id, server_id)
        except AssertionRefused:
            await self._is_had(identity.private_key, worker_id, server_id)
            identity = identity.model_copy(update={"next_private_key": None})
            await self._save(identity)
            return identity
        return await self._promote(identity)

    async def _is_had(self, private_key: str, worker_id: str, server_id: str) -> None:
        """Be this worker by this key. Raises: AssertionRefused: the server does not take it."""
        self.client.authenticate(Signer(private_key, server_id), worker_id)
        with suppress(WorkerExpired):  # it looks at who signed before it says so
            await self._persistently(partial(self.client.heartbeat, worker_id, Heartbeat()))

    async def _promote(self, identity: Identity) -> Identity:
        promoted = identity.model_copy(
            update={"private_key": identity.next_private_key, "next_private_key": None}
        )
        await self._save(promoted)
        return promoted

    async def _save(self, identity: Identity) -> None:
        await to_its_end(partial(save_identity, self.options.state_dir, identity, self.fsync))

    async def _persistently(self, action: Callable[[], Awaitable[T]]) -> T:
        async def in_turn() -> T:
            async with self.turns:
                return await action()

        return await persistently(in_turn, self.options.name, self.report, self.pauses)
