# SPDX-License-Identifier: Apache-2.0
"""Every delta of a real training is inside the box that the server computes for it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from protocol.algorithms import ALGORITHMS
from protocol.bound import DeltaBound
from protocol.codec import decode_message, encode_bundle
from protocol.encodings import ENCODINGS
from protocol.errors import OutsideBound
from protocol.messages import Assignment
from worker.model import Arrays
from worker.tasks import load_task
from worker.training import Trainer, initial_parameters

torch.set_num_threads(1)

LOCAL_STEPS = 10


def rounds(
    algorithm: str, hyperparameters: dict[str, float], encoding: str = "f32", *, curvature: float = 0.1
) -> Iterator[tuple[Arrays, Arrays]]:
    """Three rounds of one worker from parameters that are all 1: (θ_0, the delta as decoded) of each."""
    task = load_task("digits")
    trainer, kept = Trainer(task, task.training_data().batch(np.arange(200)), torch.device("cpu")), None
    params = {name: np.ones_like(array) for name, array in initial_parameters(task, 0).items()}
    rng = np.random.default_rng(1)
    for version in range(1, 4):
        state = {"params": params}
        if algorithm == "fed-sophia-shared":
            for bundle, low, high in (("direction", -1.0, 1.0), ("hessian", 0.0, curvature)):
                state[bundle] = {
                    name: rng.uniform(low, high, array.shape).astype(np.float32)
                    for name, array in params.items()
                }
        trained = trainer.train(an_assignment(algorithm, version, hyperparameters), state, kept)
        kept = trained.kept
        message = b"".join(encode_bundle("delta", trained.bundles["delta"], encoding))
        delta = decode_message(message)["delta"]
        yield params, delta
        params = {name: params[name] + delta[name] for name in params}


def an_assignment(algorithm: str, version: int, hyperparameters: dict[str, float]) -> Assignment:
    row = ALGORITHMS[algorithm]
    return Assignment(
        assignment_id="a1",
        run_id="r1",
        round=version,
        version=version,
        slot=0,
        phase="train",
        task="digits",
        tensors={},
        bundles=("delta",),
        encodings={},
        optimizer=row.optimizer,
        settings=row.parse(hyperparameters).optimizer_settings(LOCAL_STEPS),
        local_steps=LOCAL_STEPS,
        batch_size=32,
        seed=version,
        deadline_ms=0,
    )


def bound_of(algorithm: str, hyperparameters: dict[str, float]) -> DeltaBound:
    bound = ALGORITHMS[algorithm].parse(hyperparameters).bound(LOCAL_STEPS, LOCAL_STEPS)
    assert bound is not None
    return bound


@pytest.mark.parametrize("algorithm", ["fed-sophia", "fed-sophia-shared"])
@pytest.mark.parametrize("encoding", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("max_round_step", [1e-5, 0.04])
@pytest.mark.parametrize("weight_decay", [1e-3, 1.0])
def test_a_delta_is_inside_the_bound_as_the_server_decodes_it(
    algorithm: str, encoding: str, max_round_step: float, weight_decay: float
) -> None:
    """With parameters of 1 and a round of 1e-5, float32 rounding of θ is as large as a step."""
    hyperparameters = {"max_round_step": max_round_step, "weight_decay": weight_decay}
    bound = bound_of(algorithm, hyperparameters)
    for start, delta in rounds(algorithm, hyperparameters, encoding):
        for name in delta:
            bound.check(name, delta[name], start[name], ENCODINGS[encoding])


def test_the_bound_is_reached_so_that_it_could_not_be_tighter() -> None:
    """Without curvature every coordinate that has momentum takes the longest step each time."""
    hyperparameters = {"max_round_step": 0.01}
    bound = bound_of("fed-sophia-shared", hyperparameters)
    tighter = DeltaBound(bound.radius * 0.999, bound.shrinkage, bound.steps)
    start, delta = next(rounds("fed-sophia-shared", hyperparameters, curvature=0.0))
    with pytest.raises(OutsideBound):
        for name in delta:
            tighter.check(name, delta[name], start[name], ENCODINGS["f32"])
