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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from protocol.algorithms import algorithm_named
from protocol.bound import delta_of
from protocol.codec import DEFAULT_LIMITS, Layout, read_layout, require_finite
from protocol.encodings import Constants, encoding_named
from protocol.errors import StorageCorrupt, TruncatedTensorMessage
from protocol.messages import RunSpec, UpdateHeader
from ps_service.combining import Part, parts
from ps_service.in_order import in_order, useful_threads
from ps_service.next_state import NextState
from ps_service.round_step import Decided, RoundStep
from ps_service.storage.blobs import BlobStore

Chunk = npt.NDArray[np.float32]
CHUNK_BYTES = 8 * 1024 * 1024
"""Of one bundle, the rows that all threads hold at the same time."""
MOST_ELEMENTS = 256 * 1024
"""Of one row: more make nothing faster."""
LEAST_ELEMENTS = 4096
ROWS_IN_TURN = 3
"""Where rows come in turn, as many arrays are held: a row, its part of the sum, and the sum."""
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
    threads: int | None = None,
) -> dict[str, str]:
    """Give {bundle: digest} of the next version, its tensor messages stored durably.

    Args:
        tensors: {bundle: digest} of the version that is followed; absent bundles are zeros.
        rows: {bundle: the updates that bring it, in slot order, at least one}.
        partial, share, workers: as in `StepContext`.
        chunk_elements: coordinates at a time; None fits the number of workers. It changes no bit.
        threads: beside this one, which hashes and writes what they make; None fits the machine. They
            change no bit either.

    Raises:
        NotFinite: a sum of finite values left the range of float32.
        StorageCorrupt: a message is missing or short.
    """
    round_step = RoundStep(spec, rows, partial=partial, share=share, workers=workers)
    work = _Aggregation(blobs, spec, tensors, rows, round_step)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name
        return tensors | work.run(chunk_elements, useful_threads() if threads is None else threads)


def elements_at_a_time(num_rows: int, threads: int) -> int:
    """How many coordinates of so many rows each thread works on together."""
    fitting = CHUNK_BYTES // 4 // (num_rows * max(threads, 1))
    return max(LEAST_ELEMENTS, min(MOST_ELEMENTS, fitting))


class StoredMessage:
    """A tensor message in the blob store, read by bundle, tensor and coordinates."""

    def __init__(self, blobs: BlobStore, digest: str) -> None:
        self._blobs = blobs
        self._digest = digest
        self.layout = _known_layout(blobs, digest)
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


def stored_layout(blobs: BlobStore, digest: str) -> Layout:
    """Where the tensors of a stored message are.

    Raises:
        MalformedTensorMessage, TruncatedTensorMessage, UnknownEncoding: it is no tensor message.
        StorageCorrupt: it is missing.
    """
    size_bytes = blobs.size(digest)
    if size_bytes is None:
        raise StorageCorrupt(f"tensor message {digest} is missing")
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


_known_layout = functools.lru_cache(maxsize=256)(stored_layout)
"""Many read the same message: every upload is checked against the parameters it was made from."""


class _Starts:
    """Where each delta began, read when it is first asked for; those of one version share an array."""

    def __init__(self, digests: Sequence[str], read: Callable[[str], Chunk]) -> None:
        self._digests = digests
        self._read = functools.cache(read)

    def __iter__(self) -> Iterator[Chunk]:
        return map(self._read, self._digests)


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
        self.in_turn = [bundle for bundle in rows if round_step.may_come_in_turn(bundle)]
        self.at_once = [bundle for bundle in rows if bundle not in self.in_turn]
        self.start_of_each = [update.params for update in rows.get("delta", ())]
        self.starts = {params: StoredMessage(blobs, params) for params in set(self.start_of_each)}

    def run(self, chunk_elements: int | None, threads: int) -> dict[str, str]:
        whole = max(map(len, self.rows.values()))
        decided = self.round_step.decide(
            self._received, chunk_elements or elements_at_a_time(whole, threads), threads
        )
        held = max((len(self.rows[bundle]) for bundle in self.at_once), default=ROWS_IN_TURN)
        elements = chunk_elements or elements_at_a_time(held, threads)
        following = NextState(self.blobs, self.spec)
        try:
            in_order(
                parts(self.spec.model, elements),
                lambda part: (part, self._step(decided, part)),
                lambda made: following.write(*made),
                threads,
            )
            return following.seal()
        finally:
            following.discard()

    def _step(self, decided: Decided, part: Part) -> dict[str, Chunk]:
        """The changed state bundles of these coordinates."""
        place = part.name, part.start, part.stop
        row = np.empty(part.stop - part.start, dtype=np.float32)
        changed = self.round_step.apply(
            decided,
            {bundle: self._state(bundle, *place) for bundle in self.state_bundles},
            {bundle: self._received(bundle, *place) for bundle in self.at_once},
            self._starts(*place),
            {bundle: self._in_turn(bundle, *place, repeat(row)) for bundle in self.in_turn},
        )
        for bundle, values in changed.items():
            require_finite(f"the next {bundle}: {part.name}", values)
        return changed

    def _state(self, bundle: str, name: str, start: int, stop: int) -> Chunk:
        if bundle not in self.state:
            return np.zeros(stop - start, dtype=np.float32)
        return _read(self.state[bundle], bundle, name, start, stop)

    def _received(self, bundle: str, name: str, start: int, stop: int) -> Chunk:
        rows = np.empty((len(self.rows[bundle]), stop - start), dtype=np.float32)
        for _ in self._in_turn(bundle, name, start, stop, rows):
            pass
        return rows

    def _in_turn(
        self, bundle: str, name: str, start: int, stop: int, rows: Iterable[Chunk]
    ) -> Iterator[Chunk]:
        """Read one update after another, each into the next of `rows`, shape (n,)."""
        moved = bundle == "delta" and "shrinkage" in self.rows[bundle][0].constants(bundle, name)
        starts = iter(self._starts(name, start, stop))
        for update, row in zip(self.rows[bundle], rows, strict=False):
            update.read(bundle, name, start, row)
            if moved:
                delta_of(row, next(starts), update.constants(bundle, name))
            yield row

    def _starts(self, name: str, start: int, stop: int) -> _Starts:
        return _Starts(
            self.start_of_each, lambda digest: _read(self.starts[digest], "params", name, start, stop)
        )


def _read(message: StoredMessage, bundle: str, name: str, start: int, stop: int) -> Chunk:
    values = np.empty(stop - start, dtype=np.float32)
    message.read(bundle, name, start, values)
    return values
