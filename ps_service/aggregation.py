# SPDX-License-Identifier: Apache-2.0
"""Combine the updates of a closed round into the next version, coordinates in chunks.

Each bundle has rows of its own: usually those of the round's updates, but in an asynchronous run a bundle
that workers send now and then is combined of what several rounds brought.

For a given admitted set the result is the same, bit for bit, whatever the order of arrival, the chunk size
or the machine's threads: rows are read in slot order, and what is summed across coordinates
(`combining.py`) is summed exactly. The arithmetic is that of `round_step.py`. Memory is O(chunk · workers),
never O(model · workers). Everything here blocks: it runs in a thread.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.algorithms import algorithm_named
from protocol.bound import delta_of
from protocol.codec import (
    DEFAULT_LIMITS,
    Layout,
    pack_header,
    preamble,
    read_layout,
    require_finite,
    tensor_header,
)
from protocol.encodings import Constants, encoding_named
from protocol.errors import TruncatedTensorMessage
from protocol.messages import RunSpec, TensorSpec, UpdateHeader
from ps_service.combining import chunks
from ps_service.round_step import Decided, RoundStep
from ps_service.storage.blobs import BlobStore, Staged

Chunk = npt.NDArray[np.float32]
CHUNK_BYTES = 8 * 1024 * 1024
"""Rows of all workers together, in one bundle."""
HEADER_BYTES = 16 * 1024
"""Of a stored message, read at first: few headers are longer."""


@dataclass(frozen=True)
class AdmittedUpdate:
    """One update to be combined."""

    digest: str
    header: UpdateHeader
    params: str
    """Digest of the parameters it was made from."""
    slot: int
    staleness: int = 0

    @property
    def local_steps(self) -> int:
        return self.header.local_steps

    @property
    def num_examples(self) -> int:
        return self.header.num_examples


def aggregate(
    blobs: BlobStore,
    spec: RunSpec,
    tensors: dict[str, str],
    rows: Mapping[str, Sequence[AdmittedUpdate]],
    *,
    partial: bool,
    share: float = 1.0,
    workers: int | None = None,
    chunk_elements: int | None = None,
) -> dict[str, str]:
    """Give {bundle: digest} of the next version, its tensor messages stored durably.

    Args:
        tensors: {bundle: digest} of the version that is followed; absent bundles are zeros.
        rows: {bundle: the updates that bring it, in slot order, at least one}.
        partial, share, workers: as in `StepContext`.
        chunk_elements: coordinates at a time; None fits the number of workers. It changes no bit.

    Raises:
        NotFinite: a sum of finite values left the range of float32.
        StorageCorrupt: a message is missing or short.
    """
    round_step = RoundStep(spec, rows, partial=partial, share=share, workers=workers)
    work = _Aggregation(blobs, spec, tensors, rows, round_step)
    chunk_elements = chunk_elements or max(4096, CHUNK_BYTES // 4 // max(map(len, rows.values())))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name
        return tensors | work.run(chunk_elements)


class StoredMessage:
    """A tensor message in the blob store, read by bundle, tensor and coordinates."""

    def __init__(self, blobs: BlobStore, digest: str) -> None:
        self._blobs = blobs
        self._digest = digest
        self.layout = _stored_layout(blobs, digest)
        self._index = {(t.bundle, t.name): i for i, t in enumerate(self.layout.header.tensors)}

    def read(self, bundle: str, name: str, start: int, out: Chunk) -> None:
        """Fill `out`, shape (n,), with the float32 values of coordinates start … start+n-1.

        A delta in a `bounded_*` encoding gives Δ + (1−a)·θ_0 (`protocol/encodings/bounded.py`).
        """
        index = self._index[bundle, name]
        tensor = self.layout.header.tensors[index]
        encoding = encoding_named(tensor.encoding)
        # whole groups of elements that share bytes
        begin = start - start % encoding.group
        end = min(start + out.size + -(start + out.size) % encoding.group, tensor.num_elements)
        first, last = encoding.byte_range(begin, end)
        direct = tensor.encoding == "f32"
        buffer = out.view(np.uint8).data if direct else memoryview(bytearray(last - first))
        self._blobs.read_into(self._digest, self.layout.offsets[index] + first, buffer)
        if direct:
            return
        values = out if end - begin == out.size else np.empty(end - begin, dtype=np.float32)
        encoding.decode(buffer, values, tensor.constants)
        if values is not out:
            out[:] = values[start - begin :][: out.size]

    def constants(self, bundle: str, name: str) -> Constants:
        """What the header says for a tensor's encoding."""
        return self.layout.header.tensors[self._index[bundle, name]].constants


@functools.lru_cache(maxsize=256)
def _stored_layout(blobs: BlobStore, digest: str) -> Layout:
    """Many read the same message: every upload is checked against the parameters it was made from."""
    size_bytes = blobs.size(digest) or 0
    most_bytes = min(size_bytes, DEFAULT_LIMITS.header_bytes)
    prefix = np.empty(min(most_bytes, HEADER_BYTES), np.uint8)
    while True:
        blobs.read_into(digest, 0, prefix.data)
        try:
            return read_layout(prefix.data)
        except TruncatedTensorMessage:
            if prefix.size == most_bytes:
                raise
        prefix = np.empty(most_bytes, np.uint8)


class StateWriter:
    """Writes one bundle of the next state as a tensor message, values as they come, tensor after tensor."""

    def __init__(
        self, blobs: BlobStore, bundle: str, model: Sequence[TensorSpec], encoding: str = "f32"
    ) -> None:
        """Args: encoding: one that takes no constants, and any part by itself."""
        self._staged: Staged = blobs.stage()
        self._sha256 = hashlib.sha256()
        self._encoding = encoding_named(encoding)
        self._headers = [tensor_header(bundle, tensor.name, tensor.shape, encoding) for tensor in model]
        self._offset = 0
        self._write(pack_header("state", self._headers))

    def begin_tensor(self, index: int) -> None:
        self._write(preamble(self._offset, self._headers[index].size_bytes))

    def write(self, values: Chunk) -> None:
        self._write(self._encoding.encode(values))

    def seal(self) -> str:
        digest = self._sha256.hexdigest()
        self._staged.seal(digest)
        return digest

    def discard(self) -> None:
        self._staged.discard()

    def _write(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._staged.write(data)
        self._offset += len(data)


class _Aggregation:
    """One round's work: what is read, what is written, and the step between them."""

    def __init__(
        self,
        blobs: BlobStore,
        spec: RunSpec,
        tensors: dict[str, str],
        rows: Mapping[str, Sequence[AdmittedUpdate]],
        round_step: RoundStep,
    ) -> None:
        self.blobs = blobs
        self.spec = spec
        self.round_step = round_step
        self.state_bundles = algorithm_named(spec.algorithm).global_state
        messages = {
            digest: StoredMessage(blobs, digest)
            for digest in {update.digest for updates in rows.values() for update in updates}
        }
        self.rows = {bundle: [messages[update.digest] for update in rows[bundle]] for bundle in rows}
        self.state = {bundle: StoredMessage(blobs, digest) for bundle, digest in tensors.items()}
        self.start_of_each = [update.params for update in rows.get("delta", ())]
        self.starts = {params: StoredMessage(blobs, params) for params in set(self.start_of_each)}

    def run(self, chunk_elements: int) -> dict[str, str]:
        decided = self.round_step.decide(self._received, chunk_elements)
        writers: dict[str, StateWriter] = {}
        try:
            for index, tensor in enumerate(self.spec.model):
                for start, stop in chunks(tensor.num_elements, chunk_elements):
                    for bundle, values in self._step(decided, tensor.name, start, stop).items():
                        if bundle not in writers:
                            encoding = self.spec.state_encoding_of(bundle)
                            writers[bundle] = StateWriter(self.blobs, bundle, self.spec.model, encoding)
                        if start == 0:
                            writers[bundle].begin_tensor(index)
                        require_finite(f"the next {bundle}: {tensor.name}", values)
                        writers[bundle].write(values)
            return {bundle: writer.seal() for bundle, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.discard()

    def _step(self, decided: Decided, name: str, start: int, stop: int) -> dict[str, Chunk]:
        """The changed state bundles of these coordinates."""
        return self.round_step.apply(
            decided,
            {bundle: self._state(bundle, name, start, stop) for bundle in self.state_bundles},
            {bundle: self._received(bundle, name, start, stop) for bundle in self.rows},
            self._starts(name, start, stop),
        )

    def _state(self, bundle: str, name: str, start: int, stop: int) -> Chunk:
        values = np.zeros(stop - start, dtype=np.float32)
        if bundle in self.state:
            self.state[bundle].read(bundle, name, start, values)
        return values

    def _received(self, bundle: str, name: str, start: int, stop: int) -> Chunk:
        rows = np.empty((len(self.rows[bundle]), stop - start), dtype=np.float32)
        for update, row in zip(self.rows[bundle], rows, strict=True):
            update.read(bundle, name, start, row)
        if bundle == "delta" and "shrinkage" in self.rows[bundle][0].constants(bundle, name):
            starts = self._starts(name, start, stop)
            for update, row, began in zip(self.rows[bundle], rows, starts, strict=True):
                delta_of(row, began, update.constants(bundle, name))
        return rows

    def _starts(self, name: str, start: int, stop: int) -> list[Chunk]:
        """Where each delta began; those that began at the same version share an array."""
        values = {}
        for digest, params in self.starts.items():
            values[digest] = np.empty(stop - start, dtype=np.float32)
            params.read("params", name, start, values[digest])
        return [values[digest] for digest in self.start_of_each]
