# SPDX-License-Identifier: Apache-2.0
"""The header of a tensor message: what it holds, how it is written and how it is read.

The law of this file: a header is judged entry by entry while its bytes arrive. A reader never holds
more than the entries it has accepted, one unfinished entry of at most `ENTRY_BYTES`, and the bytes
themselves, whatever lengths and nestings those bytes claim.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from protocol.encodings import NO_CONSTANTS, Constants, encoding_named
from protocol.errors import MalformedTensorMessage, MessageTooLarge

MAX_TENSOR_BYTES = 2**32 - 1
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 16
ENTRY_BYTES = 4096
_UNFINISHED = object()
_MAX_STRING_BYTES = 4 * 256  # 256 characters of UTF-8

Kind = Literal["state", "update"]
Dtype = Literal["float32", "bfloat16", "float16"]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """What a reader accepts. Ours, and documented; never a library's default."""

    header_bytes: int = 1024 * 1024
    message_bytes: int = 64 * 1024**3


DEFAULT_LIMITS = Limits()


class TensorHeader(BaseModel):
    """What the header says of one tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bundle: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=256)
    dtype: Dtype
    """The type the tensor has in the model, however it travels."""
    shape: tuple[int, ...] = Field(max_length=MAX_DIMENSIONS, strict=False)
    encoding: str = Field(min_length=1, max_length=32)
    constants: dict[str, float] = Field(max_length=8)
    """Numbers that an encoding needs for decoding."""
    size_bytes: int = Field(ge=0)

    @model_validator(mode="after")
    def _extents_are_possible(self) -> Self:
        if min(self.shape, default=0) < 0 or num_elements([max(extent, 1) for extent in self.shape]) >= 2**40:
            # zeros count as ones: no library makes a tensor of shape (0, 2**40)
            raise ValueError(f"{self.name}: shape {self.shape} has an impossible extent")
        return self

    @property
    def num_elements(self) -> int:
        return num_elements(self.shape)


class MessageHeader(BaseModel):
    """The first object of a tensor message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1]
    kind: Kind
    tensors: tuple[TensorHeader, ...] = Field(max_length=MAX_TENSORS, strict=False)

    @field_validator("schema_version", mode="before")
    @classmethod
    def _version_is_an_integer(cls, value: object) -> object:
        if type(value) is not int:  # `True` and `1.0` equal 1
            raise ValueError("expected the integer 1")
        return value


def num_elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has; 1 for a scalar."""
    product = 1
    for extent in shape:
        product *= extent
    return product


# --- writing -----------------------------------------------------------------------------------


def tensor_header(
    bundle: str,
    name: str,
    shape: tuple[int, ...],
    encoding: str = "f32",
    dtype: Dtype = "float32",
    constants: Constants = NO_CONSTANTS,
) -> TensorHeader:
    """Describe one tensor; its payload's size follows from shape and encoding.

    Raises:
        MessageTooLarge: the payload would be over 4 GiB - 1.
        MalformedTensorMessage: a name, the shape or a constant does not fit the format.
        UnknownEncoding: there is no such encoding.
    """
    fields = {
        "bundle": bundle,
        "name": name,
        "dtype": dtype,
        "shape": shape,
        "encoding": encoding,
        "constants": dict(constants),
        "size_bytes": encoding_named(encoding).size_bytes(num_elements(shape)),
    }
    tensor = _validated(TensorHeader, fields, name)
    _check_tensor(tensor)
    return tensor


def pack_header(kind: Kind, tensors: Sequence[TensorHeader]) -> bytes:
    """Give the bytes of a header; keys stand in the order of the classes, so equal headers are equal bytes.

    Raises:
        MalformedTensorMessage: a tensor stands twice.
        MessageTooLarge: the header is longer, or names more tensors, than a reader accepts.
    """
    _refuse_many_tensors(len(tensors))
    fields = {"schema_version": 1, "kind": kind, "tensors": tuple(tensors)}
    header = _validated(MessageHeader, fields, "header")
    seen: set[tuple[str, str]] = set()
    for tensor in tensors:
        _refuse_repeated(tensor, seen)
    packed: bytes = msgpack.packb(header.model_dump(mode="json"))
    if len(packed) > DEFAULT_LIMITS.header_bytes:
        raise MessageTooLarge(
            f"the header takes {len(packed)} bytes; at most {DEFAULT_LIMITS.header_bytes} are accepted"
        )
    return packed


def entry_bytes_at_most(bundle: str, name: str, shape: Sequence[int], encoding: str) -> int:
    """How many bytes of a header one tensor takes, or a few more: to plan with before anything is encoded."""
    strings = len(bundle.encode()) + len(name.encode()) + len(encoding.encode())
    constants = sum(1 + len(each) + 9 for each in encoding_named(encoding).constants)
    return 82 + strings + constants + 9 * len(shape)


# --- reading -----------------------------------------------------------------------------------


class HeaderParser:
    """Reads the header map from chunks of any size; of no use after it raised."""

    def __init__(self, limits: Limits) -> None:
        self.fed_bytes = 0
        self._limit = limits.header_bytes
        self._begun = 0  # where the object that is being read begins
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=limits.header_bytes,
            max_str_len=_MAX_STRING_BYTES,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=MAX_DIMENSIONS,  # inside an entry; the array of tensors is read piece by piece
            max_map_len=16,
            strict_map_key=True,
            object_pairs_hook=_without_repeated_keys,
        )
        self._reading = self._read_header()

    def feed(self, chunk: memoryview) -> tuple[MessageHeader, int] | None:
        """Give (header, its length in bytes) once it is whole; the rest of the chunk is not looked at.

        Raises:
            MalformedTensorMessage: the bytes are no header.
            MessageTooLarge: the header, an entry or a tensor is over the limit.
            UnknownEncoding: an entry names an encoding that does not exist.
        """
        allowed = chunk[: self._limit - self.fed_bytes]
        while allowed:
            # no byte behind the first that is too many: what is wrong there must not change the verdict
            piece = allowed[: self._begun + ENTRY_BYTES + 1 - self.fed_bytes]
            allowed = allowed[len(piece) :]
            self._unpacker.feed(piece)
            self.fed_bytes += len(piece)
            try:
                next(self._reading)
            except StopIteration as whole:
                return whole.value, self._unpacker.tell()
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                raise MalformedTensorMessage(
                    f"the header is not a msgpack map of the right form: {error or type(error).__name__}"
                ) from None
        if self.fed_bytes >= self._limit:
            raise MessageTooLarge(f"the header is longer than {self._limit} bytes")
        return None

    def _read_header(self) -> Generator[None, None, MessageHeader]:
        fields: dict[str, object] = {}
        for _ in range((yield from self._read_count(self._unpacker.read_map_header, 3, "a map of 3 fields"))):
            key = yield from self._read(self._unpacker.unpack)
            if not isinstance(key, str) or key in fields:
                raise MalformedTensorMessage("header: a field's name stands twice or is no string")
            if key == "tensors":
                fields[key] = yield from self._read_tensors()
            else:
                fields[key] = yield from self._read(self._unpacker.unpack)
        return _validated(MessageHeader, fields, "header")

    def _read_tensors(self) -> Generator[None, None, tuple[TensorHeader, ...]]:
        count = yield from self._read_count(self._unpacker.read_array_header, 2**32, "an array of tensors")
        _refuse_many_tensors(count)
        tensors: list[TensorHeader] = []
        seen: set[tuple[str, str]] = set()
        for index in range(count):
            entry = yield from self._read(self._unpacker.unpack)
            tensor = _validated(TensorHeader, entry, f"header, tensors.{index}")
            _check_tensor(tensor)
            _refuse_repeated(tensor, seen)
            tensors.append(tensor)
        return tuple(tensors)

    def _read_count(self, read: Callable[[], object], most: int, expected: str) -> Generator[None, None, int]:
        count = yield from self._read(read)
        if not isinstance(count, int) or count > most:
            raise MalformedTensorMessage(f"header: expected {expected}, got {count}")
        return count

    def _read(self, read: Callable[[], object]) -> Generator[None, None, object]:
        """Give the next object, waiting for its bytes; msgpack's parser keeps its place meanwhile."""
        self._begun = self._unpacker.tell()
        while True:
            try:
                read_object = read()
                end = self._unpacker.tell()
            except msgpack.OutOfData:
                read_object, end = _UNFINISHED, self.fed_bytes
            if end - self._begun > ENTRY_BYTES:
                raise MessageTooLarge(f"an entry of the header is longer than {ENTRY_BYTES} bytes")
            if read_object is not _UNFINISHED:
                return read_object
            yield


def _without_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")  # msgpack would keep the last one in silence
    return fields


def _validated(model: type[M], fields: object, what: str) -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MalformedTensorMessage(f"{what}{'.' + where if where else ''}: {first['msg']}") from None


def _check_tensor(tensor: TensorHeader) -> None:
    encoding = encoding_named(tensor.encoding)
    expected = encoding.size_bytes(tensor.num_elements)
    if tensor.size_bytes != expected:
        raise MalformedTensorMessage(
            f"{tensor.name}: shape {tensor.shape} as {tensor.encoding} takes {expected} bytes, "
            f"the header says {tensor.size_bytes}"
        )
    if tensor.size_bytes > MAX_TENSOR_BYTES:
        raise MessageTooLarge(
            f"{tensor.name}: {tensor.size_bytes} bytes; a tensor holds at most {MAX_TENSOR_BYTES}. Split it."
        )
    if encoding.bundle not in (None, tensor.bundle):
        raise MalformedTensorMessage(
            f"{tensor.name}: {tensor.encoding} is for the bundle {encoding.bundle}, not for {tensor.bundle}"
        )
    try:
        encoding.check_constants(tensor.constants)
    except MalformedTensorMessage as error:
        raise MalformedTensorMessage(f"{tensor.name}: {error.detail}") from None


def _refuse_many_tensors(count: int) -> None:
    if count > MAX_TENSORS:
        raise MessageTooLarge(f"{count} tensors; a message holds at most {MAX_TENSORS}")


def _refuse_repeated(tensor: TensorHeader, seen: set[tuple[str, str]]) -> None:
    if (tensor.bundle, tensor.name) in seen:
        raise MalformedTensorMessage(f"{tensor.bundle}/{tensor.name} stands twice in the header")
    seen.add((tensor.bundle, tensor.name))
