# SPDX-License-Identifier: Apache-2.0
"""Tensor messages: written and read back, by our reader and by any msgpack library."""

import hashlib
import io

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol.codec import (
    ALIGNMENT,
    FrameReader,
    MessageHeader,
    NamedTensor,
    PayloadPart,
    bundles_in,
    decode_message,
    digest_of,
    encode_bundle,
    encode_message,
    layout_of,
    pack_header,
    preamble,
    read_layout,
    require_finite,
    tensor_header,
)
from protocol.errors import (
    FedSophiaError,
    MalformedTensorMessage,
    MessageTooLarge,
    NotFinite,
    TruncatedTensorMessage,
    UnknownEncoding,
)
from protocol.header import entry_bytes_at_most

Float32Array = npt.NDArray[np.float32]
seeded = settings(max_examples=60, deadline=None, derandomize=True)

values = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    elements=st.floats(width=32, min_value=-60000, max_value=60000, allow_subnormal=True),
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def messages(draw: st.DrawFn) -> list[NamedTensor]:
    keys = draw(st.lists(st.tuples(names, names), max_size=5, unique=True))
    return [
        NamedTensor(bundle, name, draw(values), draw(st.sampled_from(["f32", "bf16", "f16"])))
        for bundle, name in keys
    ]


def joined(buffers: list[memoryview]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def a_message(*shapes: tuple[int, ...], encoding: str = "f32") -> bytes:
    rng = np.random.default_rng(7)
    tensors = [
        NamedTensor("params", f"layer.{index}", rng.standard_normal(shape).astype(np.float32), encoding)
        for index, shape in enumerate(shapes)
    ]
    return joined(encode_message("state", tensors))


def read_in_chunks(message: bytes, sizes: list[int]) -> tuple[MessageHeader, list[bytes]]:
    """Feed a message cut at the given sizes, the last one repeating; join each tensor's parts."""
    reader = FrameReader()
    header: MessageHeader | None = None
    payloads: dict[int, bytes] = {}
    position = 0
    for index in range(len(message) + 1):
        size = sizes[min(index, len(sizes) - 1)]
        for item in reader.feed(message[position : position + size]):
            if isinstance(item, MessageHeader):
                assert header is None
                header = item
            else:
                held = payloads.get(item.tensor_index, b"")
                assert item.offset == len(held)
                payloads[item.tensor_index] = held + bytes(item.data)
        position += size
        if position >= len(message):
            break
    reader.finish()
    assert header is not None
    return header, [payloads.get(index, b"") for index in range(len(header.tensors))]


@seeded
@given(messages())
def test_what_is_encoded_decodes_to_the_same_names_shapes_and_values(tensors: list[NamedTensor]) -> None:
    decoded = decode_message(joined(encode_message("update", tensors)))
    assert sum(len(bundle) for bundle in decoded.values()) == len(tensors)
    for tensor in tensors:
        got = decoded[tensor.bundle][tensor.name]
        assert got.shape == tensor.values.shape
        assert got.dtype == np.float32
        if tensor.encoding == "f32":
            assert got.tobytes() == tensor.values.tobytes()
        else:
            assert np.allclose(got, tensor.values, rtol=2**-8, atol=2**-24)


@seeded
@given(messages(), st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_however_a_message_is_cut_the_same_payloads_are_read(
    tensors: list[NamedTensor], sizes: list[int]
) -> None:
    message = joined(encode_message("state", tensors))
    header, payloads = read_in_chunks(message, sizes)
    whole_header, whole_payloads = read_in_chunks(message, [len(message)])
    assert header == whole_header
    assert payloads == whole_payloads


@seeded
@given(messages())
def test_every_payload_starts_at_a_multiple_of_64(tensors: list[NamedTensor]) -> None:
    message = joined(encode_message("state", tensors))
    layout = read_layout(message)
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets)
    assert layout.size_bytes == len(message)


@pytest.mark.parametrize(
    ("size_bytes", "bin_bytes"),
    [(0, 2), (1, 2), (255, 2), (256, 3), (65_535, 3), (65_536, 5), (2**32 - 1, 5)],
)
@pytest.mark.parametrize("offset", [0, 1, *range(57, 65)])
def test_the_preamble_is_the_shortest_padding_and_the_shortest_bin(
    offset: int, size_bytes: int, bin_bytes: int
) -> None:
    between = preamble(offset, size_bytes)
    assert (offset + len(between)) % ALIGNMENT == 0
    assert bin_bytes <= len(between) < ALIGNMENT + bin_bytes
    assert between[:-bin_bytes] == b"\xc0" * (len(between) - bin_bytes)


@seeded
@given(messages())
def test_any_msgpack_library_reads_a_message(tensors: list[NamedTensor]) -> None:
    unpacker = msgpack.Unpacker(
        io.BytesIO(joined(encode_message("state", tensors))), max_buffer_size=2**32 - 1
    )
    header, *rest = list(unpacker)
    payloads = [item for item in rest if item is not None]
    assert header["kind"] == "state"
    assert [len(payload) for payload in payloads] == [entry["size_bytes"] for entry in header["tensors"]]
    assert all(isinstance(payload, bytes) for payload in payloads)


@pytest.mark.parametrize("size_bytes", [252, 256, 65_532, 65_536])
def test_a_payload_at_the_edge_of_a_bin_form_is_read_by_both(size_bytes: int) -> None:
    message = a_message((size_bytes // 4,), (3,))
    assert decode_message(message)["params"]["layer.0"].nbytes == size_bytes
    objects = [item for item in msgpack.Unpacker(io.BytesIO(message)) if item is not None]
    assert [len(payload) for payload in objects[1:]] == [size_bytes, 12]


def test_encoding_copies_no_f32_payload() -> None:
    values = np.arange(1000, dtype=np.float32).reshape(10, 100)
    payload = encode_message("state", [NamedTensor("params", "w", values)])[-1]
    assert np.shares_memory(np.frombuffer(payload, np.float32), values)


def test_decoding_copies_no_f32_payload() -> None:
    message = bytearray(a_message((10, 100)))
    decoded = decode_message(message)["params"]["layer.0"]
    assert np.shares_memory(decoded, np.frombuffer(message, np.uint8))


def test_a_reader_hands_out_views_of_what_it_was_fed() -> None:
    message = a_message((10, 100))
    parts = [item for item in FrameReader().feed(message) if isinstance(item, PayloadPart)]
    assert np.shares_memory(np.frombuffer(parts[0].data, np.uint8), np.frombuffer(message, np.uint8))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(12, dtype=np.float32)[::2].reshape(3, 2),
        np.arange(6, dtype=">f4").reshape(3, 2),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2)),
    ],
    ids=["transposed", "strided", "big-endian", "column-major"],
)
def test_values_travel_in_c_order_and_little_endian_however_they_lie_in_memory(values: Float32Array) -> None:
    message = joined(encode_bundle("params", {"w": values}))
    assert np.array_equal(decode_message(message)["params"]["w"], values)
    assert message == joined(encode_bundle("params", {"w": np.array(values, dtype="<f4", order="C")}))


@seeded
@given(messages())
def test_equal_tensors_are_equal_bytes(tensors: list[NamedTensor]) -> None:
    copies = [NamedTensor(t.bundle, t.name, t.values.copy(order="F"), t.encoding) for t in tensors]
    assert joined(encode_message("update", tensors)) == joined(encode_message("update", copies))


def test_the_digest_is_that_of_the_file() -> None:
    buffers = encode_bundle("params", {"w": np.ones((3, 5), np.float32)})
    assert digest_of(buffers) == hashlib.sha256(joined(buffers)).hexdigest()
    assert digest_of([joined(buffers)]) == digest_of(buffers)


def test_the_digest_stays_what_it_was() -> None:
    buffers = encode_bundle("params", {"w": np.ones((3, 5), np.float32)})
    assert digest_of(buffers) == "3a375920645bea644b46d778d47c04501ba89cba0507b04083955280754edc4c"


def test_no_tensor_may_stand_twice_in_what_is_written() -> None:
    twice = NamedTensor("params", "w", np.ones(2, np.float32))
    with pytest.raises(MalformedTensorMessage, match="params/w stands twice"):
        encode_message("state", [twice, twice])


@pytest.mark.parametrize(
    ("name", "shape", "error"),
    [
        ("", (2,), MalformedTensorMessage),
        ("n" * 257, (2,), MalformedTensorMessage),
        ("w", (1,) * 17, MalformedTensorMessage),
        ("w", (2**30,), MessageTooLarge),
        ("w", (-1,), MalformedTensorMessage),
    ],
)
def test_what_no_reader_accepts_is_not_written(
    name: str, shape: tuple[int, ...], error: type[FedSophiaError]
) -> None:
    with pytest.raises(error):
        tensor_header("params", name, shape)


def test_the_largest_tensor_allowed_holds_4_gib_less_one_element() -> None:
    assert tensor_header("params", "w", (2**30 - 1,)).size_bytes == 2**32 - 4
    assert tensor_header("params", "w", (2**31 - 1,), "bf16").size_bytes == 2**32 - 2
    with pytest.raises(MessageTooLarge, match="Split it"):
        tensor_header("params", "w", (2**31,), "bf16")


def test_a_name_of_256_characters_outside_ascii_is_written_and_read() -> None:
    name = "層" * 256
    assert name in decode_message(joined(encode_bundle("params", {name: np.ones(1, np.float32)})))["params"]


def test_a_header_that_no_reader_accepts_is_not_written() -> None:
    long = [tensor_header("params", f"{index:0256d}", (1,)) for index in range(3_500)]
    with pytest.raises(MessageTooLarge, match="header"):
        pack_header("state", long)
    many = [tensor_header("params", str(index), (1,)) for index in range(10_001)]
    with pytest.raises(MessageTooLarge, match="10001 tensors"):
        pack_header("state", many)


def test_a_header_of_thousands_of_tensors_is_read() -> None:
    headers = [tensor_header("params", f"t{index}", (0,)) for index in range(8_000)]
    packed = pack_header("state", headers)
    assert 2**19 < len(packed) <= 2**20
    layout = read_layout(packed)
    assert layout.header.tensors == tuple(headers)
    assert layout == layout_of(layout.header, len(packed))


@seeded
@given(bundle=names, name=names, shape=st.lists(st.integers(0, 9), max_size=16).map(tuple))
def test_the_space_planned_for_an_entry_is_enough_and_not_much_more(
    bundle: str, name: str, shape: tuple[int, ...]
) -> None:
    packed = len(msgpack.packb(tensor_header(bundle, name, (0, *shape[1:])).model_dump(mode="json")))
    planned = entry_bytes_at_most(bundle, name, (0, *shape[1:]), "f32")
    assert packed <= planned <= packed + 24 + 8 * (len(shape) + 1)


def test_an_unknown_encoding_is_refused_when_writing() -> None:
    with pytest.raises(UnknownEncoding, match="f32, bf16, f16"):
        encode_message("state", [NamedTensor("params", "w", np.ones(1, np.float32), "f8")])


def test_a_value_that_its_encoding_cannot_hold_is_not_finite() -> None:
    with pytest.raises(NotFinite):
        encode_message("update", [NamedTensor("delta", "w", np.array([70_000.0], np.float32), "f16")])


def test_a_message_cut_anywhere_is_truncated() -> None:
    message = a_message((2, 3), (0,), (4,))
    for length in range(len(message)):
        with pytest.raises(TruncatedTensorMessage):
            decode_message(message[:length])


def test_a_header_that_is_not_whole_has_no_layout() -> None:
    with pytest.raises(TruncatedTensorMessage):
        read_layout(a_message((2, 3))[:20])


def test_the_header_is_yielded_as_soon_as_it_is_whole() -> None:
    message = a_message((2, 3))
    header_bytes = len(pack_header("state", read_layout(message).header.tensors))
    reader = FrameReader()
    before = list(reader.feed(message[: header_bytes - 1]))
    after = list(reader.feed(message[header_bytes - 1 : header_bytes]))
    assert before == []
    assert after == [read_layout(message).header]
    assert reader.header == after[0]


def test_bundles_are_named_in_the_order_they_travel() -> None:
    one = np.ones(1, np.float32)
    keys = [("delta", "a"), ("delta", "b"), ("hessian", "a"), ("delta", "c")]
    message = joined(encode_message("update", [NamedTensor(bundle, name, one) for bundle, name in keys]))
    assert bundles_in(read_layout(message).header) == ("delta", "hessian", "delta")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(value: float) -> None:
    require_finite("w", np.ones(10, np.float32))
    with pytest.raises(NotFinite, match="w"):
        require_finite("w", np.array([1, value, 2], np.float32))


def test_an_error_never_shows_a_value() -> None:
    secret = np.array([123456.75], np.float32)
    with pytest.raises(NotFinite) as refusal:
        encode_message("update", [NamedTensor("delta", "w", secret, "f16")])
    assert "123456" not in refusal.value.detail
