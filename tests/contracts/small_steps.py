# SPDX-License-Identifier: Apache-2.0
"""A server step on a few coordinates, with the mean as every combiner."""

import numpy as np

from protocol.algorithms import ALGORITHMS
from ps_service.server_steps import SERVER_STEPS, StepContext

COORDINATES = 53
WORKERS = 3


def a_context(server_step, *, partial=False):
    algorithm = next(row for row in ALGORITHMS.values() if row.server_step == server_step)
    hyperparameters = algorithm.hyperparameters()
    bounds = tuple(hyperparameters.bound(steps, 10) for steps in (10, 5, 1))
    return algorithm, StepContext(hyperparameters, bounds, partial, steps=(10, 5, 1), workers=4)


def step_of(server_step, state, received, context, chunk=slice(None)):
    """Derive and apply on a range of coordinates, the mean as every combiner, in slot order."""
    step = SERVER_STEPS[server_step]
    state = {bundle: values[chunk].copy() for bundle, values in state.items()}
    received = {bundle: rows[:, chunk].copy() for bundle, rows in received.items()}
    starts = [state["params"]] * len(received.get("delta", ()))
    everything = received | dict(step.derive(received, starts, context))
    combined = {bundle: sum(rows) / np.float32(len(rows)) for bundle, rows in everything.items()}
    return dict(step.apply(state, combined, context))


def a_case(algorithm, bundles):
    generator = np.random.default_rng(3)
    state = {
        bundle: generator.normal(scale=0.1, size=COORDINATES).astype(np.float32)
        for bundle in algorithm.global_state
    }
    if "second_moment" in state:
        state["second_moment"] = np.abs(state["second_moment"])
    received = {
        bundle: np.abs(generator.normal(scale=0.002, size=(WORKERS, COORDINATES))).astype(np.float32)
        for bundle in bundles
    }
    return state, received


def one(**bundles):
    """State of a single coordinate."""
    return {bundle: np.array([value], dtype=np.float32) for bundle, value in bundles.items()}


def sent(**bundles):
    """What each worker sent for it: a list a bundle."""
    return {bundle: np.array(values, dtype=np.float32)[:, None] for bundle, values in bundles.items()}
