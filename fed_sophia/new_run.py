# SPDX-License-Identifier: Apache-2.0
"""Begins a run on the operator's side: the task's model is initialised here, with the run's seed."""

from dataclasses import dataclass, field
from pathlib import Path

from fed_sophia.extras import needing
from fed_sophia.operator_client import OperatorClient
from protocol.algorithms import algorithm_named
from protocol.codec import digest_of, encode_bundle
from protocol.errors import InvalidMessage
from protocol.messages import RunSpec, RunSummary, TensorSpec, parse


@dataclass(frozen=True)
class RunRequest:
    """What an operator chooses; the model and the digest of its first parameters follow from it."""

    task: str
    name: str
    rounds: int
    policies: dict[str, object]
    """The fields of the spec that say how rounds are held; None leaves one out."""
    algorithm: str = "fed-sophia-shared"
    local_steps: int = 10
    batch_size: int = 32
    seed: int = 0
    hyperparameters: dict[str, float | int | str | None] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    combiners: dict[str, str] = field(default_factory=dict)
    data_dir: Path | None = None


def prepare(request: RunRequest) -> tuple[RunSpec, list[memoryview]]:
    """Initialise the model; give the run's spec and the `params` message it names.

    Raises:
        InvalidMessage: the request's numbers do not go together.
        UnknownAlgorithm: there is no such algorithm.
        InvalidTask: there is no such task, or it gives no model.
    """
    with needing("worker"):
        from worker.tasks import load_task
        from worker.training import initial_parameters

    algorithm_named(request.algorithm).parse(request.hyperparameters)
    task = load_task(request.task, request.data_dir)
    params = initial_parameters(task, request.seed)
    message = encode_bundle("params", params)
    spec = _spec(
        {
            "name": request.name,
            "task": task.name,
            "algorithm": request.algorithm,
            "hyperparameters": request.hyperparameters,
            "model": tuple(TensorSpec(name=name, shape=values.shape) for name, values in params.items()),
            "params_digest": digest_of(message),
            "seed": request.seed,
            "rounds": request.rounds,
            "local_steps": request.local_steps,
            "batch_size": request.batch_size,
            **{name: value for name, value in request.policies.items() if value is not None},
            "encodings": request.encodings,
            "combiners": request.combiners,
        },
    )
    return spec, message


def _spec(fields: dict[str, object]) -> RunSpec:
    try:
        return parse(RunSpec, fields)
    except InvalidMessage as error:
        # what the spec's own checks say is a sentence, and needs no word of how they are made
        raise InvalidMessage(error.detail.removeprefix("RunSpec: ")) from None


async def begin(client: OperatorClient, request: RunRequest) -> RunSummary:
    """Store the first parameters, then create the run that names them."""
    spec, message = prepare(request)
    await client.put_tensors(message)
    return await client.create_run(spec)
