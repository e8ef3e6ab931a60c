# SPDX-License-Identifier: Apache-2.0
"""What every entry of `ENCODINGS` promises."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from protocol.encodings import ENCODINGS, Encoding, encoding_named
from protocol.errors import MalformedTensorMessage, NotFinite, UnknownEncoding

Float32Array = npt.NDArray[np.float32]
LARGEST = {
    "f32": float(np.finfo(np.float32).max),
    "bf16": 255 / 128 * 2.0**127,
    "f16": 65504.0,
    "bounded_int8": 2.0**100,
    "bounded_int4": 2.0**100,
    "sqrt_int8": 2.0**126,
    "sqrt_int4": 2.0**126,
    "unit_int8": 1.0,
}
"""The largest finite value of each encoding; a new encoding adds its own."""
every_encoding = pytest.mark.parametrize(
    "encoding", [pytest.param(e, id=name) for name, e in ENCODINGS.items()]
)
every_float = pytest.mark.parametrize(
    "encoding", [pytest.param(e, id=name) for name, e in ENCODINGS.items() if e.bundle is None]
)
"""Those that say each value by itself; `test_integer_encodings.py` has the others' own laws."""


def there_and_back(encoding: Encoding, values: Float32Array, seed: int = 0) -> Float32Array:
    constants = encoding.constants_for(values)
    decoded = np.empty(values.size, np.float32)
    encoding.decode(encoding.encode(values, constants, seed), decoded, constants)
    return decoded.reshape(values.shape)


def some_values(encoding: Encoding, *shape: int) -> Float32Array:
    """Random values of the kind that the encoding is for."""
    drawn = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    return {"hessian": np.square, "direction": np.tanh}.get(encoding.bundle or "", np.copy)(drawn)


def values_of_every_size(encoding: Encoding) -> Float32Array:
    """Random, in every binade of float32 that the encoding holds, subnormal ones too, and their edges."""
    rng = np.random.default_rng(11)
    top = np.log2(LARGEST[encoding.name])
    sizes = 2.0 ** rng.uniform(-149, top, 40_000)
    powers = 2.0 ** np.arange(-149, int(top) + 1)
    edges = np.concatenate([powers, powers * (1 - 2.0**-24), powers * (1 + 2.0**-9), powers * (1 + 2.0**-8)])
    magnitudes = np.concatenate([sizes, edges, [0.0, LARGEST[encoding.name]]])
    magnitudes = np.minimum(magnitudes, LARGEST[encoding.name])
    values: Float32Array = (magnitudes * rng.choice([-1.0, 1.0], magnitudes.size)).astype(np.float32)
    return values


def test_the_menu_names_each_encoding_as_it_names_itself() -> None:
    assert {name: encoding.name for name, encoding in ENCODINGS.items()} == {name: name for name in ENCODINGS}
    assert set(LARGEST) == set(ENCODINGS)


def test_a_name_that_is_not_on_the_menu_is_refused() -> None:
    with pytest.raises(UnknownEncoding, match="'f8'"):
        encoding_named("f8")


@every_encoding
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3), (1, 1, 7)])
def test_the_payload_has_the_size_that_was_announced(encoding: Encoding, shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    payload = encoding.encode(values)
    assert payload.nbytes == encoding.size_bytes(values.size)
    assert payload.format == "B"
    assert np.array_equal(there_and_back(encoding, values), values)


@every_encoding
def test_byte_ranges_are_neighbours_that_cover_the_payload(encoding: Encoding) -> None:
    cuts = [0, *(encoding.group * group for group in (1, 2, 7, 8, 15)), 31]
    ranges = [encoding.byte_range(start, stop) for start, stop in itertools.pairwise(cuts)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == encoding.size_bytes(31)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(ranges))
    start, stop = encoding.byte_range(6, 6)
    assert start == stop


@every_encoding
def test_decoding_a_part_gives_that_part_of_the_whole(encoding: Encoding) -> None:
    values = some_values(encoding, 101)
    constants = encoding.constants_for(values)
    payload = encoding.encode(values, constants)
    whole = there_and_back(encoding, values)
    parts = [(0, 1), (1, 2), (0, 101), (33, 97), (100, 101), (50, 50)]
    for start, stop in [(group * start, min(group * stop, 101)) for start, stop in parts for group in (1, 2)]:
        if start % encoding.group or (stop % encoding.group and stop != 101):
            continue  # in the middle of elements that share bytes
        first, last = encoding.byte_range(start, stop)
        part = np.empty(max(stop - start, 0), np.float32)
        encoding.decode(payload[first:last], part, constants)
        assert part.tobytes() == whole[start:stop].tobytes()


@every_encoding
def test_an_encoding_leaves_what_it_is_given_alone(encoding: Encoding) -> None:
    values = some_values(encoding, 7, 9)
    before = values.tobytes()
    values.flags.writeable = False
    encoding.encode(values)
    assert values.tobytes() == before


@every_encoding
def test_one_part_after_the_other_is_the_whole(encoding: Encoding) -> None:
    values = some_values(encoding, 100_001)  # more than is done at a time
    constants = encoding.constants_for(values)
    payload, whole = encoding.encode(values, constants), there_and_back(encoding, values)
    parts = []
    for start, stop in itertools.pairwise([0, 2, 4096, 32_768, 65_538, 100_001]):
        first, last = encoding.byte_range(start, stop)
        parts.append(np.empty(stop - start, np.float32))
        encoding.decode(payload[first:last], parts[-1], constants)
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@every_encoding
def test_only_its_own_constants_are_taken(encoding: Encoding) -> None:
    constants = encoding.constants_for(some_values(encoding, 5))
    assert tuple(constants) == encoding.constants
    encoding.check_constants(constants)
    wrong: list[dict[str, float]] = [{**constants, "extra": 1.0}]
    for name in constants:
        wrong.append({other: value for other, value in constants.items() if other != name})
        wrong += [{**constants, name: value} for value in (np.nan, np.inf, -np.inf, -1.0, 1e39, -1e-300)]
    for each in wrong:
        with pytest.raises(MalformedTensorMessage):
            encoding.check_constants(each)


@every_float
def test_rounding_bounds_the_error_of_every_value(encoding: Encoding) -> None:
    values = values_of_every_size(encoding)
    decoded = there_and_back(encoding, values)
    error = np.abs(decoded.astype(np.float64) - values.astype(np.float64))
    assert (error <= encoding.rounding(decoded.astype(np.float64))).all()


@every_float
def test_rounding_is_not_wider_than_it_must_be(encoding: Encoding) -> None:
    values = values_of_every_size(encoding)
    decoded = there_and_back(encoding, values)
    error = np.abs(decoded.astype(np.float64) - values.astype(np.float64))
    allowed = encoding.rounding(decoded.astype(np.float64))
    normal = np.abs(values) > 2.0**-13
    for some in (normal, ~normal):
        worst = (error[some] / np.where(allowed[some] > 0, allowed[some], 1)).max()
        assert worst > 0.99 or not allowed.any()


@every_float
def test_a_second_trip_changes_nothing(encoding: Encoding) -> None:
    once = there_and_back(encoding, values_of_every_size(encoding))
    assert there_and_back(encoding, once).tobytes() == once.tobytes()


@every_float
def test_order_and_sign_survive(encoding: Encoding) -> None:
    values = np.sort(values_of_every_size(encoding))
    decoded = there_and_back(encoding, values)
    assert (np.diff(decoded) >= 0).all()
    assert (np.signbit(decoded) == np.signbit(values)).all()


@every_float
def test_the_largest_value_is_held_and_the_next_is_not_finite(encoding: Encoding) -> None:
    largest = LARGEST[encoding.name]
    assert there_and_back(encoding, np.array([largest, -largest], np.float32)).tolist() == [largest, -largest]
    if encoding.name != "f32":
        with pytest.raises(NotFinite):
            encoding.encode(np.array([0, largest * (1 + 2.0**-8)], np.float32))


@pytest.mark.parametrize("name", ["bf16", "f16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_rounding_encoding_refuses_what_is_not_finite(name: str, value: float) -> None:
    with pytest.raises(NotFinite):
        ENCODINGS[name].encode(np.array([1, value], np.float32))


@pytest.mark.parametrize("name", ["bf16", "f16"])
@pytest.mark.parametrize("bits", [0x7F800001, 0xFFBFFFFF, 0x7FC00000])
def test_no_nan_of_any_bits_is_worth_a_warning_beside_its_refusal(name: str, bits: int) -> None:
    with pytest.raises(NotFinite):
        ENCODINGS[name].encode(np.array([bits], np.uint32).view(np.float32))


@pytest.mark.parametrize(
    ("name", "value", "payload"),
    [
        ("f32", 1.0, "0000803f"),
        ("f32", -0.1, "cdccccbd"),
        ("bf16", 1.0, "803f"),
        ("bf16", 1 + 2**-8, "803f"),  # a tie goes to the even one: down …
        ("bf16", 1 + 3 * 2**-8, "823f"),  # … and up
        ("bf16", 2.0**-133, "0100"),
        ("bf16", 2.0**-134, "0000"),
        ("bf16", -0.1, "cdbd"),
        ("f16", 1.0, "003c"),
        ("f16", 1 + 2**-11, "003c"),
        ("f16", 1 + 3 * 2**-11, "023c"),
        ("f16", 2.0**-24, "0100"),
        ("f16", 2.0**-25, "0000"),
        ("f16", 65519.0, "ff7b"),
        ("f16", -0.1, "66ae"),
    ],
)
def test_one_value_is_these_bytes(name: str, value: float, payload: str) -> None:
    assert ENCODINGS[name].encode(np.array([value], np.float32)).hex() == payload
