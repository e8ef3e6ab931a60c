# SPDX-License-Identifier: Apache-2.0
"""What a worker reads from a tensor message, and the message and declaration of a finished training: pure."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from protocol.bound import bound_of, delta_of
from protocol.codec import (
    Bundle,
    Float32Array,
    NamedTensor,
    digest_of,
    encode_message,
    read_message,
    require_finite,
)
from protocol.encodings import Constants, encoding_named
from protocol.errors import BundleMismatch, ShapeMismatch
from protocol.messages import Assignment, UpdateHeader, parse
from worker.local_state import Kept


class Trained(Protocol):
    """What local training gives."""

    @property
    def bundles(self) -> Mapping[str, Bundle]: ...

    @property
    def kept(self) -> Kept | None: ...

    @property
    def num_examples(self) -> int: ...

    @property
    def local_steps(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...


def state_in(message: memoryview) -> Mapping[str, Bundle]:
    """Give the bundles of global state that a whole message holds.

    Raises:
        BundleMismatch: it holds somebody's update.
        NotFinite: a tensor holds NaN or an infinity.
        MalformedTensorMessage, TruncatedTensorMessage, MessageTooLarge, UnknownEncoding: it cannot be read.
    """
    header, bundles = read_message(message)
    if header.kind != "state":
        raise BundleMismatch(f"expected a message of kind state, got {header.kind}")
    for bundle, tensors in bundles.items():
        for name, values in tensors.items():
            require_finite(f"{bundle}/{name}", values)
    return bundles


def pack(assignment: Assignment, params: Bundle, trained: Trained) -> tuple[UpdateHeader, list[memoryview]]:
    """Give the declaration of an update and the buffers of its message.

    Bundles stand in the assignment's order and tensors in that of `params`, as the server expects. The same
    training gives the same bytes again.

    Raises:
        BundleMismatch, ShapeMismatch: training did not give what the assignment asks for.
        NotFinite: a tensor holds NaN or an infinity, or does not fit its encoding.
        OutsideBound: a delta that is to be sent by its bound is not within it.
        InvalidMessage: a count or a metric is out of range.
        UnknownEncoding: the assignment names one that does not exist here.
    """
    message = encode_message("update", _tensors(assignment, params, trained))
    header = parse(
        UpdateHeader,
        {
            "digest": digest_of(message),
            "size_bytes": sum(buffer.nbytes for buffer in message),
            "bundles": assignment.bundles,
            "encodings": assignment.encodings,
            "num_examples": trained.num_examples,
            "local_steps": trained.local_steps,
            "metrics": dict(trained.metrics),
        },
    )
    return header, message


def as_received(assignment: Assignment, params: Bundle, trained: Trained) -> dict[str, Bundle]:
    """What the bundles of an update are once they have travelled: {bundle: {name: values}}.

    Raises: as `pack`.
    """
    received: dict[str, dict[str, Float32Array]] = {bundle: {} for bundle in assignment.bundles}
    for tensor in _tensors(assignment, params, trained):
        encoding = encoding_named(tensor.encoding)
        constants = encoding.constants_for(tensor.values) if tensor.constants is None else tensor.constants
        values = np.empty(tensor.values.size, dtype=np.float32)
        encoding.decode(encoding.encode(tensor.values, constants, tensor.seed), values, constants)
        delta_of(values, params[tensor.name].reshape(-1), constants)
        received[tensor.bundle][tensor.name] = values.reshape(tensor.values.shape)
    return dict(received)


def _tensors(assignment: Assignment, params: Bundle, trained: Trained) -> Iterator[NamedTensor]:
    """One after the other: what is made for one's encoding is not held with that of the next."""
    for bundle in assignment.bundles:
        for name in params:
            yield _tensor(assignment, params, trained, bundle, name)


def _tensor(assignment: Assignment, params: Bundle, trained: Trained, bundle: str, name: str) -> NamedTensor:
    if bundle not in trained.bundles:
        raise BundleMismatch(f"training gave no bundle {bundle}, which the assignment asks for")
    values = trained.bundles[bundle].get(name)
    found = "no such tensor" if values is None else str(values.shape)
    if values is None or values.shape != params[name].shape:
        raise ShapeMismatch(f"{bundle}/{name}: expected {params[name].shape}, training gave {found}")
    require_finite(f"{bundle}/{name}", values)
    encoding, constants = assignment.encodings.get(bundle, "f32"), None
    if "shrinkage" in encoding_named(encoding).constants:
        values, constants = _bounded(assignment, params[name], trained, name, values)
    seed = rounding_seed(assignment.seed, bundle, name)
    return NamedTensor(bundle, name, values, encoding, constants=constants, seed=seed)


def _bounded(
    assignment: Assignment, start: Float32Array, trained: Trained, name: str, delta: Float32Array
) -> tuple[Float32Array, Constants]:
    """A delta as it is sent by its bound, and that bound."""
    bound = bound_of(assignment.optimizer, assignment.settings, trained.local_steps)
    if bound is None:
        raise BundleMismatch(f"nothing bounds the delta of optimizer {assignment.optimizer}")
    return bound.from_start(f"delta/{name}", delta, start), bound.constants


def rounding_seed(assignment_seed: int, bundle: str, name: str) -> int:
    """Seeds the stochastic rounding of one tensor of an update: each rounds apart from all others."""
    named = f"{assignment_seed}/{bundle}/{name}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:16])
