# SPDX-License-Identifier: Apache-2.0
"""The next version: right, and the same to the bit however it is computed."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from protocol.algorithms import algorithm_named
from protocol.codec import decode_message, digest_of
from protocol.errors import NotFinite, StorageCorrupt
from protocol.messages import RunSpec, UpdateHeader
from ps_service.aggregation import AdmittedUpdate, aggregate
from ps_service.storage.files import FileBlobs

MODEL = {"weight": (5, 13), "scale": (), "nothing": (0, 3), "bias": (13,)}
STEPS = (10, 7, 1, 10, 3)
EXAMPLES = (10, 400, 33, 1, 56)


class Case:
    """A closed round in a blob store: a state, and updates in slot order."""

    def __init__(self, directory, message, algorithm, *, model=MODEL, workers=5, state=True, **spec):
        directory.mkdir(exist_ok=True)
        self.blobs = FileBlobs(directory)
        self._message = message
        self.model = model
        self.spec = RunSpec(
            name="run",
            task="digits",
            algorithm=algorithm,
            model=[{"name": name, "shape": shape} for name, shape in model.items()],
            params_digest="0" * 64,
            rounds=1,
            cohort_size=workers,
            quorum=1,
            **spec,
        )
        self.row = algorithm_named(algorithm)
        self.hyperparameters = self.row.parse(self.spec.hyperparameters)
        self.generator = np.random.default_rng(11)
        self.state = {"params": self.values(0.3)}
        if state and self.row.state_bundles:
            self.state |= {"direction": self.values(0.5), "hessian": self.values(2.0, positive=True)}
        self.tensors = {name: self.store("state", {name: values}) for name, values in self.state.items()}
        self.bundles = self.hyperparameters.bundles_wanted(0)
        self.sent = [
            {bundle: self.values(0.003, positive=bundle == "hessian") for bundle in self.bundles}
            for _ in range(workers)
        ]
        self.updates = [self.update(i, bundles) for i, bundles in enumerate(self.sent)]

    def values(self, scale, *, positive=False):
        drawn = {
            name: self.generator.uniform(-scale, scale, shape).astype(np.float32)
            for name, shape in self.model.items()
        }
        return {name: np.abs(values) for name, values in drawn.items()} if positive else drawn

    def store(self, kind, bundles, encodings=None):
        content = self._message(kind, bundles, encodings)
        staged = self.blobs.stage()
        staged.write(content)
        staged.seal(digest_of([content]))
        return digest_of([content])

    def update(self, index, bundles):
        header = UpdateHeader(
            digest=self.store("update", bundles, self.spec.encodings),
            size_bytes=1,
            bundles=self.bundles,
            encodings={bundle: self.spec.encoding_of(bundle) for bundle in self.bundles},
            num_examples=EXAMPLES[index % len(EXAMPLES)],
            local_steps=STEPS[index % len(STEPS)],
        )
        return AdmittedUpdate(header.digest, header, self.tensors["params"], index)

    @property
    def rows(self):
        return dict.fromkeys(self.bundles, self.updates)

    def aggregate(self, *, partial=False, chunk_elements=None, threads=None):
        return aggregate(
            self.blobs,
            self.spec,
            self.tensors,
            self.rows,
            partial=partial,
            chunk_elements=chunk_elements,
            threads=threads,
        )

    def read(self, digest):
        content = bytearray(self.blobs.size(digest))
        self.blobs.read_into(digest, 0, content)
        assert hashlib.sha256(content).hexdigest() == digest
        return decode_message(content)

    def expected(self, name, *, weights, mixing):
        """The next state of one tensor, by the equations, in float64 and with none of the server's code."""
        theta = self.state["params"][name].astype(np.float64)
        deltas = [sent["delta"][name].astype(np.float64) for sent in self.sent]
        result = {"params": theta + sum(w * delta for w, delta in zip(weights, deltas, strict=True))}
        if self.spec.algorithm != "fed-sophia-shared":
            return result
        h = self.hyperparameters
        eta = h.max_round_step / (self.spec.local_steps * h.clip_bound)
        directions = []
        for delta, update in zip(deltas, self.updates, strict=True):
            a = (1 - eta * h.weight_decay) ** update.header.local_steps
            radius = h.clip_bound / h.weight_decay * (1 - a)
            directions.append(np.clip((delta + (1 - a) * theta) / radius, -1, 1))
        mean_q = sum(w * q for w, q in zip(weights, directions, strict=True))
        old = self.state.get("direction", {}).get(name, np.zeros(theta.shape))
        result["direction"] = mixing * old + (1 - mixing) * mean_q
        hessians = np.sort([sent["hessian"][name].astype(np.float64) for sent in self.sent], axis=0)
        if len(hessians) >= 3:  # winsorized: one at each end
            hessians[0], hessians[-1] = hessians[1], hessians[-2]
        old = self.state.get("hessian", {}).get(name, np.zeros(theta.shape))
        result["hessian"] = h.hessian_decay * old + (1 - h.hessian_decay) * hessians.mean(axis=0)
        return result


ALGORITHMS = pytest.mark.parametrize("algorithm", ["fed-sophia-shared", "fed-sophia", "fedavg"])


def assert_as_expected(case, tensors, *, weights, mixing=0.0):
    for name, shape in case.model.items():
        for bundle, values in case.expected(name, weights=weights, mixing=mixing).items():
            found = case.read(tensors[bundle])[bundle][name]
            assert found.shape == shape
            np.testing.assert_allclose(found, values, rtol=2e-6, atol=2e-7, err_msg=f"{bundle}/{name}")


@ALGORITHMS
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_result_equals_an_independent_computation(tmp_path, message, algorithm, partial, workers):
    case = Case(tmp_path, message, algorithm, workers=workers)
    tensors = case.aggregate(partial=partial)
    weights = [1 / workers] * workers
    assert_as_expected(case, tensors, weights=weights, mixing=0.5 if partial else 0.0)


@ALGORITHMS
def test_absent_state_is_zeros(tmp_path, message, algorithm):
    case = Case(tmp_path, message, algorithm, state=False)
    assert_as_expected(case, case.aggregate(), weights=[0.2] * 5)


@ALGORITHMS
def test_workers_may_count_by_their_examples(tmp_path, message, algorithm):
    case = Case(tmp_path, message, algorithm, weighting="num_examples")
    assert_as_expected(case, case.aggregate(), weights=np.array(EXAMPLES) / sum(EXAMPLES))


@pytest.mark.parametrize("encoding", ["bf16", "f16"])
def test_short_encodings_are_widened_before_anything_is_added(tmp_path, message, encoding):
    case = Case(tmp_path, message, "fedavg", encodings={"delta": encoding})
    case.sent = [
        decode_message(message("update", sent, {"delta": encoding})) for sent in case.sent
    ]  # as they arrive
    assert_as_expected(case, case.aggregate(), weights=[0.2] * 5)


@ALGORITHMS
@pytest.mark.parametrize("chunk_elements", [1, 7, 64, 4096])
def test_no_chunk_size_changes_a_bit(tmp_path, message, algorithm, chunk_elements):
    case = Case(tmp_path, message, algorithm, encodings={"delta": "bf16"})
    assert case.aggregate(chunk_elements=chunk_elements) == case.aggregate()


@ALGORITHMS
@pytest.mark.parametrize("combiner", ["mean", "krum", "median"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_no_number_of_threads_that_share_the_parts_changes_a_bit(
    tmp_path, message, algorithm, combiner, threads
):
    case = Case(tmp_path, message, algorithm, combiners={"delta": combiner})
    expected = case.aggregate(threads=0)
    assert case.aggregate(threads=threads) == expected
    assert case.aggregate(threads=threads, chunk_elements=7) == expected


def test_the_mean_is_added_row_after_row_in_float32_from_zero_on(tmp_path, message):
    """To the bit: the law that every machine and every later version keeps."""
    case = Case(tmp_path, message, "fedavg", weighting="num_examples")
    shares = np.array(EXAMPLES, dtype=np.float64)
    weights = (shares / shares.sum()).astype(np.float32)
    params = case.read(case.aggregate()["params"])["params"]
    for name, shape in MODEL.items():
        total = np.zeros(shape, dtype=np.float32)
        for weight, sent in zip(weights, case.sent, strict=True):
            total = total + weight * sent["delta"][name]
        assert params[name].tobytes() == (case.state["params"][name] + total).tobytes()


def test_a_bundle_that_nobody_sent_stays_as_it_was(tmp_path, message):
    case = Case(tmp_path, message, "fed-sophia-shared")
    case.bundles = ("delta",)
    case.updates = [case.update(i, {"delta": sent["delta"]}) for i, sent in enumerate(case.sent)]
    assert case.aggregate()["hessian"] == case.tensors["hessian"]


SUMS = """
import json, sys
from pathlib import Path
from protocol.messages import RunSpec, UpdateHeader
from ps_service.aggregation import AdmittedUpdate, aggregate
from ps_service.storage.files import FileBlobs
case = json.load(sys.stdin)
headers = [UpdateHeader.model_validate(header) for header in case["headers"]]
params = case["tensors"]["params"]
updates = [AdmittedUpdate(header.digest, header, params, slot) for slot, header in enumerate(headers)]
rows = {bundle: updates for bundle in headers[0].bundles}
spec = RunSpec.model_validate(case["spec"])
print(json.dumps(aggregate(FileBlobs(Path(case["path"])), spec, case["tensors"], rows, partial=False)))
"""


def test_no_number_of_threads_changes_a_bit(tmp_path, message):
    case = Case(tmp_path, message, "fed-sophia-shared", model={"w": (300, 301)}, workers=7)
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


@pytest.mark.parametrize("threads", [0, 2])
def test_a_sum_that_leaves_float32_is_refused_and_leaves_nothing(tmp_path, message, threads):
    case = Case(tmp_path, message, "fedavg")
    huge = {"delta": {name: np.full(shape, 3e38, np.float32) for name, shape in MODEL.items()}}
    case.updates = [case.update(i, huge) for i in range(5)]
    case.tensors = {"params": case.store("state", {"params": huge["delta"]})}
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(NotFinite, match="the next params: weight"):
        case.aggregate(threads=threads)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_a_lost_update_is_corruption_not_a_smaller_sum(tmp_path, message):
    case = Case(tmp_path, message, "fedavg")
    case.blobs.delete(case.updates[2].digest)
    with pytest.raises(StorageCorrupt):
        case.aggregate()


@pytest.mark.parametrize("threads", [0, 2])
def test_an_update_that_ends_early_ends_the_work_and_its_threads(tmp_path, message, threads):
    """The first tensors are whole; of the last, bytes are missing."""
    case = Case(tmp_path, message, "fedavg")
    path = case.blobs.path(case.updates[2].digest)
    os.truncate(path, path.stat().st_size - 1)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(StorageCorrupt, match="bytes expected"):
        case.aggregate(threads=threads, chunk_elements=7)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in-order")]


def test_memory_does_not_grow_with_the_model(tmp_path, message):
    """20 MB of parameters from 8 workers (160 MB of updates) in chunks of 8 × 64 kB."""
    model = {"w": (5_000_000,)}
    case = Case(tmp_path, message, "fedavg", model=model, workers=1)
    case.updates = [case.updates[0]] * 8
    case.sent.clear()
    tracemalloc.start()
    try:
        case.aggregate(chunk_elements=16_384)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6_000_000


def test_the_memory_of_a_mean_does_not_grow_with_the_workers(tmp_path, message):
    """One row at a time is in memory; of 100 workers, rows of this length are 25 MB."""
    case = Case(tmp_path, message, "fedavg", model={"w": (200_000,)}, workers=1)
    case.updates = [case.updates[0]] * 100
    case.updates = [replace(update, slot=slot) for slot, update in enumerate(case.updates)]
    case.sent.clear()
    tracemalloc.start()
    try:
        case.aggregate(chunk_elements=65_536, threads=1)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000
