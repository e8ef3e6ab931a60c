# SPDX-License-Identifier: Apache-2.0
"""Tensor messages: the one binary format, `application/vnd.fed-sophia.v1+msgpack`.

A message is a stream of msgpack objects: a header map, then for each tensor of the header, in order,
as many `nil` as make its payload start at a multiple of 64 bytes, and the payload as one `bin` in
msgpack's shortest form. Nothing follows the last payload. The whole format, for writers in any
language, is `docs/reference/wire-format.md`.

The law of this file: no input or output. The encoder yields buffers and copies no payload; the
`FrameReader` is fed chunks of any size and yields the header once, then views into those chunks.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.encodings import Constants, encoding_named
from protocol.errors import MalformedTensorMessage, MessageTooLarge, NotFinite, TruncatedTensorMessage
from protocol.header import (
    DEFAULT_LIMITS,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    Dtype,
    HeaderParser,
    Kind,
    Limits,
    MessageHeader,
    TensorHeader,
    num_elements,
    pack_header,
    tensor_header,
)

__all__ = [
    "ALIGNMENT",
    "DEFAULT_LIMITS",
    "MAX_TENSORS",
    "MAX_TENSOR_BYTES",
    "MEDIA_TYPE",
    "Bundle",
    "Float32Array",
    "FrameReader",
    "Layout",
    "Limits",
    "MessageHeader",
    "NamedTensor",
    "PayloadPart",
    "TensorHeader",
    "bundles_in",
    "decode_message",
    "digest_of",
    "encode_bundle",
    "encode_message",
    "layout_of",
    "num_elements",
    "pack_header",
    "preamble",
    "read_layout",
    "read_message",
    "require_finite",
    "tensor_header",
]

MEDIA_TYPE = "application/vnd.fed-sophia.v1+msgpack"
PART_MEDIA_TYPE = "application/partial-upload"
"""Of a part of a body: the resumable-upload draft of the IETF."""
ALIGNMENT = 64
_NIL = 0xC0

Float32Array = npt.NDArray[np.float32]
Bundle = Mapping[str, Float32Array]
"""A named set of tensors: {tensor name: values}."""


@dataclass(frozen=True)
class PayloadPart:
    """Some bytes of one tensor's payload."""

    tensor_index: int
    offset: int
    data: memoryview


@dataclass(frozen=True)
class Layout:
    """Where every payload of a message lies."""

    header: MessageHeader
    offsets: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class NamedTensor:
    """One tensor to be sent: values (float32, any shape), where it belongs, how it travels."""

    bundle: str
    name: str
    values: Float32Array
    encoding: str = "f32"
    dtype: Dtype = "float32"
    constants: Constants | None = None
    """Of the encoding; None chooses those for the values."""
    seed: int = 0
    """Of the encoding's rounding, where that is stochastic."""


# --- writing -----------------------------------------------------------------------------------


def encode_message(kind: Kind, tensors: Iterable[NamedTensor]) -> list[memoryview]:
    """Give the buffers of a tensor message, in order; payloads are views, not copies, where they can be.

    Raises:
        MessageTooLarge: a tensor has more than 4 GiB - 1 of payload, or the header exceeds its limit.
        MalformedTensorMessage: a name or shape does not fit the format, or a tensor stands twice.
        NotFinite: a value does not fit its encoding.
    """
    headers: list[TensorHeader] = []
    payloads: list[memoryview] = []
    for tensor in tensors:
        encoding, values = encoding_named(tensor.encoding), tensor.values
        constants = encoding.constants_for(values) if tensor.constants is None else tensor.constants
        headers.append(
            tensor_header(tensor.bundle, tensor.name, values.shape, encoding.name, tensor.dtype, constants)
        )
        payloads.append(encoding.encode(values, constants, tensor.seed))
    packed = pack_header(kind, headers)
    buffers = [memoryview(packed)]
    offset = len(packed)
    for payload in payloads:
        between = preamble(offset, payload.nbytes)
        buffers += [memoryview(between), payload]
        offset += len(between) + payload.nbytes
    return buffers


def encode_bundle(bundle: str, tensors: Bundle, encoding: str = "f32") -> list[memoryview]:
    """Give the buffers of a `state` message that holds one bundle."""
    return encode_message("state", (NamedTensor(bundle, name, t, encoding) for name, t in tensors.items()))


def digest_of(buffers: Iterable[memoryview | bytes]) -> str:
    """SHA-256 of a whole message, in hex: what names it everywhere."""
    sha256 = hashlib.sha256()
    for buffer in buffers:
        sha256.update(buffer)
    return sha256.hexdigest()


def _bin_prefix(size_bytes: int) -> bytes:
    if size_bytes < 2**8:
        return struct.pack(">BB", 0xC4, size_bytes)
    if size_bytes < 2**16:
        return struct.pack(">BH", 0xC5, size_bytes)
    return struct.pack(">BI", 0xC6, size_bytes)


def preamble(offset: int, size_bytes: int) -> bytes:
    """The nils and the bin prefix that stand between `offset` and an aligned payload."""
    prefix = _bin_prefix(size_bytes)
    padding = -(offset + len(prefix)) % ALIGNMENT
    return bytes([_NIL]) * padding + prefix


# --- reading -----------------------------------------------------------------------------------


class FrameReader:
    """Reads a tensor message fed in chunks of any size, in memory bounded by the header limit.

    `feed` yields the `MessageHeader` once, as soon as it is whole, then `PayloadPart`s that are views
    into the chunk: use them before the chunk is reused, and iterate to the end before feeding more.
    `finish` says whether the message was whole. A reader that raised is of no further use.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.layout: Layout | None = None
        """As soon as the header is whole."""
        self._limits = limits
        self._header_parser = HeaderParser(limits)
        self._position = 0
        self._index = -1
        self._expected = b""  # what must come next before the payload
        self._payload_left = 0
        self._payload_size = 0
        self._complete = False

    @property
    def header(self) -> MessageHeader | None:
        return None if self.layout is None else self.layout.header

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[MessageHeader | PayloadPart]:
        """Take the next bytes; yield what became readable.

        Raises:
            MalformedTensorMessage: the bytes break the format.
            MessageTooLarge: a header, a tensor or the message is over the limit.
            UnknownEncoding: the header names an encoding that does not exist.
        """
        view = memoryview(chunk).cast("B")
        if self.layout is None:
            fed_before = self._header_parser.fed_bytes
            parsed = self._header_parser.feed(view)
            if parsed is None:
                return
            header, self._position = parsed
            self.layout = layout_of(header, self._position)
            _refuse_long_message(self.layout, self._limits)
            view = view[self._position - fed_before :]
            self._next_tensor()
            yield header
        yield from self._read_payloads(view)

    def finish(self) -> None:
        """Check that nothing is missing.

        Raises:
            TruncatedTensorMessage: the message ended early.
        """
        if self.header is None:
            fed_bytes = self._header_parser.fed_bytes
            raise TruncatedTensorMessage(f"the message ended after {fed_bytes} bytes, in its header")
        if not self._complete:
            tensor = self.header.tensors[self._index]
            raise TruncatedTensorMessage(
                f"{tensor.name}: the message ended {self._payload_left + len(self._expected)} bytes before "
                "the end of this tensor"
            )

    def _next_tensor(self) -> None:
        assert self.header is not None
        self._index += 1
        if self._index == len(self.header.tensors):
            self._complete = True
            return
        self._payload_size = self._payload_left = self.header.tensors[self._index].size_bytes
        self._expected = preamble(self._position, self._payload_size)
        self._position += len(self._expected) + self._payload_size

    def _read_payloads(self, view: memoryview) -> Iterator[PayloadPart]:
        while view and not self._complete:
            if self._expected:
                taken = min(len(view), len(self._expected))
                if view[:taken] != self._expected[:taken]:
                    assert self.header is not None
                    name = self.header.tensors[self._index].name
                    raise MalformedTensorMessage(
                        f"{name}: expected nil padding to a multiple of {ALIGNMENT} and a bin of "
                        f"{self._payload_size} bytes before the payload"
                    )
                self._expected = self._expected[taken:]
            else:
                taken = min(len(view), self._payload_left)
                offset = self._payload_size - self._payload_left
                yield PayloadPart(self._index, offset, view[:taken])
                self._payload_left -= taken
            view = view[taken:]
            while not self._complete and not self._expected and not self._payload_left:
                self._next_tensor()
        if view:
            raise MalformedTensorMessage(f"{len(view)} bytes follow the end of the message")


def layout_of(header: MessageHeader, header_bytes: int) -> Layout:
    """Where each payload of a message lies whose header took `header_bytes`."""
    offsets = []
    position = header_bytes
    for tensor in header.tensors:
        position += len(preamble(position, tensor.size_bytes))
        offsets.append(position)
        position += tensor.size_bytes
    return Layout(header, tuple(offsets), position)


def read_layout(prefix: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS) -> Layout:
    """Read the header at the start of a stored message; `prefix` holds at least the whole header.

    Raises:
        TruncatedTensorMessage: the header is not whole.
        MalformedTensorMessage, MessageTooLarge, UnknownEncoding: as `FrameReader.feed`.
    """
    parsed = HeaderParser(limits).feed(memoryview(prefix))
    if parsed is None:
        raise TruncatedTensorMessage(f"the first {len(prefix)} bytes hold no whole header")
    return layout_of(*parsed)


def decode_message(message: bytes | bytearray | memoryview) -> dict[str, dict[str, Float32Array]]:
    """Give {bundle: {name: float32 values}} of a whole message; f32 payloads are views, not copies.

    Raises:
        The errors of `FrameReader`.
    """
    return read_message(message)[1]


def read_message(
    message: bytes | bytearray | memoryview,
) -> tuple[MessageHeader, dict[str, dict[str, Float32Array]]]:
    """Give the header of a whole message, and what `decode_message` gives; raises as that."""
    view = memoryview(message).cast("B")
    reader = FrameReader()
    for _ in reader.feed(view):
        pass
    reader.finish()
    assert reader.layout is not None
    bundles: dict[str, dict[str, Float32Array]] = {}
    for tensor, offset in zip(reader.layout.header.tensors, reader.layout.offsets, strict=True):
        payload = view[offset : offset + tensor.size_bytes]
        bundles.setdefault(tensor.bundle, {})[tensor.name] = _decode(tensor, payload)
    return reader.layout.header, bundles


def _decode(tensor: TensorHeader, payload: memoryview) -> Float32Array:
    if tensor.encoding == "f32":
        return np.frombuffer(payload, dtype="<f4").reshape(tensor.shape)
    values = np.empty(tensor.num_elements, dtype=np.float32)
    try:
        encoding_named(tensor.encoding).decode(payload, values, tensor.constants)
    except MalformedTensorMessage as error:
        raise MalformedTensorMessage(f"{tensor.name}: {error.detail}") from None
    return values.reshape(tensor.shape)


def _refuse_long_message(layout: Layout, limits: Limits) -> None:
    if layout.size_bytes > limits.message_bytes:
        raise MessageTooLarge(f"{layout.size_bytes} bytes; at most {limits.message_bytes} are accepted")


NAN_OR_INFINITY = "holds NaN or an infinity"


def require_finite(name: str, values: Float32Array) -> None:
    """Let finite values pass.

    Raises:
        NotFinite: `values` holds NaN or an infinity.
    """
    if not np.isfinite(values).all():
        raise NotFinite(f"{name}: {NAN_OR_INFINITY}")


def bundles_in(header: MessageHeader) -> tuple[str, ...]:
    """The bundle names in the order the message carries them; one that is interrupted stands twice."""
    return tuple(name for name, _ in itertools.groupby(tensor.bundle for tensor in header.tensors))
