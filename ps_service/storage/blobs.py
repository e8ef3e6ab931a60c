# SPDX-License-Identifier: Apache-2.0
"""The blob contract: immutable bytes, each named by its SHA-256.

Duties of a store:

- `stage` gives a place to write to that nobody can read yet; any number may be open at once.
- `Staged.seal(digest)` makes the bytes readable under `digest`, durably: once it has returned, they
  survive a power cut. Sealing a digest that is there already is no error and changes nothing.
- `part(name)` opens what was written under that name before, or begins it: it outlives its writer and a
  crash until it is sealed or discarded. How much of it a power cut leaves is what `part_bytes` then says;
  the bytes up to there are what was written, but for a file system that promises less: the digest tells.
  A store elsewhere that many servers share may lose as much to the end of a process; what `close` has
  returned for any of them goes on from.
- `Staged.discard` leaves no trace; so does a crash before `seal`, at the latest after the next start. It
  never raises: where the disk is read-only for a while, the trace goes once it takes changes again.
- `read_into` never returns fewer bytes than asked for: it fills the buffer or raises.
- A disk that is full, read-only or failing is `StorageNotWritable` out of all that writes (the opening of
  the store, `stage`, `write`, `seal`, `delete`, `check`), never a bare OSError. What was being written is
  discarded by its writer; what was sealed before stays readable, and all works again once the disk does.
- So is a store elsewhere that cannot be reached, refuses us or does not answer within seconds; out of all
  that reads it is `StorageUnavailable`. Neither holds a credential.

Duties of the caller: `seal` is told the true digest (the store does not hash again), the methods block
and are called in a thread, and a blob is deleted only when no row names it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ps_service.storage.addresses import Addresses


class Staged(Protocol):
    """Bytes on their way into the store."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def seal(self, digest: str) -> None: ...

    def discard(self) -> None: ...


class Readable(Protocol):
    """Bytes that are there, whoever has written them."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Read from `offset` on; give how many bytes, 0 at the end."""
        ...


class Part(Staged, Readable, Protocol):
    """Bytes on their way into the store that may pause on it; `write` goes on at the end.

    What is read is what was written, by this writer and those before it.
    """

    def close(self) -> None:
        """Keep what was written, durably; nothing more is written here."""
        ...


class BlobStore(Protocol):
    """Immutable bytes by digest."""

    def stage(self) -> Staged: ...

    def part(self, name: str) -> Part:
        """Args: name: letters, digits and hyphens; one writer at a time."""
        ...

    def part_bytes(self, name: str) -> int:
        """Length of what was written under this name and neither sealed nor discarded; 0 if nothing was."""
        ...

    def parts(self) -> list[str]:
        """The names of all that pauses."""
        ...

    def discard_part(self, name: str) -> None:
        """Forget a part that nobody is writing; no error if there is none. Raises nothing, as `discard`."""
        ...

    def __hash__(self) -> int:
        """A store is equal to itself alone: what is known of a message may be kept by store and digest."""
        ...

    def size(self, digest: str) -> int | None:
        """Length in bytes, None if the store does not have it."""
        ...

    def read_into(self, digest: str, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`.

        Raises:
            StorageCorrupt: the blob is missing or shorter than that.
            StorageUnavailable: a store elsewhere does not give it, for now.
        """
        ...

    def forget(self, digest: str) -> None:
        """What was read of it before may be wrong: it is read again from where it lies."""
        ...

    def digests(self) -> Iterator[str]:
        """All that can be read now, in any order; what comes or goes meanwhile may be among them."""
        ...

    def delete(self, digest: str) -> None:
        """Forget these bytes; no error if they are not there."""
        ...

    def check(self) -> None:
        """Raises: StorageNotWritable: the store cannot be written to."""
        ...

    @property
    def addresses(self) -> "Addresses | None":
        """By which others exchange messages with the store itself; None: only the server reaches it."""
        ...
