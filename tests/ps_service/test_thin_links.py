# SPDX-License-Identifier: Apache-2.0
"""Updates that travel as small integers: packed as workers do, taken, refused and combined by the server."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from protocol.codec import NamedTensor, decode_message, digest_of, encode_message, read_layout
from protocol.messages import Assignment, UpdateHeader, parse
from ps_service.aggregation import AdmittedUpdate
from ps_service.assigning import Part, assignment
from ps_service.combiners import COMBINERS
from tests.ps_service.conftest import Update
from tests.ps_service.test_aggregation import STEPS, Case, assert_as_expected
from worker.update import as_received, pack

THIN = {"delta": "bounded_int4", "hessian": "sqrt_int8"}
THINNEST = {"delta": "bounded_int4", "hessian": "sqrt_int4", "direction": "unit_int8"}
WIDE = {"delta": "bounded_int8", "hessian": "sqrt_int8"}
EVERY_CHOICE = pytest.mark.parametrize(
    "encodings", [THIN, WIDE, {"delta": "bounded_int4"}, {"hessian": "sqrt_int4"}]
)


@dataclass
class Trained:
    """What a worker's training gives, made up."""

    bundles: dict
    local_steps: int
    num_examples: int = 10
    kept: None = None
    metrics: dict = field(default_factory=dict)


class ThinCase(Case):
    """A closed round whose updates were packed by workers; `sent` is what the server reads of them."""

    def update(self, index, bundles):
        part = Part("a", "r", 1, 0, index, 1, 0, 1.0)
        trained = Trained(bundles, STEPS[index % len(STEPS)])
        assigned = assignment(self.spec, part, {})
        header, message = pack(assigned, self.state["params"], trained)
        staged = self.blobs.stage()
        for buffer in message:
            staged.write(buffer)
        staged.seal(header.digest)
        self.received = [*getattr(self, "received", []), as_received(assigned, self.state["params"], trained)]
        return AdmittedUpdate(header.digest, header, self.tensors["params"], index)


@EVERY_CHOICE
@pytest.mark.parametrize("workers", [1, 5])
def test_the_next_version_is_that_of_the_deltas_as_they_were_rounded(tmp_path, message, encodings, workers):
    case = ThinCase(tmp_path, message, "fed-sophia-shared", workers=workers, encodings=encodings)
    for sent, received in zip(case.sent, case.received, strict=True):
        for bundle in sent:
            assert any((sent[bundle][name] != received[bundle][name]).any() for name in sent[bundle]) == (
                bundle in encodings
            )
    case.sent = case.received
    assert_as_expected(case, case.aggregate(), weights=[1 / workers] * workers)


@EVERY_CHOICE
@pytest.mark.parametrize("chunk_elements", [1, 7, 10, 64, 4096])
def test_no_chunk_size_changes_a_bit(tmp_path, message, encodings, chunk_elements):
    case = ThinCase(tmp_path, message, "fed-sophia-shared", encodings=encodings | {"direction": "unit_int8"})
    assert case.aggregate(chunk_elements=chunk_elements) == case.aggregate()


@pytest.mark.parametrize("combiner", COMBINERS)
def test_every_combiner_sees_deltas(tmp_path, message, combiner):
    """The very bits that the same deltas give as floats."""
    chosen = {"combiners": {"delta": combiner}}
    thin = ThinCase(tmp_path / "thin", message, "fed-sophia-shared", encodings=WIDE, **chosen)
    plain = Case(tmp_path / "plain", message, "fed-sophia-shared", **chosen)
    plain.sent = thin.received
    plain.updates = [plain.update(index, sent) for index, sent in enumerate(plain.sent)]
    found = thin.read(thin.aggregate()["params"])["params"]
    expected = plain.read(plain.aggregate()["params"])["params"]
    for name, values in expected.items():
        assert found[name].tobytes() == values.tobytes()


def test_the_direction_is_held_as_the_nearest_of_255_levels(tmp_path, message):
    exact = ThinCase(tmp_path / "exact", message, "fed-sophia-shared", encodings=THIN)
    rounded = ThinCase(tmp_path / "rounded", message, "fed-sophia-shared", encodings=THINNEST | THIN)
    directions = [case.read(case.aggregate()["direction"])["direction"] for case in (exact, rounded)]
    for name, values in directions[0].items():
        np.testing.assert_allclose(directions[1][name], np.rint(values * 127) / 127, atol=1e-7)
    sizes = [case.blobs.size(case.aggregate()["direction"]) for case in (exact, rounded)]
    assert sizes[0] - sizes[1] > 2 * sum(values.size for values in directions[0].values())
    assert exact.aggregate()["params"] == rounded.aggregate()["params"]


# --- through the server --------------------------------------------------------------------------


def deltas(seed, model):
    generator = np.random.default_rng(seed)
    drawn = {name: generator.uniform(-0.03, 0.03, shape).astype(np.float32) for name, shape in model.items()}
    return {"delta": drawn, "hessian": {name: np.abs(values) * 30 for name, values in drawn.items()}}


async def params_of(server, run_id, bundle="params"):
    digest = (await server.show(run_id)).tensors[bundle]
    answer = await server.operator.get(f"/v1/runs/{run_id}/tensors/{digest}")
    return answer.content, decode_message(answer.content)[bundle]


def packed(given, params, seed, steps=10):
    """The update of a worker, and what it is once it has travelled."""
    model = {name: values.shape for name, values in params.items()}
    assigned = parse(Assignment, given)
    trained = Trained(deltas(seed, model), steps)
    header, message = pack(assigned, params, trained)
    return Update(header.model_dump(mode="json"), b"".join(message)), as_received(assigned, params, trained)


async def test_a_run_over_thin_links_makes_the_version_it_should(server):
    model = {"weight": (3, 5), "scale": (), "nothing": (0, 2), "bias": (7,)}
    run_id, cohort = await server.a_round(workers=3, model=model, encodings=THINNEST)
    _, params = await params_of(server, run_id)
    received = []
    for seed, (worker, given) in enumerate(cohort):
        assert given["encodings"] == {"delta": "bounded_int4", "hessian": "sqrt_int4"}
        update, travelled = packed(given, params, seed)
        received.append(travelled)
        await worker.send(given, update)
    await server.aggregate_now()
    _, after = await params_of(server, run_id)
    message, direction = await params_of(server, run_id, "direction")
    assert {tensor.encoding for tensor in read_layout(message).header.tensors} == {"unit_int8"}
    for name, values in after.items():
        mean = np.mean([each["delta"][name].astype(float) for each in received], axis=0)
        np.testing.assert_allclose(values, params[name] + mean, rtol=1e-6, atol=1e-8)
        exact = (mean + 1.2e-5 * params[name]) / 0.04  # 1 − a is nearly R·λ/ρ
        np.testing.assert_allclose(direction[name], exact, atol=0.5 / 127 + 1e-4)


@pytest.mark.parametrize("size_bytes", [1, 3])
async def test_a_body_may_come_in_pieces_that_split_anything(server, size_bytes):
    run_id, [(worker, given), _] = await server.a_round(encodings=THINNEST)
    _, params = await params_of(server, run_id)
    update, _ = packed(given, params, 0)
    url = (await worker.declare(given, update.header)).json()["upload_url"]

    async def pieces():
        for start in range(0, len(update.body), size_bytes):
            yield update.body[start : start + size_bytes]

    answer = await worker.put(url, pieces(), Content_Length=str(len(update.body)))
    assert answer.status_code == 200, answer.text


async def answered(worker, given, update):
    """What the server says to the body."""
    url = (await worker.declare(given, update.header)).json()["upload_url"]
    return await worker.put(url, update.body)


def with_constants(update, **changes):
    """The same update with other constants in its header."""
    bundles = decode_message(update.body)
    header = read_layout(update.body).header
    tensors = [
        NamedTensor(
            each.bundle,
            each.name,
            bundles[each.bundle][each.name],
            each.encoding,
            constants=each.constants | (changes if each.bundle == "delta" else {}),
        )
        for each in header.tensors
    ]
    body = b"".join(encode_message("update", tensors))
    return Update(update.declared(digest=digest_of([body]), size_bytes=len(body)), body)


@pytest.mark.parametrize(
    "constants", [{"scale": 0.08}, {"scale": 1e20}, {"scale": 0.03}, {"shrinkage": 0.0}, {"shrinkage": 1.0}]
)
async def test_a_box_of_ones_own_is_refused(server, constants):
    run_id, [(worker, given), _] = await server.a_round(encodings=THIN)
    _, params = await params_of(server, run_id)
    update, _ = packed(given, params, 0)
    answer = await answered(worker, given, with_constants(update, **constants))
    assert (answer.status_code, answer.json()["code"]) == (422, "outside-bound")
    assert "expected" in answer.json()["detail"]
    await worker.send(given, update)


async def test_the_box_is_that_of_the_steps_that_were_declared(server):
    run_id, [(worker, given), (other, its)] = await server.a_round(encodings=THIN)
    _, params = await params_of(server, run_id)
    update, _ = packed(given, params, 0, steps=10)
    fewer = Update(update.declared(local_steps=9), update.body)
    answer = await answered(worker, given, fewer)
    assert (answer.status_code, answer.json()["code"]) == (422, "outside-bound")
    small = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    trained = Trained({"delta": small, "hessian": small}, 9)
    header, message = pack(parse(Assignment, its), params, trained)
    honest = Update(header.model_dump(mode="json"), b"".join(message))
    assert UpdateHeader.model_validate(honest.header).local_steps == 9
    await other.send(its, honest)


async def test_a_run_says_what_its_bundles_cannot_travel_as(server):
    for changes, words in (
        (
            {"encodings": {"delta": "bounded_int8"}, "algorithm": "fedavg"},
            "nothing bounds the delta of fedavg",
        ),
        ({"encodings": {"hessian": "bounded_int8"}}, "bounded_int8 is for delta, not for hessian"),
        ({"encodings": {"delta": "sqrt_int8"}}, "sqrt_int8 is for hessian, not for delta"),
        ({"encodings": {"direction": "f32"}, "algorithm": "fedcm"}, "fedcm sends no bundle 'direction'"),
    ):
        answer = await server.operator.post("/v1/runs", json=await server.a_spec(**changes))
        assert answer.json()["code"] == "invalid-message"
        assert words in answer.json()["detail"]


# --- parameters on their way down ----------------------------------------------------------------


async def a_version_later(server, **spec):
    """A run of two workers in its second round: its id, and each worker with its assignment."""
    run_id, cohort = await server.a_round(**spec)
    _, params = await params_of(server, run_id)
    for seed, (worker, given) in enumerate(cohort):
        await worker.send(given, packed(given, params, seed)[0])
    await server.aggregate_now()
    return run_id, [(worker, await worker.assignment()) for worker, _ in cohort]


@pytest.mark.parametrize("encoding", ["bf16", "f16"])
async def test_workers_are_given_half_the_bytes_of_what_the_server_goes_on_with(server, encoding):
    run_id, cohort = await a_version_later(server, encodings={"params": encoding})
    message, params = await params_of(server, run_id)
    tensors = (await server.show(run_id)).tensors
    sent = await cohort[0][0].http.get(f"/v1/runs/{run_id}/tensors/{tensors['sent_params']}")
    assert {tensor.encoding for tensor in read_layout(sent.content).header.tensors} == {encoding}
    assert {tensor.encoding for tensor in read_layout(message).header.tensors} == {"f32"}
    started_from = decode_message(sent.content)["params"]
    assert any((started_from[name] != params[name]).any() for name in params)
    for _, given in cohort:
        assert given["tensors"]["params"] == tensors["sent_params"]
        assert "sent_params" not in given["tensors"]
    for name, values in params.items():
        np.testing.assert_allclose(started_from[name], values, rtol=2**-8)


async def test_the_next_version_is_made_of_the_exact_parameters_and_deltas_from_the_rounded_ones(server):
    encodings = {"params": "bf16", "delta": "bounded_int8"}
    run_id, cohort = await a_version_later(server, encodings=encodings)
    _, params = await params_of(server, run_id)
    tensors = (await server.show(run_id)).tensors
    sent = await server.operator.get(f"/v1/runs/{run_id}/tensors/{tensors['sent_params']}")
    started_from = decode_message(sent.content)["params"]
    received = []
    for seed, (worker, given) in enumerate(cohort):
        update, travelled = packed(given, started_from, seed)
        received.append(travelled["delta"])
        await worker.send(given, update)
    await server.aggregate_now()
    _, after = await params_of(server, run_id)
    for name, values in after.items():
        mean = np.mean([each[name].astype(float) for each in received], axis=0)
        np.testing.assert_allclose(values, params[name] + mean, rtol=1e-6, atol=1e-8)


async def test_the_bound_is_judged_from_where_a_worker_started(server):
    """With much weight decay, and a coordinate far out, the box lies elsewhere for what is rounded."""
    steps, decay, model = 10, 0.5, {"w": (4,)}
    gone = -np.expm1(steps * np.log1p(-decay * 0.04 / (10 / 3) / steps))
    digest = await server.store_params(model, 1000.0)
    run_id, cohort = await server.a_round(
        model=model,
        params_digest=digest,
        hyperparameters={"weight_decay": decay},
        encodings={"params": "bf16"},
    )
    _, params = await params_of(server, run_id)

    def shrunk(given, start):
        """What decay alone does, where every step is as long as it may be."""
        return server.an_update(given, model=model, bundles={"delta": {"w": -gone * start + 0.0399}})

    for worker, given in cohort:
        await worker.send(given, shrunk(given, params["w"]))
    await server.aggregate_now()
    worker, given = cohort[0][0], await cohort[0][0].assignment()
    _, exact = await params_of(server, run_id)
    sent = await worker.http.get(f"/v1/runs/{run_id}/tensors/{given['tensors']['params']}")
    started_from = decode_message(sent.content)["params"]["w"]
    assert (gone * (started_from - exact["w"]) > 0.001).any()
    wrong = await answered(worker, given, shrunk(given, exact["w"]))
    assert (wrong.status_code, wrong.json()["code"]) == (422, "outside-bound")
    await worker.send(given, shrunk(given, started_from))


async def test_parameters_that_are_too_large_for_their_way_down_end_the_round_by_name(server):
    model = {"w": (4,)}
    digest = await server.store_params(model, 65_519.0)  # nearly what f16 rounds to infinity
    run_id, cohort = await server.a_round(
        model=model,
        params_digest=digest,
        algorithm="fedavg",
        encodings={"params": "f16"},
        max_abandoned_rounds=1,
    )
    for worker, given in cohort:
        far = server.an_update(given, model=model, bundles={"delta": {"w": np.full(4, 40_000, np.float32)}})
        await worker.send(given, far)
    await server.aggregate_now()
    assert "the next params: w: as f16 it holds NaN or an infinity" in (await server.show(run_id)).reason


async def test_who_measures_a_version_is_given_what_will_be_exported(server):
    run_id, _ = await a_version_later(server, encodings={"params": "bf16"})
    evaluator = await server.enrol("measures", role="evaluator")
    given = await evaluator.assignment()
    assert given["tensors"]["params"] == (await server.show(run_id)).tensors["params"]
