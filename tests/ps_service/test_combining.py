# SPDX-License-Identifier: Apache-2.0
"""The next version by every combiner: decided once, to the bit however it is read, in bounded memory."""

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from protocol.messages import TensorSpec
from ps_service.aggregation import aggregate
from ps_service.combiners import COMBINERS, Combiner, Weighing
from ps_service.combiners.mean import mean
from ps_service.combiners.measures import BLOCK, inner_products, squared_lengths
from ps_service.combining import Senders, decided_weights
from tests.ps_service.test_aggregation import SUMS, Case

EVERY_COMBINER = pytest.mark.parametrize("combiner", COMBINERS)
UNEVEN = {
    "weight": (3, BLOCK + 3),
    "nothing": (0, 3),
    "scale": (),
    "bias": (2 * BLOCK,),
    "tail": (BLOCK + 1,),
}
"""Tensors that blocks divide and that they do not, and one with no value at all."""


def everywhere(combiner):
    return {"delta": combiner, "hessian": combiner}


@pytest.mark.parametrize("measure", [inner_products, squared_lengths])
@pytest.mark.parametrize("chunk_elements", [1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK])
def test_no_chunk_size_changes_what_is_measured(measure, chunk_elements):
    """Float64 sums, before a decision made of them might hide a difference."""
    generator = np.random.default_rng(4)
    rows = {
        name: generator.normal(size=(3, int(np.prod(shape)))).astype(np.float32)
        for name, shape in UNEVEN.items()
    }
    measured = decided_weights(
        Combiner(mean, Weighing(measure, lambda total, _: total)),
        np.full(3, 1 / 3, dtype=np.float32),
        [TensorSpec(name=name, shape=shape) for name, shape in UNEVEN.items()],
        lambda name, start, stop: rows[name][:, start:stop],
        chunk_elements,
    )
    blocks = [
        measure(values[:, at : at + BLOCK])
        for values in rows.values()
        for at in range(0, values.shape[1], BLOCK)
    ]
    assert measured.tobytes() == sum(blocks).tobytes()


@EVERY_COMBINER
@pytest.mark.parametrize("model", [UNEVEN, {"nothing": (0,)}], ids=["uneven", "empty"])
def test_no_chunk_size_changes_a_bit(tmp_path, message, combiner, model):
    case = Case(
        tmp_path,
        message,
        "fed-sophia-shared",
        model=model,
        combiners=everywhere(combiner),
        encodings={"delta": "bf16"},
    )
    expected = case.aggregate()
    for chunk_elements in (1000, BLOCK, 5000, 3 * BLOCK, 10**6):
        assert case.aggregate(chunk_elements=chunk_elements) == expected, chunk_elements


@EVERY_COMBINER
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_no_combiner_asks_for_more_workers_than_came(tmp_path, message, combiner, workers):
    case = Case(tmp_path, message, "fed-sophia-shared", workers=workers, combiners=everywhere(combiner))
    changed = case.read(case.aggregate()["params"])["params"]
    largest = max(np.abs(sent["delta"]["weight"]).max() for sent in case.sent)
    moved = np.abs(changed["weight"] - case.state["params"]["weight"]).max()
    assert 0 < moved <= largest * 1.001


@pytest.mark.parametrize("combiner", [name for name, row in COMBINERS.items() if row.weighing])
def test_no_number_of_threads_changes_a_bit(tmp_path, message, combiner):
    case = Case(
        tmp_path,
        message,
        "fed-sophia-shared",
        model={"w": (200, 201)},
        workers=7,
        combiners=everywhere(combiner),
    )
    given = {
        "path": str(tmp_path),
        "tensors": case.tensors,
        "spec": case.spec.model_dump(mode="json"),
        "headers": [update.header.model_dump(mode="json") for update in case.updates],
    }
    expected = case.aggregate()
    for threads in ("1", "2"):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", SUMS],
            input=json.dumps(given),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert json.loads(done.stdout) == expected


@EVERY_COMBINER
def test_sending_an_update_four_times_is_sending_it_once(tmp_path, message, combiner):
    """To the bit, in an asynchronous run too: combiners count workers, not updates."""
    case = Case(tmp_path, message, "fed-sophia-shared", workers=4, combiners=everywhere(combiner))
    eager, *others = case.updates
    often = dict.fromkeys(case.bundles, [eager] * 4 + others)
    assert aggregate(case.blobs, case.spec, case.tensors, often, partial=False) == case.aggregate()


def test_what_one_worker_sent_becomes_the_mean_by_what_it_weighs():
    """Of one worker 1 and 4, weighing 2 to 1, so (2·1 + 4)/3 = 2; of another 7. They weigh 3 to 1."""
    senders = Senders([0, 0, 5], np.array([2.0, 1.0, 1.0]))
    np.testing.assert_array_equal(senders.weights, [0.75, 0.25])
    rows = np.array([[1], [4], [7]], dtype=np.float32)
    np.testing.assert_allclose(senders.one_row_each(rows), [[2], [7]], rtol=1e-6)


@pytest.mark.parametrize("alike", [2, 4])
def test_what_is_derived_is_of_the_workers_that_were_chosen(tmp_path, message, alike):
    """Krum takes one worker as a whole: its delta, in all tensors, and its direction."""
    case = Case(tmp_path, message, "fed-sophia-shared", combiners={"delta": "krum"})
    center = {name: values / 3 for name, values in case.sent[alike]["delta"].items()}
    near = [i for i in range(5) if i != alike]
    for i in near[:3]:  # around the one that is to be chosen, in all directions
        case.sent[i]["delta"] = {
            name: center[name] + values / 10 for name, values in case.sent[i]["delta"].items()
        }
    case.sent[alike]["delta"] = center
    case.updates = [case.update(i, sent) for i, sent in enumerate(case.sent)]
    tensors = case.aggregate()
    alone = {"delta": [case.updates[alike]], "hessian": case.updates}
    assert tensors == aggregate(case.blobs, case.spec, case.tensors, alone, partial=False)


def test_a_bundle_is_decided_on_over_the_updates_that_bring_it(tmp_path, message):
    """As in an asynchronous run: two deltas, and estimates of five updates."""
    case = Case(
        tmp_path, message, "fed-sophia-shared", combiners={"delta": "geometric_median", "hessian": "krum"}
    )
    rows = {"delta": case.updates[3:], "hessian": case.updates}
    tensors = aggregate(case.blobs, case.spec, case.tensors, rows, partial=False)
    only = {"delta": case.updates[3:], "hessian": case.updates[3:]}
    others = aggregate(case.blobs, case.spec, case.tensors, only, partial=False)
    assert tensors["params"] == others["params"]
    decay = case.hyperparameters.hessian_decay
    estimates = [
        decay * case.state["hessian"]["weight"] + (1 - decay) * sent["hessian"]["weight"]
        for sent in case.sent
    ]
    found = case.read(tensors["hessian"])["hessian"]["weight"]
    assert sum(np.allclose(found, estimate, rtol=1e-5) for estimate in estimates) == 1


@pytest.mark.parametrize("combiner", ["krum", "norm_bounded", "median"])
def test_memory_does_not_grow_with_the_model(tmp_path, message, combiner):
    """20 MB of parameters from 8 workers (160 MB of updates) in chunks of 8 × 64 kB."""
    case = Case(
        tmp_path,
        message,
        "fedavg",
        model={"w": (5_000_000,)},
        workers=1,
        combiners={"delta": combiner},
    )
    case.updates = [case.updates[0]] * 8
    case.sent.clear()
    tracemalloc.start()
    try:
        case.aggregate(chunk_elements=16_384)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6_000_000
