# SPDX-License-Identifier: Apache-2.0
"""What an error means for the assignment it came up in; an error in neither list ends the worker."""

from protocol.errors import (
    AssignmentDeclined,
    BundleMismatch,
    DigestMismatch,
    InvalidMessage,
    InvalidTask,
    LengthRequired,
    MalformedTensorMessage,
    MessageTooLarge,
    NegativeHessian,
    NotFinite,
    NotFound,
    OutsideBound,
    RoundClosed,
    RunEnded,
    ShapeMismatch,
    SizeMismatch,
    TooManyExamples,
    TooStale,
    TruncatedTensorMessage,
    UnknownAlgorithm,
    UnknownEncoding,
    UpdateConflict,
    WorkerQuarantined,
)

DAMAGED_ON_THE_WAY = (
    DigestMismatch,
    SizeMismatch,
    MalformedTensorMessage,
    TruncatedTensorMessage,
    NotFound,
)
"""A body came to harm, or its offer is gone from a server that was restored: declared and sent again."""

OVERTAKEN = (RoundClosed, TooStale, RunEnded, UpdateConflict, AssignmentDeclined, NotFound)
"""The server has settled the assignment without this update: it is dropped."""

CANNOT_BE_DONE = (
    InvalidTask,
    InvalidMessage,
    UnknownAlgorithm,
    UnknownEncoding,
    NotFinite,
    OutsideBound,
    NegativeHessian,
    BundleMismatch,
    ShapeMismatch,
    SizeMismatch,
    DigestMismatch,
    MessageTooLarge,
    LengthRequired,
    MalformedTensorMessage,
    TruncatedTensorMessage,
    WorkerQuarantined,
    TooManyExamples,
)
"""This worker has no update to give, or none that the server takes: the assignment is declined."""
