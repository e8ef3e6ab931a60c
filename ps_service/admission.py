# SPDX-License-Identifier: Apache-2.0
"""Does this declaration, or this tensor message, fit what was asked for? PURE.

A declaration is refused before a byte of its body travels; a body is refused as soon as its header or
a value is wrong.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from protocol.codec import DEFAULT_LIMITS, MessageHeader, TensorHeader
from protocol.errors import (
    AssignmentDeclined,
    BundleMismatch,
    InvalidMessage,
    MalformedTensorMessage,
    MessageTooLarge,
    ModelTooLarge,
    RoundClosed,
    RunEnded,
    ShapeMismatch,
    SizeMismatch,
    TooManyExamples,
)
from protocol.messages import RoundStatus, RunSpec, UpdateHeader
from protocol.run_spec import TensorSpec
from ps_service.combiners import COMBINERS
from ps_service.staleness import require_fresh

if TYPE_CHECKING:
    from ps_service.storage.situations import Situation


def require_open(situation: "Situation", staleness: int) -> None:
    """The run still takes the update of this assignment.

    Args: staleness: of the update, in the round that it can still be part of.

    Raises:
        RunEnded, AssignmentDeclined, RoundClosed, TooStale: it does not.
    """
    run, round_ = situation.run, situation.round.state
    if situation.assignment.declined_reason is not None:
        raise AssignmentDeclined("this assignment was declined; it takes no update")
    if run.state.status.ended:
        raise RunEnded(f"the run is {run.state.status.value}")
    if run.spec.asynchronous is not None:
        require_fresh(run.spec, staleness)
    elif round_.status is not RoundStatus.COLLECTING:
        raise RoundClosed(f"round {round_.number} is {round_.status.value}")


def check_combiners(spec: RunSpec) -> None:
    """Raises: InvalidMessage: the spec names a combiner that there is not."""
    unknown = set(spec.combiners.values()) - set(COMBINERS)
    if unknown:
        raise InvalidMessage(f"combiner {min(unknown)!r}: expected one of {', '.join(COMBINERS)}")


def check_declaration(
    header: UpdateHeader, spec: RunSpec, bundles: tuple[str, ...], max_body_bytes: int
) -> None:
    """The declared update is of the kind, shape and size that the assignment asked for.

    Raises:
        BundleMismatch, SizeMismatch, MessageTooLarge: saying what was expected.
    """
    if header.bundles != bundles:
        raise BundleMismatch(f"bundles: expected {list(bundles)}, got {list(header.bundles)}")
    expected = {bundle: spec.encoding_of(bundle) for bundle in bundles}
    if header.encodings != expected:
        raise BundleMismatch(f"encodings: expected {expected}, got {header.encodings}")
    if header.local_steps > spec.local_steps:
        raise BundleMismatch(
            f"local_steps: at most {spec.local_steps} were assigned, got {header.local_steps}"
        )
    if header.size_bytes > max_body_bytes:
        raise MessageTooLarge(f"size_bytes: {header.size_bytes}; at most {max_body_bytes} are accepted")
    payload = spec.payload_bytes(bundles)
    # padding and bin prefix take at most 68 bytes a tensor
    most = payload + DEFAULT_LIMITS.header_bytes + 68 * len(bundles) * len(spec.model)
    if not payload < header.size_bytes <= most:
        raise SizeMismatch(f"size_bytes: {header.size_bytes}; the payloads alone take {payload}")


def check_num_examples(num_examples: int, most: int) -> None:
    """Raises: TooManyExamples: more are claimed than are believed; an update weighs as much as they."""
    if num_examples > most:
        raise TooManyExamples(f"num_examples: {num_examples}; at most {most} are believed")


def check_model_size(
    tensors: Sequence[TensorSpec | TensorHeader], most_tensors: int, most_bytes: int
) -> None:
    """Raises: ModelTooLarge: the tensors are too many, or too large as float32 together."""
    if len(tensors) > most_tensors:
        raise ModelTooLarge(f"{len(tensors)} tensors; a model has at most {most_tensors} here")
    size_bytes = 4 * sum(math.prod(tensor.shape) for tensor in tensors)
    if size_bytes > most_bytes:
        raise ModelTooLarge(f"{size_bytes} bytes as float32; a model has at most {most_bytes} here")


def check_update_message(message: MessageHeader, spec: RunSpec, header: UpdateHeader) -> None:
    """The body's own header says what the declaration said, tensor by tensor.

    Raises:
        MalformedTensorMessage, ShapeMismatch, BundleMismatch: naming the tensor.
    """
    if message.kind != "update":
        raise MalformedTensorMessage(f"kind: expected 'update', got {message.kind!r}")
    expected = [(bundle, tensor.name) for bundle in header.bundles for tensor in spec.model]
    _check_tensors(message, spec, expected)
    for tensor in message.tensors:
        if tensor.encoding != header.encodings[tensor.bundle]:
            raise BundleMismatch(
                f"{tensor.bundle}/{tensor.name}: declared as {header.encodings[tensor.bundle]}, "
                f"sent as {tensor.encoding}"
            )


def require_state_message(message: MessageHeader) -> None:
    """Raises: MalformedTensorMessage: it is an update."""
    if message.kind != "state":
        raise MalformedTensorMessage(f"kind: expected 'state', got {message.kind!r}")


def check_params_message(message: MessageHeader, spec: RunSpec) -> None:
    """A run's initial `params` are the model its spec describes; raises as `check_state_message`."""
    check_state_message(message, spec, "params")


def check_state_message(message: MessageHeader, spec: RunSpec, bundle: str) -> None:
    """A bundle of a run's state has the tensors of the model its spec describes.

    Raises:
        MalformedTensorMessage, ShapeMismatch: naming the tensor.
    """
    require_state_message(message)
    _check_tensors(message, spec, [(bundle, tensor.name) for tensor in spec.model])


def _check_tensors(message: MessageHeader, spec: RunSpec, expected: list[tuple[str, str]]) -> None:
    found = [(tensor.bundle, tensor.name) for tensor in message.tensors]
    if found != expected:
        place = next(
            (i for i, (f, e) in enumerate(zip(found, expected, strict=False)) if f != e),
            min(len(found), len(expected)),
        )
        raise ShapeMismatch(
            f"tensor {place}: expected {_named(expected, place)}, got {_named(found, place)} "
            f"({len(expected)} tensors expected, {len(found)} found)"
        )
    for index, tensor in enumerate(message.tensors):
        _check_shape(tensor, spec, index)


def _check_shape(tensor: TensorHeader, spec: RunSpec, index: int) -> None:
    model = spec.model[index % len(spec.model)]
    if tensor.shape != model.shape:
        raise ShapeMismatch(f"{tensor.name}: expected {model.shape}, got {tensor.shape}")
    if tensor.dtype != model.dtype:
        raise ShapeMismatch(f"{tensor.name}: expected {model.dtype}, got {tensor.dtype}")


def _named(tensors: list[tuple[str, str]], place: int) -> str:
    return "/".join(tensors[place]) if place < len(tensors) else "nothing"
