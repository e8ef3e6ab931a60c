# SPDX-License-Identifier: Apache-2.0
"""A longest delta: what is longer is scaled to it before anything is made of it; all else stays as it is."""

from dataclasses import replace

import numpy as np
import pytest

from ps_service.aggregation import aggregate
from ps_service.combiners import COMBINERS
from ps_service.combiners.measures import BLOCK
from ps_service.round_step import scales_to
from tests.ps_service.asynchronous_runs import a_cohort, state_of
from tests.ps_service.conftest import MODEL, values_like
from tests.ps_service.test_aggregation import Case
from tests.ps_service.test_combining import UNEVEN

TWO_TENSORS = {"weight": (2,), "bias": ()}
ANY_LENGTH = 1e9


def lengths(case):
    """Of each delta over all its tensors, in float64."""
    return [
        np.sqrt(sum((values.astype(np.float64) ** 2).sum() for values in sent["delta"].values()))
        for sent in case.sent
    ]


def resent(case):
    case.updates = [case.update(index, sent) for index, sent in enumerate(case.sent)]


def test_by_hand(tmp_path, message):
    """(2, 4 | 4) has the length √(4 + 16 + 16) = 6; at most 3 makes it (1, 2 | 2).

    (1, 2 | 2) has 3 and stays, and so does (0.5, 0 | 0): the mean of the three is (2.5/3, 4/3 | 4/3).
    """
    case = Case(tmp_path, message, "fedavg", model=TWO_TENSORS, workers=3, max_delta_norm=3.0)
    deltas = [([2, 4], 4), ([1, 2], 2), ([0.5, 0], 0)]
    case.sent = [{"delta": {"weight": np.array(w), "bias": np.array(b)}} for w, b in deltas]
    resent(case)
    params = case.read(case.aggregate()["params"])["params"]
    for name, moved in (("weight", [2.5 / 3, 4 / 3]), ("bias", 4 / 3)):
        np.testing.assert_allclose(params[name], case.state["params"][name] + np.array(moved), rtol=1e-6)


def test_scales_are_one_up_to_the_longest_and_less_beyond():
    np.testing.assert_array_equal(
        scales_to(3.0, np.array([0.0, 4.0, 9.0, 36.0, 3e38])),
        np.array([1, 1, 1, 0.5, 3 / np.sqrt(3e38)], dtype=np.float32),
    )


@pytest.mark.parametrize("combiner", COMBINERS)
def test_what_is_not_longer_is_the_same_to_the_bit(tmp_path, message, combiner):
    plain = Case(tmp_path, message, "fed-sophia-shared", combiners={"delta": combiner})
    longest = max(lengths(plain)) * 1.00001
    bounded = Case(
        tmp_path, message, "fed-sophia-shared", combiners={"delta": combiner}, max_delta_norm=longest
    )
    assert bounded.aggregate() == plain.aggregate()


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("chunk_elements", [1000, BLOCK, 5000, 10**6])
def test_no_chunk_size_changes_a_bit(tmp_path, message, combiner, chunk_elements):
    case = Case(
        tmp_path,
        message,
        "fed-sophia-shared",
        model=UNEVEN,
        combiners={"delta": combiner},
        encodings={"delta": "bf16"},
        max_delta_norm=0.1,
    )
    assert min(lengths(case)) > 0.1
    assert case.aggregate(chunk_elements=chunk_elements) == case.aggregate()


@pytest.mark.parametrize("combiner", COMBINERS)
def test_it_is_as_if_the_shorter_delta_had_been_sent(tmp_path, message, combiner):
    """Whatever is made of it, the shared direction too; the Hessian estimate stays as it is."""
    case = Case(tmp_path, message, "fed-sophia-shared", combiners={"delta": combiner}, max_delta_norm=0.01)
    assert min(lengths(case)) > 0.01
    found = case.aggregate()
    shortened = Case(tmp_path, message, "fed-sophia-shared", combiners={"delta": combiner})
    for sent, length in zip(case.sent, lengths(case), strict=True):
        sent["delta"] = {name: values * np.float32(0.01 / length) for name, values in sent["delta"].items()}
    shortened.sent = case.sent
    resent(shortened)
    expected = shortened.aggregate()
    for bundle in ("params", "direction", "hessian"):
        state, other = shortened.read(expected[bundle])[bundle], case.read(found[bundle])[bundle]
        for name, values in state.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-7, err_msg=bundle)


def test_each_of_a_worker_s_updates_is_scaled_before_they_become_one(tmp_path, message):
    """(3, 4) becomes (0.6, 0.8), (0, −1) stays: their mean is (0.3, −0.1), shorter than is allowed."""
    case = Case(tmp_path, message, "fedavg", model={"w": (2,)}, workers=2, max_delta_norm=1.0)
    case.sent = [{"delta": {"w": np.array(w)}} for w in ([3, 4], [0, -1])]
    resent(case)
    eager = [replace(update, slot=0) for update in case.updates]
    tensors = aggregate(case.blobs, case.spec, case.tensors, {"delta": eager}, partial=False)
    params = case.read(tensors["params"])["params"]["w"]
    np.testing.assert_allclose(params, case.state["params"]["w"] + np.array([0.3, -0.1]), rtol=1e-6)


def test_any_finite_delta_can_be_brought_to_any_length(tmp_path, message):
    for longest in (1e-20, ANY_LENGTH):
        case = Case(tmp_path, message, "fedavg", model={"w": (3,)}, workers=1, max_delta_norm=longest)
        case.sent = [{"delta": {"w": np.full(3, 3e38)}}]
        resent(case)
        params = case.read(case.aggregate()["params"])["params"]["w"]
        expected = case.state["params"]["w"] + np.float32(longest / np.sqrt(3))
        np.testing.assert_allclose(params, expected, rtol=1e-5)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_server_moves_by_no_more_than_a_run_allows(start_server, asynchronous):
    """One of two sends a delta a thousand times as long; FedAvg has no bound that would refuse it."""
    server = await start_server(performing=False)
    spec = {"algorithm": "fedavg", "max_delta_norm": 0.5}
    if asynchronous:
        run_id, cohort = await a_cohort(server, 2, concurrency=2, spec=spec)
        held = [(worker, await worker.assignment()) for worker in cohort]
    else:
        run_id, held = await server.a_round(2, **spec)
    for (worker, assignment), value in zip(held, (0.01, 1000.0), strict=True):
        await worker.send(assignment, server.an_update(assignment, value))
    await server.aggregate_now()
    before, after = [(await state_of(server, run_id, version))["params"] for version in (0, 1)]
    honest, wild = values_like(MODEL, 0.01), values_like(MODEL, 1000.0)
    length = np.sqrt(sum((values.astype(np.float64) ** 2).sum() for values in wild.values()))
    for name, values in before.items():
        moved = (honest[name] + wild[name] * (0.5 / length)) / 2
        np.testing.assert_allclose(after[name], values + moved, rtol=1e-4, atol=1e-6)
