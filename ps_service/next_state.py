# SPDX-License-Identifier: Apache-2.0
"""Writes the bundles of the next version as tensor messages, part after part as their values come.

Parts come in the order of the model's tensors and of their coordinates, each tensor from 0 on. Bundles that
do not change are not written.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from protocol.algorithms import SENT_PARAMS, name_in_message
from protocol.codec import NAN_OR_INFINITY, pack_header, preamble, tensor_header
from protocol.encodings import encoding_named
from protocol.errors import NotFinite
from protocol.messages import RunSpec, TensorSpec
from ps_service.combining import Part
from ps_service.storage.blobs import BlobStore, Staged

Chunk = npt.NDArray[np.float32]


class NextState:
    """What changes of a version, on its way into the store."""

    def __init__(self, blobs: BlobStore, spec: RunSpec) -> None:
        self._blobs = blobs
        self._spec = spec
        self._writers: dict[str, _BundleWriter] = {}

    def write(self, part: Part, changed: Mapping[str, Chunk]) -> None:
        """Take the values of these coordinates, {bundle: shape (n,)}; always of the same bundles."""
        for bundle, values in changed.items():
            self._writer(bundle).write(part, values)
        if "params" in changed and self._spec.has_sent_params:
            self._write_sent_params(part, changed["params"])

    def _write_sent_params(self, part: Part, values: Chunk) -> None:
        """Raises: NotFinite: the run's encoding of `params` cannot hold a value."""
        try:
            self._writer(SENT_PARAMS).write(part, values)
        except NotFinite:
            encoding = self._spec.state_encoding_of(SENT_PARAMS)
            raise NotFinite(f"the next params: {part.name}: as {encoding} it {NAN_OR_INFINITY}") from None

    def _writer(self, bundle: str) -> "_BundleWriter":
        if bundle not in self._writers:
            encoding = self._spec.state_encoding_of(bundle)
            name = name_in_message(bundle)
            self._writers[bundle] = _BundleWriter(self._blobs, name, self._spec.model, encoding)
        return self._writers[bundle]

    def seal(self) -> dict[str, str]:
        """Make what was written durable; give {bundle: digest}."""
        return {bundle: writer.seal() for bundle, writer in self._writers.items()}

    def discard(self) -> None:
        """Forget what is not sealed."""
        for writer in self._writers.values():
            writer.discard()


class _BundleWriter:
    def __init__(self, blobs: BlobStore, bundle: str, model: Sequence[TensorSpec], encoding: str) -> None:
        """Args: encoding: one that takes no constants, and any part by itself."""
        self._staged: Staged = blobs.stage()
        self._sha256 = hashlib.sha256()
        self._encoding = encoding_named(encoding)
        self._headers = [tensor_header(bundle, tensor.name, tensor.shape, encoding) for tensor in model]
        self._offset = 0
        self._write(pack_header("state", self._headers))

    def write(self, part: Part, values: Chunk) -> None:
        if part.start == 0:
            self._write(preamble(self._offset, self._headers[part.tensor].size_bytes))
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
