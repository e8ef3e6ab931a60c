# SPDX-License-Identifier: Apache-2.0
"""What must hold of every entry of `ENCODINGS`, whatever values it is given and whatever bytes it reads."""

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from protocol.encodings import ENCODINGS, Encoding
from protocol.errors import NotFinite

Float32Array = npt.NDArray[np.float32]
MAX_BYTES = 512
GUARD = 8
_GUARDED = np.float32(-1234.5)


def seeds() -> Iterator[bytes]:
    """Where a fuzzer begins: values at the edges of the three float types."""
    edges = [0.0, -0.0, 1.0, -0.1, np.nan, np.inf, -np.inf, 2.0**-149, 2.0**-133, 2.0**-24, 65504.0, 65520.0]
    edges += [3.3895e38, 3.4028235e38, 1 + 2.0**-8, 1 + 2.0**-9, 1 + 2.0**-11, -(2.0**-126)]
    yield b""
    yield np.array(edges, dtype="<f4").tobytes()
    for edge in edges:
        yield np.array([edge], dtype="<f4").tobytes()
    yield np.arange(0, 2**16, 257, dtype="<u2").tobytes()[:MAX_BYTES]


def check(data: bytes) -> None:
    """Raises: AssertionError: a promise of an encoding is broken; whatever else: it fell."""
    values = np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4")
    for encoding in ENCODINGS.values():
        _values_come_back_within_the_bound(encoding, values)
        whole = len(data) // encoding.size_bytes(1)
        _payload_is_read_and_written_again(encoding, data[: encoding.size_bytes(whole)], whole)


def mutated(data: bytes, _chance: random.Random) -> bytes:
    """Values have no form that blind changes would break."""
    return data


def _values_come_back_within_the_bound(encoding: Encoding, values: Float32Array) -> None:
    try:
        payload = encoding.encode(values)
    except NotFinite:
        assert encoding.name != "f32", "f32 carries every bit pattern"
        return
    assert payload.nbytes == encoding.size_bytes(values.size)
    decoded = _decoded(encoding, payload, values.size)
    finite = np.isfinite(values)
    assert np.array_equal(np.isfinite(decoded), finite)
    if encoding.name == "f32":
        assert decoded.tobytes() == values.tobytes()
    exact = values[finite].astype(np.float64)
    moved = np.abs(decoded[finite].astype(np.float64) - exact)
    assert (moved <= encoding.rounding(exact)).all(), "further than its rounding"
    assert np.array_equal(np.signbit(decoded[finite]), np.signbit(exact))


def _payload_is_read_and_written_again(encoding: Encoding, payload: bytes, num_elements: int) -> None:
    decoded = _decoded(encoding, memoryview(payload), num_elements)
    middle = num_elements // 2
    for start, stop in ((0, middle), (middle, num_elements)):
        first, last = encoding.byte_range(start, stop)
        part = _decoded(encoding, memoryview(payload)[first:last], stop - start)
        assert part.tobytes() == decoded[start:stop].tobytes(), "a part is not that part of the whole"
    if np.isfinite(decoded).all():
        assert bytes(encoding.encode(decoded)) == payload, "a second trip changes something"


def _decoded(encoding: Encoding, payload: memoryview, num_elements: int) -> Float32Array:
    """What is decoded between two guards, which must stay as they are."""
    room = np.full(num_elements + 2 * GUARD, _GUARDED, dtype=np.float32)
    out = room[GUARD : GUARD + num_elements]
    before = bytes(payload)
    encoding.decode(payload, out)
    assert bytes(payload) == before
    assert (room[:GUARD] == _GUARDED).all(), "written before the place given"
    assert (room[GUARD + num_elements :] == _GUARDED).all(), "written behind the place given"
    return out
