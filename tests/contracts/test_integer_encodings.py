# SPDX-License-Identifier: Apache-2.0
"""What every encoding that sends small integers promises beside what all promise."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol.codec import NamedTensor, decode_message, encode_message
from protocol.encodings import ENCODINGS, Encoding, bounded, square_root
from protocol.encodings.integers import OfCodes
from protocol.errors import MalformedTensorMessage, NotFinite

Float32Array = npt.NDArray[np.float32]
INTEGERS = {name: each for name, each in ENCODINGS.items() if isinstance(each, OfCodes)}
STOCHASTIC = [name for name in INTEGERS if name != "unit_int8"]
seeded = settings(max_examples=100, deadline=None, derandomize=True)
shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
every_integer = pytest.mark.parametrize("name", INTEGERS)
every_stochastic = pytest.mark.parametrize("name", STOCHASTIC)


def values_for(name: str) -> st.SearchStrategy[Float32Array]:
    """Any that the encoding takes, of any shape."""
    least, most = {
        "bounded_int8": (-(2.0**100), 2.0**100),
        "bounded_int4": (-(2.0**100), 2.0**100),
        "sqrt_int8": (0.0, 2.0**126),
        "sqrt_int4": (0.0, 2.0**126),
        "unit_int8": (-1.0, 1.0),
    }[name]
    return npst.arrays(np.float32, shapes, elements=st.floats(least, most, width=32))


def trip(name: str, values: Float32Array, seed: int = 0) -> tuple[memoryview, Float32Array]:
    """The payload, and what it is decoded to."""
    encoding = ENCODINGS[name]
    constants = encoding.constants_for(values)
    payload, decoded = encoding.encode(values, constants, seed), np.empty(values.size, np.float32)
    encoding.decode(payload, decoded, constants)
    return payload, decoded.reshape(values.shape)


@every_integer
@seeded
@given(data=st.data(), seed=st.integers(0, 2**128 - 1))
def test_no_value_moves_farther_than_a_level(name: str, data: st.DataObject, seed: int) -> None:
    values = data.draw(values_for(name))
    _, decoded = trip(name, values, seed)
    exact = values.astype(np.float64)
    constants = ENCODINGS[name].constants_for(values)
    moved = np.abs(decoded.astype(np.float64) - exact)
    assert (moved <= ENCODINGS[name].rounding(exact, constants)).all()


@every_integer
@seeded
@given(data=st.data(), seed=st.integers(0, 2**64 - 1))
def test_what_was_decoded_is_the_same_bytes_again_whatever_is_drawn(
    name: str, data: st.DataObject, seed: int
) -> None:
    values = data.draw(values_for(name))
    payload, decoded = trip(name, values)
    constants = ENCODINGS[name].constants_for(values)
    assert bytes(ENCODINGS[name].encode(decoded, constants, seed)) == bytes(payload)


@every_integer
def test_every_payload_without_an_unused_code_is_written_again(name: str) -> None:
    """All bytes there are, as codes of the largest and the smallest scales."""
    encoding = INTEGERS[name]
    written = [byte for byte in range(256) if not encoding.codes.signed or not unused(encoding, byte)]
    payload = memoryview(bytes(written))
    for scale in (2.0**-55, 1e-9, 0.04, 1.0, 1234.5, 2.0**63):
        constants = {key: scale if key == "scale" else 0.0 for key in ENCODINGS[name].constants}
        values = np.empty(len(written) * encoding.group, np.float32)
        ENCODINGS[name].decode(payload, values, constants)
        assert ENCODINGS[name].encode(values, constants, seed=3) == payload


def unused(encoding: OfCodes, byte: int) -> bool:
    return byte == 0x80 if encoding.codes.bits == 8 else byte >> 4 == 8 or byte & 15 == 8


@every_integer
def test_a_code_that_is_never_written_is_refused(name: str) -> None:
    encoding = INTEGERS[name]
    constants = dict.fromkeys(ENCODINGS[name].constants, 0.5)
    out = np.empty(5 * encoding.group, np.float32)
    for byte in range(256):
        for place in range(5):
            payload = memoryview(bytes(5 - place - 1) + bytes([byte]) + bytes(place))
            if encoding.codes.signed and unused(encoding, byte):
                with pytest.raises(MalformedTensorMessage, match="has no meaning"):
                    ENCODINGS[name].decode(payload, out, constants)
            else:
                ENCODINGS[name].decode(payload, out, constants)
                assert np.isfinite(out).all()


@pytest.mark.parametrize("name", ["bounded_int4", "sqrt_int4"])
def test_the_half_byte_behind_an_odd_number_of_elements_is_zero(name: str) -> None:
    values = np.full(3, 0.5, np.float32)
    payload, _ = trip(name, values)
    assert payload[-1] >> 4 == 0
    changed = memoryview(bytes(payload[:-1]) + bytes([payload[-1] | 0x10]))
    with pytest.raises(MalformedTensorMessage, match="holds no element"):
        ENCODINGS[name].decode(changed, np.empty(3, np.float32), ENCODINGS[name].constants_for(values))


@pytest.mark.parametrize("name", ["bounded_int4", "sqrt_int4"])
def test_the_first_of_two_elements_is_in_the_low_half(name: str) -> None:
    highest = INTEGERS[name].codes.highest
    payload, _ = trip(name, np.array([1, 0, 0, 1, 1], np.float32))
    assert list(payload) == [highest, highest << 4, highest]


@every_stochastic
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(name: str) -> None:
    values = np.random.default_rng(0).uniform(0, 1, 40_001).astype(np.float32)
    assert trip(name, values, 1)[0] == trip(name, values.copy(), 1)[0]
    assert trip(name, values, 1)[0] != trip(name, values, 2)[0]


@every_stochastic
def test_the_mean_over_seeds_is_the_value(name: str) -> None:
    """200 values, 4000 seeds: the mean is within 5 of its own standard errors, 0.04 levels at most."""
    seeds = 4000
    roots = ENCODINGS[name].bundle == "hessian"
    values = np.random.default_rng(0).uniform(0, 1, 200).astype(np.float32)
    values[0] = 1
    total = np.zeros(200)
    for seed in range(seeds):
        _, decoded = trip(name, values, seed)
        total += np.sqrt(decoded) if roots else decoded
    expected = np.sqrt(values) if roots else values
    level = 1 / INTEGERS[name].codes.highest
    in_levels = (total / seeds - expected) / level
    assert np.abs(in_levels).max() < 5 * 0.5 / seeds**0.5
    assert abs(in_levels.mean()) < 5 * 0.5 / (seeds * 200) ** 0.5


@every_stochastic
def test_neighbours_are_rounded_apart(name: str) -> None:
    """Equal values, half-way between two codes: as many go up as down, without a pattern."""
    highest = INTEGERS[name].codes.highest
    half = np.float32(((highest // 2 + 0.5) / highest) ** (2 if ENCODINGS[name].bundle == "hessian" else 1))
    values = np.full(40_000, half)
    values[0] = 1
    up = trip(name, values, 4)[1][1:] > half
    assert abs(up.mean() - 0.5) < 5 * 0.5 / 40_000**0.5
    for lag in (1, 2, 3, 4, 8, 32_768):
        assert abs((up[lag:] == up[:-lag]).mean() - 0.5) < 5 * 0.5 / up[lag:].size ** 0.5


def test_what_is_beyond_the_scale_becomes_it() -> None:
    constants = {"scale": 0.04, "shrinkage": 0.0}
    for name in ("bounded_int8", "bounded_int4"):
        decoded = np.empty(4, np.float32)
        values = np.array([0.0401, -0.0401, 3e38, -3e38], np.float32)
        ENCODINGS[name].decode(ENCODINGS[name].encode(values[:2], constants), decoded[:2], constants)
        assert decoded[:2].tolist() == pytest.approx([0.04, -0.04], rel=1e-6)
        with pytest.raises(NotFinite):  # so far that it leaves float32 on the way
            ENCODINGS[name].encode(values, constants)


@every_integer
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFBFFFFF, 0x7F800000, 0xFF800000])
def test_what_is_not_finite_is_refused_and_worth_no_warning(name: str, bits: int) -> None:
    values = np.array([0.5, 0, 0.25], np.float32)
    values.view(np.uint32)[1] = bits
    with pytest.raises(NotFinite):
        trip(name, values)
    constants = ENCODINGS[name].constants_for(np.ones(1, np.float32))
    with pytest.raises(NotFinite):
        ENCODINGS[name].encode(values, constants)


@pytest.mark.parametrize("name", ["sqrt_int8", "sqrt_int4"])
def test_curvature_that_is_negative_is_refused(name: str) -> None:
    with pytest.raises(NotFinite):
        trip(name, np.array([1.0, -1e-30], np.float32))


@pytest.mark.parametrize("name", ["sqrt_int8", "sqrt_int4"])
def test_curvature_of_zeros_or_almost_none_comes_back_as_zeros(name: str) -> None:
    for values in (np.zeros(5, np.float32), np.full(5, 2.0**-111, np.float32), -np.zeros(2, np.float32)):
        assert ENCODINGS[name].constants_for(values) == {"scale": 0.0}
        assert not trip(name, values)[1].any()
    edge = np.array([square_root.LEAST_SCALE**2], np.float32)
    assert trip(name, edge)[1] == edge


@pytest.mark.parametrize("name", ["sqrt_int8", "sqrt_int4"])
def test_a_scale_that_would_make_numbers_too_small_is_refused(name: str) -> None:
    with pytest.raises(MalformedTensorMessage, match="neither 0 nor"):
        ENCODINGS[name].check_constants({"scale": square_root.LEAST_SCALE / 2})


@pytest.mark.parametrize("scale", [0.0, bounded.LEAST_SCALE / 2, bounded.MOST_SCALE * 2])
def test_a_box_of_no_or_of_any_size_is_refused(scale: float) -> None:
    with pytest.raises(MalformedTensorMessage, match="scale is no number from"):
        bounded.BOUNDED_INT8.check_constants({"scale": scale, "shrinkage": 0.0})


@every_integer
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (3, 3)])
def test_a_message_carries_it_with_its_constants(name: str, shape: tuple[int, ...]) -> None:
    encoding = ENCODINGS[name]
    values = np.random.default_rng(2).uniform(0, 1, shape).astype(np.float32)
    assert encoding.bundle is not None
    message = b"".join(encode_message("update", [NamedTensor(encoding.bundle, "w", values, name, seed=6)]))
    assert np.array_equal(decode_message(message)[encoding.bundle]["w"], trip(name, values, 6)[1])


@every_integer
def test_no_other_bundle_travels_so(name: str) -> None:
    with pytest.raises(MalformedTensorMessage, match="not for params"):
        encode_message("state", [NamedTensor("params", "w", np.ones(1, np.float32), name)])


@pytest.mark.parametrize(
    ("name", "values", "payload"),
    [
        ("bounded_int8", [0.04, -0.04, 0.0, 0.04 / 127], "7f810001"),
        ("bounded_int4", [0.04, -0.04, 0.04 / 7], "9701"),
        ("sqrt_int8", [4.0, 0.0, (2 / 255) ** 2], "ff0001"),
        ("sqrt_int4", [4.0, 0.0, (2 / 15) ** 2], "0f01"),
        ("unit_int8", [1.0, -1.0, 0.5 / 127, 1.5 / 127, -0.004, -0.5], "7f810002ffc0"),
    ],
)
def test_these_values_are_these_bytes(name: str, values: list[float], payload: str) -> None:
    assert trip(name, np.array(values, np.float32))[0].hex() == payload


def test_an_encoding_is_one_of_integers_or_takes_any_bundle() -> None:
    others: list[Encoding] = [each for each in ENCODINGS.values() if each.name not in INTEGERS]
    assert all(each.bundle is None and each.group == 1 for each in others)
