# SPDX-License-Identifier: Apache-2.0
"""What must hold of `FrameReader`, whatever it is fed; and changes to a message that keep its form."""

import math
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack

from protocol.codec import (
    ALIGNMENT,
    FrameReader,
    Layout,
    MessageHeader,
    NamedTensor,
    PayloadPart,
    decode_message,
    encode_message,
    layout_of,
    pack_header,
    preamble,
    read_layout,
)
from protocol.encodings import ENCODINGS, encoding_named
from protocol.errors import FedSophiaError, MalformedTensorMessage, NotFinite
from protocol.header import ENTRY_BYTES, tensor_header

HERE = Path(__file__).parent
MAX_BYTES = 8192
"""More than an entry of the header may take, so that the fuzzer meets that limit too."""


def seeds() -> Iterator[bytes]:
    """Where a fuzzer begins: bytes that are right and bytes that are wrong in a known way."""
    for folder in (HERE.parent / "golden", HERE):
        yield from (path.read_bytes() for path in sorted(folder.glob("*.bin")))


def check(message: bytes) -> None:
    """Raises: AssertionError: a promise of the reader is broken; whatever else: it fell."""
    in_one = _read(message, [len(message)])
    assert in_one == _read(message, _cuts(message)), "the verdict depends on how the bytes are cut"
    if isinstance(in_one, type):
        _decode_is_refused(message, in_one)
    else:
        _what_is_whole_is_written_again(message, *in_one)


def _read(message: bytes, cuts: list[int]) -> type[FedSophiaError] | tuple[MessageHeader, tuple[bytes, ...]]:
    """The error's class, or the header and each payload, once all is read in pieces of these sizes."""
    reader = FrameReader()
    payloads: list[bytearray] = []
    position = 0
    try:
        for cut in cuts:
            for item in reader.feed(memoryview(message)[position : position + cut]):
                if isinstance(item, MessageHeader):
                    payloads = [bytearray() for _ in item.tensors]
                else:
                    _append(item, payloads)
            position += cut
        reader.finish()
    except FedSophiaError as error:
        assert len(error.detail) < 2_000
        return type(error)
    assert position >= len(message)
    assert reader.header is not None
    return reader.header, tuple(map(bytes, payloads))


def _append(part: PayloadPart, payloads: list[bytearray]) -> None:
    assert len(part.data) > 0
    assert part.offset == len(payloads[part.tensor_index]), "a part is missing or stands twice"
    payloads[part.tensor_index] += part.data


def _cuts(message: bytes) -> list[int]:
    """Sizes of pieces that cover the message; the same for the same bytes."""
    chance = random.Random(zlib.crc32(message))
    longest = chance.choice([1, 3, 64, 1000, 5000])
    cuts = []
    left = len(message)
    while left > 0:
        cuts.append(chance.randint(1, longest))
        left -= cuts[-1]
    return cuts


def _decode_is_refused(message: bytes, expected: type[FedSophiaError]) -> None:
    try:
        decode_message(message)
    except FedSophiaError as error:
        assert type(error) is expected
        return
    raise AssertionError("decode_message takes what FrameReader refuses")


def _what_is_whole_is_written_again(
    message: bytes, header: MessageHeader, payloads: tuple[bytes, ...]
) -> None:
    layout = read_layout(message)
    assert layout.header == header
    _layout_fits(message, layout, payloads)
    try:
        bundles = decode_message(message)
    except MalformedTensorMessage:
        assert any(encoding_named(each.encoding).bundle for each in header.tensors), (
            "floats are never refused"
        )
        return
    tensors = [
        NamedTensor(
            each.bundle,
            each.name,
            bundles[each.bundle][each.name],
            each.encoding,
            each.dtype,
            each.constants,
            seed=len(message),
        )
        for each in header.tensors
    ]
    try:
        written = b"".join(encode_message(header.kind, tensors))
    except NotFinite:
        assert any(each.encoding != "f32" for each in header.tensors), "f32 carries every bit pattern"
        return
    canonical = pack_header(header.kind, header.tensors)
    if message.startswith(canonical):
        assert written == message, "equal tensors are not equal bytes"
    assert _read(written, [len(written)]) == (header, payloads)


def _layout_fits(message: bytes, layout: Layout, payloads: tuple[bytes, ...]) -> None:
    assert layout.size_bytes == len(message)
    end = 0
    for tensor, offset, payload in zip(layout.header.tensors, layout.offsets, payloads, strict=True):
        assert offset % ALIGNMENT == 0
        assert end < offset <= len(message) - tensor.size_bytes
        assert message[offset : offset + tensor.size_bytes] == payload
        end = offset + tensor.size_bytes


# --- changing a message and keeping its form -----------------------------------------------------


def mutated(message: bytes, chance: random.Random) -> bytes:
    """The message with one change in its header and with the padding and payloads that belong to it.

    Gives what it was given where that has no header. Bytes that a fuzzer changes blindly seldom get past it.
    """
    try:
        header = read_layout(message).header
    except FedSophiaError:
        return message
    fields = header.model_dump(mode="json")
    change = chance.choice([_add, _drop, _swap, _reshape, _travel_otherwise, _set_anything, _lengthen])
    change(fields, chance)
    packed: bytes = msgpack.packb(fields)
    return packed + _payloads(packed, chance)


def _add(fields: dict, chance: random.Random) -> None:
    shape = tuple(chance.choice([0, 1, 2, 5, 17]) for _ in range(chance.randint(0, 3)))
    name = chance.choice(["w", "ü", "n" * 256, f"t{chance.randint(0, 9)}"])
    encoding = chance.choice(list(ENCODINGS.values()))
    bundle = encoding.bundle or chance.choice(["params", "delta"])
    tensor = tensor_header(
        bundle, name, shape, encoding.name, constants=dict.fromkeys(encoding.constants, 0.25)
    )
    fields["tensors"].insert(chance.randint(0, len(fields["tensors"])), tensor.model_dump(mode="json"))


def _drop(fields: dict, chance: random.Random) -> None:
    if fields["tensors"]:
        fields["tensors"].pop(chance.randrange(len(fields["tensors"])))


def _swap(fields: dict, chance: random.Random) -> None:
    chance.shuffle(fields["tensors"])


def _reshape(fields: dict, chance: random.Random) -> None:
    for tensor in fields["tensors"]:
        tensor["shape"] = [chance.choice([1, 2, 3]) for _ in range(chance.randint(0, 4))]
        tensor["size_bytes"] = encoding_named(tensor["encoding"]).size_bytes(math.prod(tensor["shape"]))


def _travel_otherwise(fields: dict, chance: random.Random) -> None:
    for tensor in fields["tensors"]:
        encoding = chance.choice(list(ENCODINGS.values()))
        tensor["encoding"] = encoding.name
        tensor["size_bytes"] = encoding.size_bytes(math.prod(tensor["shape"]))
        tensor["bundle"] = encoding.bundle or tensor["bundle"]
        numbers = [0.0, 0.25, 1.0, 2.0**-55, 2.0**63, 2.0**100, 1e-300, -1.0, float("nan"), float("inf")]
        tensor["constants"] = {name: chance.choice(numbers) for name in encoding.constants}


def _set_anything(fields: dict, chance: random.Random) -> None:
    values = [None, True, 0, -1, 2**32, 2**64 - 1, 1.0, "", "f32", "x" * 300, b"f32", [], [0] * 17, {}]
    values += [{"a": 1.0}, [1, [2]], 2**40, [2**20, 2**20], [0, 2**39]]
    where = chance.choice([fields, *fields["tensors"]])
    where[chance.choice(sorted(where))] = chance.choice(values)


def _lengthen(fields: dict, chance: random.Random) -> None:
    """An entry about as long as one may be."""
    for tensor in fields["tensors"][:1]:
        left = ENTRY_BYTES - 100 + chance.randint(-20, 20)
        tensor["constants"] = {f"{key}".ljust(left // 4, "c"): 1.0 for key in range(4)}


def _payloads(packed: bytes, chance: random.Random) -> bytes:
    """Padding, prefixes and random payloads for a header; nothing for one that is none, or is long."""
    try:
        header = read_layout(packed).header
    except FedSophiaError:
        return b""
    if layout_of(header, len(packed)).size_bytes > MAX_BYTES:
        return b""
    written = bytearray()
    for tensor in header.tensors:
        written += preamble(len(packed) + len(written), tensor.size_bytes)
        written += chance.randbytes(tensor.size_bytes)
    return bytes(written)
