# SPDX-License-Identifier: Apache-2.0
"""What a finished training becomes on its way: the same bytes again for the same training."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from protocol.algorithms import ALGORITHMS
from protocol.codec import decode_message, digest_of, read_layout
from protocol.errors import BundleMismatch, OutsideBound, UnknownEncoding
from protocol.messages import Assignment
from worker.update import as_received, pack, rounding_seed

PARAMS = {"w": np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7), "b": np.array(0.5, np.float32)}


@dataclass(frozen=True)
class Trained:
    bundles: dict[str, dict[str, np.ndarray]]
    local_steps: int = 10
    num_examples: int = 10
    kept: None = None
    metrics: dict[str, float] = field(default_factory=dict)


def an_assignment(seed: int = 1, algorithm: str = "fed-sophia-shared", **encodings: str) -> Assignment:
    row = ALGORITHMS[algorithm]
    return Assignment(
        assignment_id="a1",
        run_id="r1",
        round=1,
        version=0,
        slot=0,
        phase="train",
        task="digits",
        tensors={},
        bundles=tuple(encodings),
        encodings=encodings,
        optimizer=row.optimizer,
        settings=row.parse({}).optimizer_settings(10),
        local_steps=10,
        batch_size=32,
        seed=seed,
        deadline_ms=0,
    )


def trained(farthest: float = 0.03, **changes: object) -> Trained:
    rng = np.random.default_rng(0)
    delta = {n: np.asarray(rng.uniform(-farthest, farthest, v.shape), np.float32) for n, v in PARAMS.items()}
    hessian = {name: np.square(values) for name, values in delta.items()}
    return Trained({"delta": delta, "hessian": hessian}, **changes)  # type: ignore[arg-type]


THIN = {"delta": "bounded_int4", "hessian": "sqrt_int8"}


def test_packing_again_gives_the_same_bytes() -> None:
    packed = [pack(an_assignment(**THIN), PARAMS, trained()) for _ in range(2)]
    assert packed[0][0] == packed[1][0]
    assert digest_of(packed[0][1]) == digest_of(packed[1][1])


def test_another_assignment_rounds_otherwise() -> None:
    digests = {pack(an_assignment(seed, **THIN), PARAMS, trained())[0].digest for seed in range(4)}
    assert len(digests) == 4


def test_every_tensor_of_an_update_is_rounded_apart() -> None:
    seeds = {rounding_seed(*each) for each in [(1, "delta", "w"), (1, "delta", "b"), (1, "hessian", "w")]}
    assert len(seeds | {rounding_seed(2, "delta", "w")}) == 4


def test_what_is_received_is_what_the_message_says() -> None:
    assignment, made = an_assignment(**THIN), trained()
    _, message = pack(assignment, PARAMS, made)
    decoded, layout = decode_message(b"".join(message)), read_layout(b"".join(message))
    received = as_received(assignment, PARAMS, made)
    [stated] = {tuple(t.constants.items()) for t in layout.header.tensors if t.bundle == "delta"}
    bound = ALGORITHMS["fed-sophia-shared"].parse({}).bound(10, 10)
    assert bound is not None
    assert dict(stated) == bound.constants
    for name, start in PARAMS.items():
        delta = decoded["delta"][name] - np.float32(bound.shrinkage) * start
        assert np.array_equal(received["delta"][name], delta)
        assert np.array_equal(received["hessian"][name], decoded["hessian"][name])
        assert np.abs(delta - made.bundles["delta"][name]).max() <= bound.radius / 7 * 1.001


def test_floats_travel_as_they_are() -> None:
    made = trained()
    received = as_received(an_assignment(delta="f32", hessian="f32"), PARAMS, made)
    for bundle, tensors in received.items():
        for name, values in tensors.items():
            assert values.tobytes() == made.bundles[bundle][name].tobytes()


def test_fewer_steps_have_a_smaller_box() -> None:
    scales = []
    for steps in (3, 10):
        _, message = pack(an_assignment(**THIN), PARAMS, trained(0.01, local_steps=steps))
        scales.append(read_layout(b"".join(message)).header.tensors[0].constants["scale"])
    assert scales[0] == pytest.approx(0.3 * scales[1], rel=1e-4)


def test_a_step_that_went_too_far_is_found_before_it_is_sent() -> None:
    with pytest.raises(OutsideBound, match="delta/w"):
        pack(an_assignment(**THIN), PARAMS, trained(0.05))


def test_what_nothing_bounds_cannot_be_sent_by_its_bound() -> None:
    with pytest.raises(BundleMismatch, match="optimizer sgd"):
        pack(an_assignment(algorithm="fedavg", delta="bounded_int8"), PARAMS, trained())


def test_an_encoding_that_is_not_known_here_is_named() -> None:
    with pytest.raises(UnknownEncoding, match="bounded_int2"):
        pack(an_assignment(delta="bounded_int2"), PARAMS, trained())


def test_four_bits_up_are_an_eighth_of_floats() -> None:
    """A large model, so that headers are nothing beside it."""
    params = {"w": np.zeros(400_000, np.float32)}
    made = Trained({"delta": params, "hessian": params})
    sizes = {
        encodings: pack(
            an_assignment(**dict(zip(("delta", "hessian"), encodings, strict=True))), params, made
        )[0]
        for encodings in (("f32", "f32"), ("bounded_int4", "sqrt_int4"), ("bounded_int8", "sqrt_int8"))
    }
    whole, four, eight = (header.size_bytes for header in sizes.values())
    assert whole / four == pytest.approx(8, rel=1e-2)
    assert whole / eight == pytest.approx(4, rel=1e-2)
