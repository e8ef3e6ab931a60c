# SPDX-License-Identifier: Apache-2.0
"""Every error of the project, under one root.

The law of this file: an error has a stable `code`, says whose fault it is and whether the same
request may be tried again. Its message names what was found and what was expected, and never holds
a token or a tensor's values. `ps_service.routes.problems` alone maps codes to HTTP statuses.
"""

from protocol.error_root import Fault as Fault
from protocol.error_root import FedSophiaError as FedSophiaError

# --- messages and tensors ---------------------------------------------------------------------


class InvalidMessage(FedSophiaError):
    """A JSON message does not fit its schema."""

    code = "invalid-message"
    fault = Fault.CALLER


class MalformedTensorMessage(FedSophiaError):
    """The bytes are not a tensor message as the wire format defines it."""

    code = "malformed-tensor-message"
    fault = Fault.CALLER


class TruncatedTensorMessage(FedSophiaError):
    """A tensor message ended before its last payload did."""

    code = "truncated-tensor-message"
    fault = Fault.CALLER


class MessageTooLarge(FedSophiaError):
    """A message, a header or a tensor is larger than the limit."""

    code = "message-too-large"
    fault = Fault.CALLER


class UnsupportedVersion(FedSophiaError):
    """The other side speaks no version of the protocol that we speak."""

    code = "unsupported-version"
    fault = Fault.CALLER


class UnknownEncoding(FedSophiaError):
    """A tensor names an encoding that does not exist here."""

    code = "unknown-encoding"
    fault = Fault.CALLER


class UnknownAlgorithm(FedSophiaError):
    """No row of the algorithm table has this name."""

    code = "unknown-algorithm"
    fault = Fault.CALLER


class DigestMismatch(FedSophiaError):
    """The bytes received do not have the digest that was declared."""

    code = "digest-mismatch"
    fault = Fault.CALLER


class SizeMismatch(FedSophiaError):
    """The number of bytes received is not the number that was declared."""

    code = "size-mismatch"
    fault = Fault.CALLER


class ShapeMismatch(FedSophiaError):
    """Tensors do not have the names, order, shapes or types of the run's model."""

    code = "shape-mismatch"
    fault = Fault.CALLER


class BundleMismatch(FedSophiaError):
    """An update does not carry the bundles or encodings its assignment asked for."""

    code = "bundle-mismatch"
    fault = Fault.CALLER


class NotFinite(FedSophiaError):
    """A tensor or a loss holds NaN or an infinity."""

    code = "not-finite"
    fault = Fault.CALLER


class OutsideBound(FedSophiaError):
    """A delta moves a coordinate farther than Fed-Sophia's clip allows."""

    code = "outside-bound"
    fault = Fault.CALLER


class NegativeHessian(FedSophiaError):
    """A diagonal Gauss–Newton estimate holds a negative value."""

    code = "negative-hessian"
    fault = Fault.CALLER


# --- who may do what ---------------------------------------------------------------------------


class Unauthenticated(FedSophiaError):
    """The request carries no valid credential of the kind this endpoint needs."""

    code = "unauthenticated"
    fault = Fault.CALLER


class Forbidden(FedSophiaError):
    """The credential is valid and does not allow this."""

    code = "forbidden"
    fault = Fault.CALLER


class JoinTokenRefused(FedSophiaError):
    """The join token is unknown, expired, revoked or used up."""

    code = "join-token-refused"
    fault = Fault.CALLER


class WorkerRevoked(FedSophiaError):
    """The worker's credential has been revoked."""

    code = "worker-revoked"
    fault = Fault.CALLER


class WorkerExpired(FedSophiaError):
    """The worker was idle for longer than its join token lets it be; it may enrol again."""

    code = "worker-expired"
    fault = Fault.CALLER


class WorkerQuarantined(FedSophiaError):
    """Too many of this worker's updates were refused for what is in them; an operator may release it."""

    code = "worker-quarantined"
    fault = Fault.CALLER


class ApprovalPending(FedSophiaError):
    """An operator has yet to approve this worker."""

    code = "approval-pending"
    fault = Fault.CALLER
    retryable = True
    retry_after_s = 5.0


class MissingScope(FedSophiaError):
    """The operator's key is valid and was not made for this."""

    code = "missing-scope"
    fault = Fault.CALLER


class AssertionRefused(FedSophiaError):
    """What a device has signed does not prove what it must."""

    code = "assertion-refused"
    fault = Fault.CALLER


class ClockSkewed(FedSophiaError):
    """What a device has signed is of another time than the server's; the answer says what time it is."""

    code = "clock-skewed"
    fault = Fault.CALLER

    @property
    def server_ms(self) -> int | None:
        """The server's time, where it is known."""
        return self.args[1] if len(self.args) > 1 else None


# --- resources ---------------------------------------------------------------------------------


class NotFound(FedSophiaError):
    """There is no such resource, or this caller may not know of it."""

    code = "not-found"
    fault = Fault.CALLER


class MethodNotAllowed(FedSophiaError):
    """The resource exists and does not answer this method."""

    code = "method-not-allowed"
    fault = Fault.CALLER


class UnsupportedMediaType(FedSophiaError):
    """The body's Content-Type is not the one this endpoint takes."""

    code = "unsupported-media-type"
    fault = Fault.CALLER


class RangeNotSatisfiable(FedSophiaError):
    """The requested byte range lies outside the resource."""

    code = "range-not-satisfiable"
    fault = Fault.CALLER


class LengthRequired(FedSophiaError):
    """An upload must state its Content-Length."""

    code = "length-required"
    fault = Fault.CALLER


class UnknownTensors(FedSophiaError):
    """A run names a digest under which nothing has been stored."""

    code = "unknown-tensors"
    fault = Fault.CALLER


# --- rounds and updates ------------------------------------------------------------------------


class RoundClosed(FedSophiaError):
    """The round of this assignment takes no more updates."""

    code = "round-closed"
    fault = Fault.CALLER


class TooStale(FedSophiaError):
    """The update was made from a version that is too many versions old by now."""

    code = "too-stale"
    fault = Fault.CALLER


class RunEnded(FedSophiaError):
    """The run has ended."""

    code = "run-ended"
    fault = Fault.CALLER


class AssignmentDeclined(FedSophiaError):
    """The worker declined this assignment earlier."""

    code = "assignment-declined"
    fault = Fault.CALLER


class UpdateConflict(FedSophiaError):
    """Another update was already received for this assignment."""

    code = "update-conflict"
    fault = Fault.CALLER


class UploadInProgress(FedSophiaError):
    """Another request is sending the body of this upload right now."""

    code = "upload-in-progress"
    fault = Fault.CALLER
    retryable = True


class UploadInterrupted(FedSophiaError):
    """The body stopped arriving before it was whole."""

    code = "upload-interrupted"
    fault = Fault.CALLER
    retryable = True


class UploadOffsetMismatch(FedSophiaError):
    """A part of a body does not begin where those before it end."""

    code = "upload-offset-mismatch"
    fault = Fault.CALLER


class QuorumMissing(FedSophiaError):
    """The round has too few updates to be closed with an aggregate."""

    code = "quorum-missing"
    fault = Fault.CALLER
    retryable = True


# --- limits of a server ------------------------------------------------------------------------


class TooManyUploads(FedSophiaError):
    """As many bodies are arriving as the server takes at a time, of this worker or of all."""

    code = "too-many-uploads"
    fault = Fault.CALLER
    retryable = True


class TooManyWaiting(FedSophiaError):
    """As many requests wait for an assignment as the server lets wait, of this worker or of all."""

    code = "too-many-waiting"
    fault = Fault.CALLER
    retryable = True


class HeadersTooLarge(FedSophiaError):
    """A request's line and headers are longer than the server takes."""

    code = "headers-too-large"
    fault = Fault.CALLER


class ModelTooLarge(FedSophiaError):
    """A model has more tensors, or more values, than the server takes."""

    code = "model-too-large"
    fault = Fault.CALLER


class TooManyExamples(FedSophiaError):
    """A worker claims more examples than the server believes."""

    code = "too-many-examples"
    fault = Fault.CALLER


class RunDiskFull(FedSophiaError):
    """The updates of the run take as much disk as the server gives one run."""

    code = "run-disk-full"
    fault = Fault.SERVER
    retryable = True
    retry_after_s = 10.0


class TooManyRequests(FedSophiaError):
    """More requests come, from this worker or from this address, than the server answers."""

    code = "too-many-requests"
    fault = Fault.CALLER
    retryable = True

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


# --- the server itself -------------------------------------------------------------------------


class Internal(FedSophiaError):
    """The server failed; its log has the reason."""

    code = "internal"
    fault = Fault.SERVER
    retryable = True


class NotReady(FedSophiaError):
    """The server is starting, stopping, or cannot reach its store."""

    code = "not-ready"
    fault = Fault.SERVER
    retryable = True


class StorageCorrupt(FedSophiaError):
    """Stored bytes are missing or do not have the digest they are filed under."""

    code = "storage-corrupt"
    fault = Fault.SERVER


class StorageNotWritable(FedSophiaError):
    """The server's disk is full, read-only or failing, or its object store takes nothing."""

    code = "storage-not-writable"
    fault = Fault.SERVER
    retryable = True


class StorageUnavailable(FedSophiaError):
    """The server's object store does not give what is kept in it, for now."""

    code = "storage-unavailable"
    fault = Fault.SERVER
    retryable = True


# --- the worker's side and the command line ------------------------------------------------------


class ServerUnreachable(FedSophiaError):
    """No answer came from the server."""

    code = "server-unreachable"
    fault = Fault.PEER
    retryable = True


class ServerNotTrusted(FedSophiaError):
    """The server does not prove to be the one that was meant."""

    code = "server-not-trusted"
    fault = Fault.PEER


class UnexpectedAnswer(FedSophiaError):
    """The server answered something this version does not understand."""

    code = "unexpected-answer"
    fault = Fault.PEER


class InvalidTask(FedSophiaError):
    """A task cannot be loaded, or does not give what a task must give."""

    code = "invalid-task"
    fault = Fault.CALLER


class DataUnavailable(FedSophiaError):
    """A data set is on none of the places it was looked for."""

    code = "data-unavailable"
    fault = Fault.CALLER


class DeviceUnavailable(FedSophiaError):
    """The device asked for is not on this machine."""

    code = "device-unavailable"
    fault = Fault.CALLER


class LocalStateCorrupt(FedSophiaError):
    """A worker's saved state cannot be read."""

    code = "local-state-corrupt"
    fault = Fault.CALLER


class MalformedArchive(FedSophiaError):
    """A file is no archive of a run, is cut short, or holds something that has no place in one."""

    code = "malformed-archive"
    fault = Fault.CALLER


class StateNotWritable(FedSophiaError):
    """A worker's state directory cannot be written to: it is full, read-only or another's."""

    code = "state-not-writable"
    fault = Fault.CALLER


class MigrationFailed(FedSophiaError):
    """The database could not be brought to this version's schema, and is as it was before."""

    code = "migration-failed"
    fault = Fault.SERVER


class InvalidUsage(FedSophiaError):
    """A command was given options that do not go together."""

    code = "invalid-usage"
    fault = Fault.CALLER


def every_error() -> list[type[FedSophiaError]]:
    """Every class under the root that has a code of its own, in alphabetical order of code."""
    return sorted(FedSophiaError.__subclasses__(), key=lambda error: error.code)
