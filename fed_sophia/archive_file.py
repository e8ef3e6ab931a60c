# SPDX-License-Identifier: Apache-2.0
"""The file of a run's archive: a plain tar of `run.json` and `tensors/<digest>`, and nothing else.

Writing gives the same bytes for the same contents: no times, owners or rights of this machine. Reading
extracts nothing and believes nothing: one 512-byte header at a time, regular files of these names alone,
every length bounded before its bytes are read, every tensor hashed. `docs/reference/run-archive.md`
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from protocol.errors import DigestMismatch, InvalidMessage, MalformedArchive, MessageTooLarge
from protocol.header import DEFAULT_LIMITS
from protocol.run_archive import MAX_DOCUMENT_BYTES, RunArchive, read_document

DOCUMENT = "run.json"
TENSORS = "tensors/"
_BLOCK = 512
_CHUNK = 1024 * 1024
_END = bytes(2 * _BLOCK)
_MAX_PADDING = 1024 * 1024  # tar programs fill the last record; none is longer than this


@dataclass(frozen=True)
class Place:
    """Where a member's bytes lie in the file."""

    offset: int
    size_bytes: int


class ArchiveWriter:
    """Writes an archive from its beginning to its end, in chunks of any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes = 0
        self._left = 0  # bytes of the open member still to come

    def document(self, archive: RunArchive) -> None:
        """Write `run.json`, the first member.

        Raises:
            MessageTooLarge: it is longer than an archive may hold.
        """
        text = archive.model_dump_json().encode()
        if len(text) > MAX_DOCUMENT_BYTES:
            raise MessageTooLarge(f"{DOCUMENT}: {len(text)} bytes; at most {MAX_DOCUMENT_BYTES} are written")
        self._begin(DOCUMENT, len(text))
        self.write(text)

    def tensor(self, digest: str, size_bytes: int) -> None:
        """Begin a tensor message of so many bytes; all of them must be written next."""
        self._begin(TENSORS + digest, size_bytes)

    def write(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        assert self._left >= 0, "more than was announced"
        self._put(chunk)
        if not self._left:
            self._put(bytes(-self.size_bytes % _BLOCK))

    def end(self) -> None:
        assert not self._left, "less than was announced"
        self._put(_END)

    def _begin(self, name: str, size_bytes: int) -> None:
        assert not self._left, "less than was announced"
        info = tarfile.TarInfo(name)  # owner 0, rights 0644, time 0
        info.size = self._left = size_bytes
        self._put(info.tobuf(tarfile.GNU_FORMAT))  # its way to write sizes from 8 GiB is the common one

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.size_bytes += len(data)


class ArchiveReader:
    """Reads an archive and checks all of it; of no use after it raised."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self.archive: RunArchive
        self.expected: dict[str, int] = {}
        """{digest: version} of the tensors that `run.json` says are here, once it has been read."""
        self.places: dict[str, Place] = {}
        """{digest: where its bytes lie}, once `check` has come to its end."""

    def check(self) -> Iterator[int]:
        """Read to the end; yields how many bytes have been read, often enough to be stopped in between.

        Raises:
            MalformedArchive: it is no archive, is cut short, or holds something else.
            MessageTooLarge: a member is longer than it may be.
            InvalidMessage: `run.json` says what no run can be.
            DigestMismatch: a tensor's bytes are not those that its name says.
        """
        yield from self._read_document()
        self.expected = self.archive.digests_of(self.archive.included)
        while (member := self._next_member()) is not None:
            digest = member.name.removeprefix(TENSORS)
            if member.name != TENSORS + digest or digest not in self.expected:
                raise MalformedArchive(
                    f"{_shown(member.name)}: expected tensors/ and the digest of a version that is included"
                )
            if digest in self.places:
                raise MalformedArchive(f"{member.name}: stands twice")
            self.places[digest] = Place(self._position, member.size)
            yield from self._check_tensor(digest, member.size)
        yield from self._check_padding()
        for digest, version in self.expected.items():
            if digest not in self.places:
                raise MalformedArchive(f"tensors/{digest}, of version {version}: is missing")

    def _read_document(self) -> Iterator[int]:
        member = self._next_member()
        if member is None or member.name != DOCUMENT:
            found = "nothing" if member is None else _shown(member.name)
            raise MalformedArchive(f"expected {DOCUMENT} first, found {found}")
        if member.size > MAX_DOCUMENT_BYTES:
            raise MessageTooLarge(f"{DOCUMENT}: {member.size} bytes; at most {MAX_DOCUMENT_BYTES} are read")
        text = b"".join(self._content(DOCUMENT, member.size))
        yield self._position
        try:
            self.archive = read_document(text)
        except InvalidMessage as error:
            raise InvalidMessage(_printable(error.detail)) from None

    def _check_tensor(self, digest: str, size_bytes: int) -> Iterator[int]:
        sha256 = hashlib.sha256()
        for chunk in self._content(TENSORS + digest, size_bytes):
            sha256.update(chunk)
            yield self._position
        if sha256.hexdigest() != digest:
            raise DigestMismatch(f"tensors/{digest}: its bytes have the digest {sha256.hexdigest()}")

    def _next_member(self) -> tarfile.TarInfo | None:
        """The header of the next member; None at the mark of the end."""
        block = self._read(_BLOCK, "a header")
        if not any(block):
            return None
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise MalformedArchive(
                f"expected a plain tar: {error} at byte {self._position - _BLOCK}"
            ) from None
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise MalformedArchive(f"{_shown(member.name)}: expected a regular file (type {member.type!r})")
        if not 0 <= member.size <= DEFAULT_LIMITS.message_bytes:
            raise MessageTooLarge(
                f"{_shown(member.name)}: {member.size} bytes; at most {DEFAULT_LIMITS.message_bytes} are read"
            )
        return member

    def _content(self, name: str, size_bytes: int) -> Iterator[bytes]:
        for start in range(0, size_bytes, _CHUNK):
            yield self._read(min(_CHUNK, size_bytes - start), name)
        self._read(-size_bytes % _BLOCK, name)

    def _check_padding(self) -> Iterator[int]:
        """After the first block of zeros comes a second, perhaps more, and nothing else."""
        zeros = self._read(_BLOCK, "the mark of the end") + self._file.read(_MAX_PADDING)
        if any(zeros) or self._file.read(1):
            raise MalformedArchive(f"something follows the end at byte {self._position}")
        yield self._position

    def _read(self, size_bytes: int, what: str) -> bytes:
        data = self._file.read(size_bytes)
        self._position += len(data)
        if len(data) < size_bytes:
            raise MalformedArchive(f"cut short: the file ends at byte {self._position}, inside {what}")
        return data


def chunks_at(file: BinaryIO, place: Place) -> Iterator[bytes]:
    """A member's bytes, once `ArchiveReader` has checked them."""
    file.seek(place.offset)
    for start in range(0, place.size_bytes, _CHUNK):
        yield file.read(min(_CHUNK, place.size_bytes - start))


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}…")


def _printable(detail: str) -> str:
    """What may name a stranger's field, for a terminal: short, and without a character that moves it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in detail[:300])
