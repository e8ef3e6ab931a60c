# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes at the server's intake: refused by the names the codec gives them, and nothing is kept."""

import struct
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.codec import NamedTensor, decode_message, digest_of, encode_message, pack_header, read_layout
from protocol.encodings import ENCODINGS
from protocol.errors import (
    FedSophiaError,
    MalformedTensorMessage,
    NotFinite,
    SizeMismatch,
    TruncatedTensorMessage,
)
from protocol.header import tensor_header
from ps_service.intake import Intake, accept_finite
from ps_service.storage.files import FileBlobs

HERE = Path(__file__).parent
MEBIBYTE = 1024 * 1024
LARGE = 120 * MEBIBYTE
CHUNK = 64 * 1024
BITS = {"f32": np.dtype("<u4"), "bf16": np.dtype("<u2"), "f16": np.dtype("<u2")}
NOT_FINITE = {
    "f32": [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF],
    "bf16": [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF],
    "f16": [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF],
}
"""Bits of both infinities and of NaNs, quiet and signalling."""
STRANGE_BUT_FINITE = {
    "f32": [0x00000001, 0x80000001, 0x007FFFFF, 0x80000000, 0x7F7FFFFF, 0x00800000],
    "bf16": [0x0001, 0x8001, 0x007F, 0x8000, 0x7F7F, 0x0080],
    "f16": [0x0001, 0x8001, 0x03FF, 0x8000, 0x7BFF, 0x0400],
}
"""Bits of subnormal numbers, of −0, and of the largest and the smallest normal number."""


def a_message(*tensors: NamedTensor) -> bytes:
    return b"".join(encode_message("state", tensors))


SMALL = a_message(
    NamedTensor("params", "weight", np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "bf16"),
    NamedTensor("params", "nothing", np.zeros(0, np.float32)),
    NamedTensor("params", "bias", np.ones(3, np.float32)),
)


def of_bits(encoding: str, bits: list[int]) -> bytes:
    """A message with one tensor of values that no writer of ours would write."""
    message = bytearray(a_message(NamedTensor("params", "w", np.zeros(len(bits), np.float32), encoding)))
    payload = np.array(bits, BITS[encoding]).tobytes()
    message[-len(payload) :] = payload
    return bytes(message)


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., None]:
    """Takes pieces in as a message of this digest and size; whatever happens, nothing stays on its way."""
    blobs = FileBlobs(tmp_path)

    def taken(pieces: Iterable[bytes], digest: str, size_bytes: int) -> None:
        intake = Intake(blobs.stage(), digest, size_bytes, lambda header: None, accept_finite)
        try:
            for piece in pieces:
                intake.feed([piece])
            intake.finish()
            intake.seal()
        finally:
            intake.discard()
            assert not [path for path in (tmp_path / "staging").rglob("*") if path.is_file()]

    return taken


def cut(message: bytes, size_bytes: int) -> Iterator[bytes]:
    for start in range(0, len(message), size_bytes):
        yield message[start : start + size_bytes]


def kept(directory: Path) -> list[Path]:
    return [path for path in (directory / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("cut_bytes", [1, 7, CHUNK])
def test_a_message_that_ends_at_any_byte_is_truncated(
    take: Callable[..., None], tmp_path: Path, cut_bytes: int
) -> None:
    for length in range(len(SMALL)):
        message = SMALL[:length]
        with pytest.raises(TruncatedTensorMessage):
            take(cut(message, cut_bytes), digest_of([message]), length)
        with pytest.raises(SizeMismatch):
            take(cut(message, cut_bytes), digest_of([SMALL]), len(SMALL))
    assert kept(tmp_path) == []
    take(cut(SMALL, cut_bytes), digest_of([SMALL]), len(SMALL))
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("path", sorted(HERE.glob("*.bin")), ids=lambda path: path.stem)
def test_a_hostile_file_gets_the_same_name_as_from_the_codec(take: Callable[..., None], path: Path) -> None:
    message = path.read_bytes()
    with pytest.raises(FedSophiaError) as expected:
        decode_message(message)
    for cut_bytes in (1, CHUNK):
        with pytest.raises(type(expected.value)):
            take(cut(message, cut_bytes), digest_of([message]), len(message))


def test_the_tables_of_strange_values_have_every_encoding() -> None:
    assert set(BITS) == set(NOT_FINITE) == set(STRANGE_BUT_FINITE) == set(ENCODINGS)


@pytest.mark.parametrize("cut_bytes", [1, 3, CHUNK])
@pytest.mark.parametrize("encoding", BITS)
def test_one_value_that_is_not_finite_is_refused_in_every_place(
    take: Callable[..., None], tmp_path: Path, encoding: str, cut_bytes: int
) -> None:
    for bits in NOT_FINITE[encoding]:
        for place in range(3):
            message = of_bits(encoding, [0] * place + [bits] + [0] * (2 - place))
            with pytest.raises(NotFinite) as refusal:
                take(cut(message, cut_bytes), digest_of([message]), len(message))
            assert refusal.value.detail.startswith("w: ")
    assert kept(tmp_path) == []


@pytest.mark.parametrize("cut_bytes", [1, 3, CHUNK])
@pytest.mark.parametrize("encoding", BITS)
def test_subnormal_numbers_and_minus_zero_are_numbers_like_others(
    take: Callable[..., None], tmp_path: Path, encoding: str, cut_bytes: int
) -> None:
    message = of_bits(encoding, STRANGE_BUT_FINITE[encoding])
    take(cut(message, cut_bytes), digest_of([message]), len(message))
    [blob] = kept(tmp_path)
    assert blob.read_bytes() == message


def large(declared_bytes: int, prefix: bytes) -> Iterator[bytes]:
    """A header that declares so much, this prefix of a bin, and 120 MiB of zeros."""
    header = pack_header("state", [tensor_header("params", "w", (declared_bytes // 4,))])
    yield header + b"\xc0" * (-(len(header) + len(prefix)) % 64) + prefix
    zeros = bytes(CHUNK)
    for _ in range(LARGE // CHUNK):
        yield zeros


BIN_OF_120_MIB = b"\xc6" + struct.pack(">I", LARGE)
LIES = {
    "the bin says more than the header": (4, BIN_OF_120_MIB, MalformedTensorMessage),
    "the bin is longer than it says": (4, b"\xc4\x04", MalformedTensorMessage),
    "the header says more than the bin": (2**32 - 4, BIN_OF_120_MIB, MalformedTensorMessage),
    "2³² less one element are announced": (2**32 - 4, b"\xc6\xff\xff\xff\xfc", TruncatedTensorMessage),
}


def peak_bytes(action: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("lie", LIES)
def test_120_mib_behind_a_header_that_lies_are_refused_in_little_memory(
    take: Callable[..., None], tmp_path: Path, lie: str
) -> None:
    declared_bytes, prefix, expected = LIES[lie]
    message = list(large(declared_bytes, prefix))

    def refused() -> None:
        with pytest.raises(expected):
            take(message, digest_of(message), sum(map(len, message)))

    assert peak_bytes(refused) < 2 * MEBIBYTE
    assert kept(tmp_path) == []


def test_120_mib_as_declared_are_taken_in_little_memory(take: Callable[..., None], tmp_path: Path) -> None:
    message = list(large(LARGE, BIN_OF_120_MIB))
    digest = digest_of(message)
    assert peak_bytes(lambda: take(message, digest, sum(map(len, message)))) < 2 * MEBIBYTE
    [blob] = kept(tmp_path)
    with blob.open("rb") as file:
        layout = read_layout(file.read(CHUNK))
    assert layout.size_bytes == blob.stat().st_size
    blob.unlink()  # not a gigabyte in the folders that pytest keeps
