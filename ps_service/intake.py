# SPDX-License-Identifier: Apache-2.0
"""A body on its way in: hashed, checked and written as its bytes pass, in memory that does not grow with it.

`feed` and `finish` block (hashing, checks, writes): they are called in a thread. Nothing is readable in
the store until `seal`, which the caller does once it knows that the bytes are wanted.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.algorithms import algorithm_named
from protocol.bound import DeltaBound
from protocol.codec import FrameReader, MessageHeader, PayloadPart, TensorHeader, require_finite
from protocol.encodings import encoding_named
from protocol.errors import DigestMismatch, MalformedTensorMessage, SizeMismatch
from protocol.messages import RunSpec, UpdateHeader
from ps_service.admission import check_update_message
from ps_service.aggregation import StoredMessage
from ps_service.storage.blobs import BlobStore, Readable, Staged
from ps_service.value_rules import check_update_values

READ_BYTES = 1024 * 1024

Chunk = npt.NDArray[np.float32]


class ValueCheck(Protocol):
    """Refuses values that no honest worker sends."""

    def __call__(self, tensor: TensorHeader, start: int, values: Chunk) -> None:
        """Look at coordinates start … start+n-1 of a tensor.

        Raises:
            NotFinite, and the check's own errors: some are not to be stored.
        """
        ...


class Intake:
    """Takes one declared tensor message into the store."""

    def __init__(
        self,
        staged: Staged,
        digest: str,
        size_bytes: int,
        check_header: Callable[[MessageHeader], None],
        check_values: ValueCheck,
    ) -> None:
        self._digest = digest
        self._size_bytes = size_bytes
        self._check_header = check_header
        self._check_values = check_values
        self._reader = FrameReader()
        self._sha256 = hashlib.sha256()
        self._received_bytes = 0
        self._part = _TensorPart()
        self._staged = staged
        self.sealed = False

    @property
    def received_bytes(self) -> int:
        return self._received_bytes

    def read_again(self, part: Readable) -> None:
        """Take in what is written already, by a writer before this one, without writing it again.

        Raises:
            What `feed` raises.
        """
        while self.read_some(part):
            pass

    def read_some(self, part: Readable, size_bytes: int = 16 * READ_BYTES) -> bool:
        """As `read_again`, but so many bytes at most; False once there are no more."""
        buffer = np.empty(READ_BYTES, np.uint8).data  # mostly there is nothing: no page of it is touched then
        until_bytes = self._received_bytes + size_bytes
        while self._received_bytes < until_bytes:
            count = part.read_into(self._received_bytes, buffer)
            if not count:
                return False
            self._look_at(buffer[:count])
        return True

    def feed(self, pieces: Sequence[bytes]) -> None:
        """Take the next bytes, in pieces of any size.

        Raises:
            SizeMismatch: there are more than declared.
            The errors of `FrameReader`, and those of the two checks.
        """
        for piece in pieces:
            self._look_at(memoryview(piece))
            self._staged.write(piece)

    def _look_at(self, data: memoryview) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > self._size_bytes:
            raise SizeMismatch(f"more than the {self._size_bytes} bytes declared")
        self._sha256.update(data)
        for item in self._reader.feed(data):
            if isinstance(item, MessageHeader):
                self._check_header(item)
            else:
                self._take(item)

    def finish(self) -> None:
        """Check that the message is whole and is the one declared.

        Raises:
            SizeMismatch, TruncatedTensorMessage, DigestMismatch: it is not.
        """
        if self._received_bytes != self._size_bytes:
            raise SizeMismatch(f"{self._size_bytes} bytes declared, {self._received_bytes} received")
        if self._sha256.hexdigest() != self._digest:
            raise DigestMismatch(f"declared {self._digest}, received {self._sha256.hexdigest()}")
        self._reader.finish()

    def seal(self) -> None:
        self._staged.seal(self._digest)
        self.sealed = True

    def finish_and_seal(self) -> None:
        """Both at once, where the bytes are known to be wanted."""
        self.finish()
        self.seal()

    def discard(self) -> None:
        self._staged.discard()

    def _take(self, part: PayloadPart) -> None:
        assert self._reader.header is not None
        tensor = self._reader.header.tensors[part.tensor_index]
        start, values = self._part.decode(tensor, part)
        self._check_values(tensor, start, values)


def intake_of_update(
    blobs: BlobStore, spec: RunSpec, header: UpdateHeader, params: str, to: Staged
) -> Intake:
    """What takes a declared update, and refuses what no honest worker sends.

    Args:
        params: digest of the parameters that it was made from.
        to: where it is written.
    """
    hyperparameters = algorithm_named(spec.algorithm).parse(spec.hyperparameters)
    bound = hyperparameters.bound(header.local_steps, spec.local_steps)
    return Intake(
        to,
        header.digest,
        header.size_bytes,
        check_header=lambda message: check_update_message(message, spec, header),
        check_values=UpdateCheck(StoredMessage(blobs, params), bound),
    )


class _TensorPart:
    """Decodes payload parts that may end in the middle of an element, or of several that share bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def decode(self, tensor: TensorHeader, part: PayloadPart) -> tuple[int, Chunk]:
        """Give what is whole by now: the place of its first element, and the values.

        Raises:
            MalformedTensorMessage: there are bits that no writer sets.
        """
        encoding = encoding_named(tensor.encoding)
        group_bytes = encoding.size_bytes(encoding.group)
        data: memoryview | bytes = self._rest + part.data if self._rest else part.data
        start = (part.offset - len(self._rest)) // group_bytes * encoding.group
        groups = len(data) // group_bytes
        self._rest = bytes(data[groups * group_bytes :])
        values = np.empty(min(groups * encoding.group, tensor.num_elements - start), dtype=np.float32)
        try:
            encoding.decode(memoryview(data)[: groups * group_bytes], values, tensor.constants)
        except MalformedTensorMessage as error:
            raise MalformedTensorMessage(f"{tensor.name}: {error.detail}") from None
        return start, values


def accept_finite(tensor: TensorHeader, start: int, values: Chunk) -> None:
    """Ask for no more of an operator's own tensors.

    Raises: NotFinite: they hold NaN or an infinity.
    """
    require_finite(tensor.name, values)


class UpdateCheck:
    """What the values of an update's bundles must satisfy (`value_rules.py`)."""

    def __init__(self, params: StoredMessage, bound: DeltaBound | None) -> None:
        self._params = params
        self._bound = bound

    def __call__(self, tensor: TensorHeader, start: int, values: Chunk) -> None:
        def started_from() -> Chunk:
            given = np.empty(values.size, dtype=np.float32)
            self._params.read("params", tensor.name, start, given)
            return given

        check_update_values(
            tensor.bundle,
            tensor.name,
            values,
            bound=self._bound,
            started_from=started_from,
            encoding=encoding_named(tensor.encoding),
        )
