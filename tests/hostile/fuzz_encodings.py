# SPDX-License-Identifier: Apache-2.0
"""What must hold of every entry of `ENCODINGS`, whatever values it is given and whatever bytes it reads."""

import random
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from protocol.encodings import ENCODINGS, Constants, Encoding
from protocol.errors import MalformedTensorMessage, NotFinite

Float32Array = npt.NDArray[np.float32]
MAX_BYTES = 512
GUARD = 8
_GUARDED = np.float32(-1234.5)


def seeds() -> Iterator[bytes]:
    """Where a fuzzer begins: values at the edges of the float types and of the scales of integers."""
    edges = [0.0, -0.0, 1.0, -0.1, np.nan, np.inf, -np.inf, 2.0**-149, 2.0**-133, 2.0**-24, 65504.0, 65520.0]
    edges += [3.3895e38, 3.4028235e38, 1 + 2.0**-8, 1 + 2.0**-9, 1 + 2.0**-11, -(2.0**-126)]
    edges += [2.0**100, 2.0**-100, 2.0**126, 2.0**-110, 2.0**-111, 0.04, 0.5 / 127, 1 + 2.0**-23]
    yield b""
    yield np.array(edges, dtype="<f4").tobytes()
    for edge in edges:
        yield np.array([edge], dtype="<f4").tobytes()
    yield np.arange(0, 2**16, 257, dtype="<u2").tobytes()[:MAX_BYTES]
    yield bytes(range(256))  # every code of 8 bits, and every pair of 4
    yield bytes(each for each in range(256) if each >> 4 != 8 and each & 15 != 8)


def check(data: bytes) -> None:
    """Raises: AssertionError: a promise of an encoding is broken; whatever else: it fell."""
    values = np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4")
    for encoding in ENCODINGS.values():
        _values_come_back_within_the_bound(encoding, values)
        whole = len(data) // encoding.size_bytes(1) * encoding.group
        for num_elements in {whole, max(whole - 1, 0)}:
            payload = data[: encoding.size_bytes(num_elements)]
            _payload_is_read_and_written_again(encoding, payload, num_elements, _constants(encoding, data))


def _constants(encoding: Encoding, data: bytes) -> Constants:
    """Some that the encoding takes, chosen by the data; the same for the same data."""
    chance = random.Random(zlib.crc32(data))
    scale = 2.0 ** chance.uniform(-55, 63)
    return {name: scale if name == "scale" else chance.random() for name in encoding.constants}


def mutated(data: bytes, _chance: random.Random) -> bytes:
    """Values have no form that blind changes would break."""
    return data


def _values_come_back_within_the_bound(encoding: Encoding, values: Float32Array) -> None:
    try:
        constants = encoding.constants_for(values)
        encoding.check_constants(constants)
        payload = encoding.encode(values, constants, seed=values.size)
    except NotFinite:
        assert encoding.name != "f32", "f32 carries every bit pattern"
        return
    assert payload.nbytes == encoding.size_bytes(values.size)
    decoded = _decoded(encoding, payload, values.size, constants)
    finite = np.isfinite(values)
    assert np.array_equal(np.isfinite(decoded), finite)
    if encoding.name == "f32":
        assert decoded.tobytes() == values.tobytes()
    exact = values[finite].astype(np.float64)
    if encoding.bundle == "direction":
        exact = np.clip(exact, -1, 1)
    moved = np.abs(decoded[finite].astype(np.float64) - exact)
    assert (moved <= encoding.rounding(exact, constants)).all(), "further than its rounding"
    if encoding.bundle is None:
        assert np.array_equal(np.signbit(decoded[finite]), np.signbit(exact))


def _payload_is_read_and_written_again(
    encoding: Encoding, payload: bytes, num_elements: int, constants: Constants
) -> None:
    try:
        decoded = _decoded(encoding, memoryview(payload), num_elements, constants)
    except MalformedTensorMessage:
        assert encoding.bundle is not None, "every bit pattern is a float"
        return
    middle = num_elements // 2 // encoding.group * encoding.group
    for start, stop in ((0, middle), (middle, num_elements)):
        first, last = encoding.byte_range(start, stop)
        part = _decoded(encoding, memoryview(payload)[first:last], stop - start, constants)
        assert part.tobytes() == decoded[start:stop].tobytes(), "a part is not that part of the whole"
    if np.isfinite(decoded).all():
        written = encoding.encode(decoded, constants, seed=num_elements)
        assert bytes(written) == payload, "a second trip changes something"
    else:
        assert encoding.bundle is None, "every code is a finite number"


def _decoded(
    encoding: Encoding, payload: memoryview, num_elements: int, constants: Constants
) -> Float32Array:
    """What is decoded between two guards, which must stay as they are."""
    room = np.full(num_elements + 2 * GUARD, _GUARDED, dtype=np.float32)
    out = room[GUARD : GUARD + num_elements]
    before = bytes(payload)
    encoding.decode(payload, out, constants)
    assert bytes(payload) == before
    assert (room[:GUARD] == _GUARDED).all(), "written before the place given"
    assert (room[GUARD + num_elements :] == _GUARDED).all(), "written behind the place given"
    return out
