# SPDX-License-Identifier: Apache-2.0
"""Runs for a crowd: a model of a few numbers, so that what travels is next to nothing."""

import numpy as np

from benchmarks.crowd.device import NUMBERS, TASK
from fed_sophia.operator_client import OperatorClient
from protocol.codec import encode_bundle
from protocol.messages import RunSpec, RunSummary, TensorSpec


async def tiny_run(client: OperatorClient, cohort: int, rounds: int) -> RunSummary:
    params = encode_bundle("params", {"w": np.zeros(NUMBERS, np.float32)})
    spec = RunSpec(
        name="crowd",
        task=TASK,
        algorithm="fedavg",
        model=(TensorSpec(name="w", shape=(NUMBERS,)),),
        params_digest=await client.put_tensors(params),
        rounds=rounds,
        local_steps=1,
        cohort_size=cohort,
        quorum=1,
        deadline_s=600,
    )
    return await client.create_run(spec)
