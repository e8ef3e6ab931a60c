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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import msgpack
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.encodings import encoding_named
from protocol.errors import (
    MalformedTensorMessage,
    MessageTooLarge,
    NotFinite,
    TruncatedTensorMessage,
)

MEDIA_TYPE = "application/vnd.fed-sophia.v1+msgpack"
ALIGNMENT = 64
MAX_TENSOR_BYTES = 2**32 - 1
_NIL = 0xC0

Float32Array = npt.NDArray[np.float32]
Bundle = Mapping[str, Float32Array]
"""A named set of tensors: {tensor name: values}."""


@dataclass(frozen=True)
class Limits:
    """What a reader accepts. Ours, and documented; never a library's default."""

    header_bytes: int = 1024 * 1024
    message_bytes: int = 64 * 1024**3


DEFAULT_LIMITS = Limits()
MAX_TENSORS = 10_000


class TensorHeader(BaseModel):
    """What the header says of one tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bundle: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=256)
    dtype: Literal["float32", "bfloat16", "float16"]
    shape: tuple[int, ...] = Field(max_length=16, strict=False)
    encoding: str = Field(min_length=1, max_length=32)
    constants: dict[str, float] = Field(max_length=8)
    size_bytes: int = Field(ge=0)

    @model_validator(mode="after")
    def _size_follows_from_the_shape(self) -> Self:
        if any(not 0 <= extent < 2**40 for extent in self.shape):
            raise ValueError(f"{self.name}: shape {self.shape} has an impossible extent")
        return self

    @property
    def num_elements(self) -> int:
        return num_elements(self.shape)


class MessageHeader(BaseModel):
    """The first object of a tensor message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1]
    kind: Literal["state", "update"]
    tensors: tuple[TensorHeader, ...] = Field(max_length=MAX_TENSORS, strict=False)


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
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def num_elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has; 1 for a scalar."""
    product = 1
    for extent in shape:
        product *= extent
    return product


# --- writing -----------------------------------------------------------------------------------


def encode_message(kind: Literal["state", "update"], tensors: Iterable[NamedTensor]) -> list[memoryview]:
    """Give the buffers of a tensor message, in order; payloads are views, not copies, where they can be.

    Raises:
        MessageTooLarge: a tensor has more than 4 GiB - 1 of payload.
        NotFinite: a value does not fit its encoding.
    """
    headers: list[dict[str, object]] = []
    payloads: list[memoryview] = []
    for tensor in tensors:
        encoding = encoding_named(tensor.encoding)
        size_bytes = encoding.size_bytes(tensor.values.size)
        _refuse_large_tensor(tensor.name, size_bytes)
        payloads.append(encoding.encode(tensor.values))
        headers.append(
            {
                "bundle": tensor.bundle,
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": list(tensor.values.shape),
                "encoding": tensor.encoding,
                "constants": {},
                "size_bytes": size_bytes,
            }
        )
    packed: bytes = msgpack.packb({"schema_version": 1, "kind": kind, "tensors": headers})
    buffers = [memoryview(packed)]
    offset = len(packed)
    for payload in payloads:
        preamble = _preamble(offset, payload.nbytes)
        buffers += [memoryview(preamble), payload]
        offset += len(preamble) + payload.nbytes
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


def _preamble(offset: int, size_bytes: int) -> bytes:
    """The nils and the bin prefix that stand between `offset` and an aligned payload."""
    prefix = _bin_prefix(size_bytes)
    padding = -(offset + len(prefix)) % ALIGNMENT
    return bytes([_NIL]) * padding + prefix


def _refuse_large_tensor(name: str, size_bytes: int) -> None:
    if size_bytes > MAX_TENSOR_BYTES:
        raise MessageTooLarge(
            f"{name}: {size_bytes} bytes; a tensor holds at most {MAX_TENSOR_BYTES}. Split it."
        )


# --- reading -----------------------------------------------------------------------------------


class FrameReader:
    """Reads a tensor message fed in chunks of any size, in memory bounded by the header limit.

    `feed` yields the `MessageHeader` once, as soon as it is whole, then `PayloadPart`s that are views
    into the chunk: use them before the chunk is reused. `finish` says whether the message was whole.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.header: MessageHeader | None = None
        self._limits = limits
        self._header_parser = _HeaderParser(limits)
        self._position = 0
        self._index = -1
        self._expected = b""  # what must come next before the payload
        self._payload_left = 0
        self._payload_size = 0
        self._complete = False

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[MessageHeader | PayloadPart]:
        """Take the next bytes; yield what became readable.

        Raises:
            MalformedTensorMessage: the bytes break the format.
            MessageTooLarge: a header, a tensor or the message is over the limit.
            UnknownEncoding: the header names an encoding that does not exist.
        """
        view = memoryview(chunk).cast("B")
        if self.header is None:
            fed_before = self._header_parser.fed_bytes
            parsed = self._header_parser.feed(view)
            if parsed is None:
                return
            self.header, self._position = parsed
            _refuse_long_message(layout_of(self.header, self._position), self._limits)
            view = view[self._position - fed_before :]
            self._next_tensor()
            yield self.header
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
        self._expected = _preamble(self._position, self._payload_size)
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
        position += len(_preamble(position, tensor.size_bytes))
        offsets.append(position)
        position += tensor.size_bytes
    return Layout(header, tuple(offsets), position)


def read_layout(prefix: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS) -> Layout:
    """Read the header at the start of a stored message; `prefix` holds at least the whole header.

    Raises:
        TruncatedTensorMessage: the header is not whole.
        MalformedTensorMessage, MessageTooLarge, UnknownEncoding: as `FrameReader.feed`.
    """
    parsed = _HeaderParser(limits).feed(memoryview(prefix))
    if parsed is None:
        raise TruncatedTensorMessage(f"the first {len(prefix)} bytes hold no whole header")
    return layout_of(*parsed)


def decode_message(message: bytes | bytearray | memoryview) -> dict[str, dict[str, Float32Array]]:
    """Give {bundle: {name: float32 values}} of a whole message; f32 payloads are views, not copies.

    Raises:
        The errors of `FrameReader`.
    """
    view = memoryview(message).cast("B")
    reader = FrameReader()
    for _ in reader.feed(view):
        pass
    reader.finish()
    layout = read_layout(view[: DEFAULT_LIMITS.header_bytes])
    bundles: dict[str, dict[str, Float32Array]] = {}
    for tensor, offset in zip(layout.header.tensors, layout.offsets, strict=True):
        payload = view[offset : offset + tensor.size_bytes]
        bundles.setdefault(tensor.bundle, {})[tensor.name] = _decode(tensor, payload)
    return bundles


def _decode(tensor: TensorHeader, payload: memoryview) -> Float32Array:
    if tensor.encoding == "f32":
        return np.frombuffer(payload, dtype="<f4").reshape(tensor.shape)
    values = np.empty(tensor.num_elements, dtype=np.float32)
    encoding_named(tensor.encoding).decode(payload, values)
    return values.reshape(tensor.shape)


class _HeaderParser:
    """Reads the header map from chunks; msgpack's own parser keeps its place between them."""

    def __init__(self, limits: Limits) -> None:
        self.fed_bytes = 0
        self._limit = limits.header_bytes
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=limits.header_bytes,
            max_str_len=256,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=MAX_TENSORS,
            max_map_len=16,
            strict_map_key=True,
        )

    def feed(self, chunk: memoryview) -> tuple[MessageHeader, int] | None:
        """Give (header, its length in bytes) once it is whole; the rest of the chunk is not looked at."""
        taken = chunk[: self._limit - self.fed_bytes]
        self._unpacker.feed(taken)
        self.fed_bytes += len(taken)
        try:
            fields = self._unpacker.unpack()
        except msgpack.OutOfData:
            if self.fed_bytes >= self._limit:
                raise MessageTooLarge(f"the header is longer than {self._limit} bytes") from None
            return None
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise MalformedTensorMessage(
                f"the header is not a msgpack map of the right form: {type(error).__name__}"
            ) from None
        return _validated(fields), self._unpacker.tell()


def _validated(fields: object) -> MessageHeader:
    try:
        header = MessageHeader.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        raise MalformedTensorMessage(f"header, {where}: {first['msg']}") from None
    _check_tensors(header)
    return header


def _check_tensors(header: MessageHeader) -> None:
    seen: set[tuple[str, str]] = set()
    for tensor in header.tensors:
        if (tensor.bundle, tensor.name) in seen:
            raise MalformedTensorMessage(f"{tensor.bundle}/{tensor.name} stands twice in the header")
        seen.add((tensor.bundle, tensor.name))
        expected = encoding_named(tensor.encoding).size_bytes(tensor.num_elements)
        if tensor.size_bytes != expected:
            raise MalformedTensorMessage(
                f"{tensor.name}: shape {tensor.shape} as {tensor.encoding} takes {expected} bytes, "
                f"the header says {tensor.size_bytes}"
            )
        _refuse_large_tensor(tensor.name, tensor.size_bytes)
        if tensor.constants:
            raise MalformedTensorMessage(f"{tensor.name}: encoding {tensor.encoding} takes no constants")


def _refuse_long_message(layout: Layout, limits: Limits) -> None:
    if layout.size_bytes > limits.message_bytes:
        raise MessageTooLarge(f"{layout.size_bytes} bytes; at most {limits.message_bytes} are accepted")


def require_finite(name: str, values: Float32Array) -> None:
    """Raises: NotFinite: `values` holds NaN or an infinity."""
    if not np.isfinite(values).all():
        raise NotFinite(f"{name}: holds NaN or an infinity")


def bundles_in(header: MessageHeader) -> tuple[str, ...]:
    """The bundle names of a message, in order of first appearance."""
    return tuple(name for name, _ in itertools.groupby(tensor.bundle for tensor in header.tensors))
