# SPDX-License-Identifier: Apache-2.0
"""Makes this worker known to the server: by a join token the first time, by its own secret ever after."""

from functools import partial

from protocol.errors import InvalidUsage, Unauthenticated
from protocol.messages import Enrolment, Heartbeat, parse
from worker.client import ServerClient
from worker.events import Enrolled, Report
from worker.identity import Identity, save_identity
from worker.options import WorkerOptions
from worker.patience import Pauses, persistently


async def enrol_once(
    client: ServerClient,
    identity: Identity,
    options: WorkerOptions,
    task_name: str,
    report: Report,
    pauses: Pauses,
) -> str:
    """Give the worker's id, kept from an earlier start or fresh from the server.

    A server that was restored from a backup may have forgotten a worker: with a join token it enrols again.

    Raises:
        InvalidUsage: a join token is needed and there is none.
        Unauthenticated: the server has forgotten this worker, and there is no join token.
        FedSophiaError: the server refuses.
    """
    if identity.worker_id is not None:
        heartbeat = Heartbeat(tasks=(task_name,))  # the task may be another than at the last start
        beat = partial(client.heartbeat, identity.worker_id, heartbeat)
        try:
            await persistently(beat, options.name, report, pauses)
        except Unauthenticated:
            if options.join_token is None:
                raise Unauthenticated(
                    f"the server does not know {options.name}, which enrolled as {identity.worker_id}: "
                    "start it once with a fresh join token"
                ) from None
        else:
            report(Enrolled(identity.worker_id, worker=options.name))
            return identity.worker_id
    if options.join_token is None:
        raise InvalidUsage(f"{options.name} has not enrolled yet: a join token is needed")
    enrolment = parse(Enrolment, {"name": options.name, "secret": identity.secret, "tasks": (task_name,)})
    enrol = partial(client.enrol, options.join_token, enrolment)
    answer = await persistently(enrol, options.name, report, pauses)
    save_identity(options.state_dir, identity.model_copy(update={"worker_id": answer.worker_id}))
    report(Enrolled(answer.worker_id, worker=options.name))
    return answer.worker_id
