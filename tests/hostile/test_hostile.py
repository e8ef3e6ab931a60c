# SPDX-License-Identifier: Apache-2.0
"""Bytes that must be refused: every one by a named error, in bounded memory and time."""

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import FrameReader, Limits, NamedTensor, decode_message, encode_message
from protocol.errors import (
    FedSophiaError,
    MalformedTensorMessage,
    MessageTooLarge,
    TruncatedTensorMessage,
    UnknownEncoding,
)
from protocol.header import ENTRY_BYTES

HERE = Path(__file__).parent
MEBIBYTE = 1024 * 1024

TRUNCATED = {
    "empty",
    "giant-bin-declared",
    "giant-string-declared",
    "payload-of-4-gib-declared-and-absent",
    "truncated-after-header",
    "truncated-before-last-tensor",
    "truncated-by-one-byte",
    "truncated-in-bin-prefix",
    "truncated-in-header",
    "truncated-in-padding",
    "truncated-in-payload",
}
TOO_LARGE = {"giant-tensor-array-declared", "tensor-over-4-gib", "too-many-tensors-declared"}
UNKNOWN_ENCODING = {"unknown-encoding", "unknown-encoding-named-like-a-path"}
MALFORMED = {
    "bin-prefix-aligned-instead-of-payload",
    "bin-prefix-overlong",
    "bin-shorter-than-header-says",
    "bundle-of-65-characters",
    "constants-is-a-list",
    "constants-nan",
    "constants-that-nobody-asked-for",
    "duplicate-key-in-header",
    "duplicate-key-in-header-of-three",
    "duplicate-key-in-tensor",
    "duplicate-tensor",
    "encoding-of-another-bundle",
    "ext-type-empty",
    "ext-type-in-header",
    "ext-type-of-16-bytes",
    "extent-huge",
    "extent-negative",
    "extents-negative-product-positive",
    "giant-array-as-the-version",
    "giant-array-inside-a-tensor",
    "giant-ext-declared",
    "giant-map-declared",
    "giant-map-inside-a-tensor",
    "key-is-a-list-in-tensor",
    "key-is-a-map",
    "key-is-an-integer",
    "kind-missing",
    "name-empty",
    "name-is-bin",
    "name-is-empty-bin",
    "name-lone-surrogate",
    "name-not-utf8",
    "name-of-257-characters",
    "not-a-map",
    "not-msgpack-html",
    "padding-64-too-long",
    "padding-is-false",
    "padding-missing",
    "payload-is-a-string",
    "reserved-byte",
    "scale-huge",
    "scale-infinite",
    "scale-missing",
    "scale-nan",
    "scale-negative",
    "scale-of-a-root-too-small",
    "scale-zero",
    "schema-version-2",
    "schema-version-is-a-float",
    "schema-version-is-true",
    "shape-empty-with-huge-extents",
    "shape-holds-a-float",
    "shape-holds-true",
    "shape-is-a-string",
    "shape-is-an-integer",
    "shape-of-sixteen-huge-extents",
    "shape-product-overflows-64-bits",
    "shape-seventeen-dimensions",
    "shrinkage-above-one",
    "size-is-true",
    "size-larger-than-shape",
    "size-missing",
    "size-negative",
    "size-of-int4-rounded-down",
    "size-smaller-than-shape",
    "tensor-is-a-string",
    "tensors-is-a-map",
    "tensors-is-nil",
    "timestamp-empty",
    "timestamp-in-header",
    "trailing-byte",
    "trailing-bytes-of-empty-message",
    "trailing-nil",
    "unknown-dtype",
    "unknown-key-in-header",
    "unknown-key-in-tensor",
    "unknown-kind",
    "zip-archive-start",
}
EXPECTED: dict[str, type[FedSophiaError]] = (
    dict.fromkeys(TRUNCATED, TruncatedTensorMessage)
    | dict.fromkeys(TOO_LARGE, MessageTooLarge)
    | dict.fromkeys(UNKNOWN_ENCODING, UnknownEncoding)
    | dict.fromkeys(MALFORMED, MalformedTensorMessage)
)

TENSORS_FOLLOW = b"\x83\xa7tensors"


def _entry(name: str) -> dict[str, object]:
    return {
        "bundle": "params",
        "name": name,
        "dtype": "float32",
        "shape": [0],
        "encoding": "f32",
        "constants": {},
        "size_bytes": 0,
    }


def _header_of_over_a_mebibyte() -> bytes:
    tensors = [_entry(f"{index:0256d}") for index in range(5_000)]
    packed: bytes = msgpack.packb({"schema_version": 1, "kind": "state", "tensors": tensors})
    return packed


def _entry_of_over_4_kib() -> bytes:
    constants = {f"{index:01000d}": 1.0 for index in range(8)}
    packed: bytes = msgpack.packb(_entry("w") | {"constants": constants})
    return TENSORS_FOLLOW + b"\x91" + packed


def _mistake_behind_too_long_an_entry() -> bytes:
    """The byte that no object begins with, a few bytes behind the place where an entry must have ended."""
    return _entry_of_over_4_kib()[: len(TENSORS_FOLLOW) + 1 + ENTRY_BYTES + 20] + b"\xc1"


# Too large to keep as files: (bytes, error).
GENERATED: dict[str, tuple[Callable[[], bytes], type[FedSophiaError]]] = {
    "arrays nested 100,000 deep": (lambda: b"\x91" * 100_000, MalformedTensorMessage),
    "arrays nested 100,000 deep in a tensor": (
        lambda: TENSORS_FOLLOW + b"\x91" * 100_000,
        MalformedTensorMessage,
    ),
    "maps nested 100,000 deep in a tensor": (
        lambda: TENSORS_FOLLOW + b"\x91" + b"\x81\xa1a" * 100_000,
        MalformedTensorMessage,
    ),
    "arrays of 10,000 nested 1,000 deep": (
        lambda: TENSORS_FOLLOW + b"\xdc\x27\x10" * 1_000,
        MalformedTensorMessage,
    ),
    "a million empty maps": (
        lambda: TENSORS_FOLLOW + b"\xdc\x27\x10" + b"\x80" * MEBIBYTE,
        MalformedTensorMessage,
    ),
    "a tree of a million empty arrays": (
        lambda: TENSORS_FOLLOW + b"\x91" + b"\xdc\x00\x10" * 200 + b"\x90" * MEBIBYTE,
        MalformedTensorMessage,
    ),
    "a string of 2 MiB": (lambda: b"\x83\xdb\x00\x20\x00\x00" + b"a" * 2 * MEBIBYTE, MessageTooLarge),
    "an entry of over 4 KiB": (_entry_of_over_4_kib, MessageTooLarge),
    "a mistake behind an entry of over 4 KiB": (_mistake_behind_too_long_an_entry, MessageTooLarge),
    "a header of over 1 MiB": (_header_of_over_a_mebibyte, MessageTooLarge),
}


def _read(message: bytes, chunk_bytes: int) -> None:
    reader = FrameReader()
    for start in range(0, len(message), chunk_bytes):
        for _ in reader.feed(message[start : start + chunk_bytes]):
            pass
    reader.finish()


def test_the_table_lists_every_file_of_the_folder() -> None:
    assert {path.stem for path in HERE.glob("*.bin")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_hostile_file_is_refused_by_its_named_error_however_it_is_cut(name: str) -> None:
    message = (HERE / f"{name}.bin").read_bytes()
    with pytest.raises(EXPECTED[name]) as refusal:
        decode_message(message)
    assert type(refusal.value) is EXPECTED[name]
    for chunk_bytes in (1, 7, 64):
        with pytest.raises(EXPECTED[name]):
            _read(message, chunk_bytes)


@pytest.mark.parametrize("chunk_bytes", [1, 3, 64, 1000, 4096, 5000])
@pytest.mark.parametrize("make", [_entry_of_over_4_kib, _mistake_behind_too_long_an_entry])
def test_an_entry_is_too_long_from_its_first_byte_too_many_however_it_is_cut(
    make: Callable[[], bytes], chunk_bytes: int
) -> None:
    with pytest.raises(MessageTooLarge):
        _read(make(), chunk_bytes)


@pytest.mark.parametrize("name", GENERATED)
def test_hostile_bytes_cost_little_memory_and_time(name: str) -> None:
    make, expected = GENERATED[name]
    message = make()
    tracemalloc.start()
    try:
        started_s = time.process_time()
        with pytest.raises(expected) as refusal:
            _read(message, 64 * 1024)
        spent_s = time.process_time() - started_s
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A header of names that are all right is held until it passes its limit: that is the dearest one.
    assert peak_bytes < 12 * MEBIBYTE
    assert spent_s < 5
    assert len(refusal.value.detail) < 2_000


@pytest.mark.parametrize("name", ["giant-string-declared", "giant-tensor-array-declared", "extent-huge"])
def test_lengths_that_are_only_claimed_reserve_nothing(name: str) -> None:
    message = (HERE / f"{name}.bin").read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(EXPECTED[name]):
            decode_message(message)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * MEBIBYTE  # 1 MiB is msgpack's buffer


def test_a_message_over_the_limit_is_refused_from_its_header_alone() -> None:
    message = b"".join(encode_message("state", [NamedTensor("params", "w", np.zeros(100, np.float32))]))
    reader = FrameReader(Limits(message_bytes=len(message) - 1))
    with pytest.raises(MessageTooLarge):
        list(reader.feed(message[:200]))


def test_a_lower_header_limit_is_kept() -> None:
    message = b"".join(encode_message("state", [NamedTensor("params", "w" * 200, np.zeros(1, np.float32))]))
    with pytest.raises(MessageTooLarge):
        list(FrameReader(Limits(header_bytes=128)).feed(message))


VALID = b"".join(
    bytes(buffer)
    for buffer in encode_message(
        "update",
        [
            NamedTensor("delta", "fc.weight", np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "bf16"),
            NamedTensor("delta", "fc.bias", np.zeros(0, np.float32)),
            NamedTensor("hessian", "fc.weight", np.full((2, 3), 0.5, np.float32)),
        ],
    )
)


def _decodes_or_is_refused(message: bytes) -> None:
    try:
        decode_message(message)
    except FedSophiaError:
        return


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_by_name_or_decode(message: bytes) -> None:
    _decodes_or_is_refused(message)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.data())
def test_mutations_of_a_valid_message_are_refused_by_name_or_decode(data: st.DataObject) -> None:
    message = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(message) - 1))
        kind = data.draw(st.sampled_from(["flip", "insert", "cut", "length"]))
        if kind == "flip":
            message[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            message[place:place] = data.draw(st.binary(max_size=8))
        elif kind == "cut":
            del message[place : place + data.draw(st.integers(1, 16))]
        else:
            message[place : place + 4] = struct.pack(">I", data.draw(st.integers(0, 2**32 - 1)))
        if not message:
            break
    _decodes_or_is_refused(bytes(message))


HOSTILE_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(field=st.sampled_from(sorted(_entry("w"))), value=HOSTILE_VALUES, at_top=st.booleans())
def test_any_value_in_any_field_is_refused_by_name_or_decodes(
    field: str, value: object, at_top: bool
) -> None:
    entry = _entry("w")
    header: dict[str, object] = {"schema_version": 1, "kind": "state", "tensors": [entry]}
    if at_top:
        header[field if field not in entry else "tensors"] = value
    else:
        entry[field] = value
    _decodes_or_is_refused(msgpack.packb(header) + b"\xc0" * 8)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_reader_judges_bytes_the_same_however_they_are_cut(message: bytes, chunk_bytes: int) -> None:
    def verdict(size: int) -> type[Exception] | None:
        try:
            _read(message, size)
        except FedSophiaError as error:
            return type(error)
        return None

    message = VALID[: len(VALID) // 2] + message
    assert verdict(chunk_bytes) is verdict(len(message) + 1)
