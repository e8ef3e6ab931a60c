# SPDX-License-Identifier: Apache-2.0
"""What a worker reads from a tensor message, and the message and declaration of a finished training: pure."""

from collections.abc import Mapping
from typing import Protocol

from protocol.codec import (
    Bundle,
    NamedTensor,
    decode_message,
    digest_of,
    encode_message,
    read_layout,
    require_finite,
)
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
    bundles = decode_message(message)
    kind = read_layout(message).header.kind
    if kind != "state":
        raise BundleMismatch(f"expected a message of kind state, got {kind}")
    for bundle, tensors in bundles.items():
        for name, values in tensors.items():
            require_finite(f"{bundle}/{name}", values)
    return bundles


def pack(assignment: Assignment, params: Bundle, trained: Trained) -> tuple[UpdateHeader, list[memoryview]]:
    """Give the declaration of an update and the buffers of its message.

    Bundles stand in the assignment's order and tensors in that of `params`, as the server expects.

    Raises:
        BundleMismatch, ShapeMismatch: training did not give what the assignment asks for.
        NotFinite: a tensor holds NaN or an infinity, or does not fit its encoding.
        InvalidMessage: a count or a metric is out of range.
        UnknownEncoding: the assignment names one that does not exist here.
    """
    tensors = [
        _tensor(assignment, params, trained, bundle, name) for bundle in assignment.bundles for name in params
    ]
    message = encode_message("update", tensors)
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


def _tensor(assignment: Assignment, params: Bundle, trained: Trained, bundle: str, name: str) -> NamedTensor:
    if bundle not in trained.bundles:
        raise BundleMismatch(f"training gave no bundle {bundle}, which the assignment asks for")
    values = trained.bundles[bundle].get(name)
    found = "no such tensor" if values is None else str(values.shape)
    if values is None or values.shape != params[name].shape:
        raise ShapeMismatch(f"{bundle}/{name}: expected {params[name].shape}, training gave {found}")
    require_finite(f"{bundle}/{name}", values)
    return NamedTensor(bundle, name, values, assignment.encodings.get(bundle, "f32"))
