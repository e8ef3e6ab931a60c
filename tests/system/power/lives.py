# SPDX-License-Identifier: Apache-2.0
"""Lives whose power may fail at any moment, and the law that must hold of what is then found.

A life is a function that works on a real directory and is handed an `fsync`. It is lived once; at each sync,
before and after, and at each word that it gives, the disk is asked what a power cut would leave. The law is
asked of each answer, together with what had been promised by then.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, NamedTuple, TypeVar

from protocol.errors import FedSophiaError
from tests.system.power.unsynced import Disk, Tree, lay_out, zeros

Promised = TypeVar("Promised")
Torn = Callable[[int], bytes]

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where lives take place: the only disk that counts is the model, and there are thousands of directories."""


class Sync(NamedTuple):
    """Which of the syncs of a life."""

    doing: str
    kind: str
    path: str
    time: int = 1
    """1 for the first of this path while doing this."""

    def __str__(self) -> str:
        return f"while {self.doing}, sync {self.time} of the {self.kind} {self.path}"


class Moment(NamedTuple, Generic[Promised]):
    """What a power cut leaves, and what had been promised by then."""

    when: str
    tree: Tree
    promised: Promised


class Killed(BaseException):
    """The process ends here; what it wrote stays in the system's memory."""


@dataclass
class Witness(Generic[Promised]):
    """Is told what a life does and promises, and keeps every moment at which the power could have failed."""

    disk: Disk
    promised: Promised
    ignored: Sync | None = None
    """This one has no effect, as if the product did not ask for it."""
    killed_at: tuple[int, str] | None = None
    """The process ends at this sync, from 0, "before" or "after" it has its effect; once."""
    written_back_at: int | None = None
    """Before this sync, from 0, the system writes all names to the disk, which it may do at any time."""
    syncs: list[Sync] = field(default_factory=list)
    moments: dict[tuple[Tree, Promised], Moment[Promised]] = field(default_factory=dict)
    _doing: str = "nothing"
    _again: str = ""
    _times: Counter[tuple[str, str]] = field(default_factory=Counter)

    def fsync(self, descriptor: int) -> None:
        kind, path = self.disk.described(descriptor)
        path = _without_chance(path)
        self._times[kind, path] += 1
        sync = Sync(self._doing, kind, path, self._times[kind, path])
        self.syncs.append(sync)
        if len(self.syncs) - 1 == self.written_back_at:
            self.disk.write_back()
        self._look(f"before: {sync}")
        self._die(sync, "before")
        if sync != self.ignored:
            self.disk.fsync(descriptor)
        self._look(f"after: {sync}")
        self._die(sync, "after")

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Everything inside is part of this."""
        self._doing, self._times = f"{what}{self._again}", Counter()
        yield
        self._look(f"at the end of {what}")

    def promise(self, **promises: Any) -> None:
        """From now on this holds, also of what is on the disk at this moment."""
        self.promised = replace(self.promised, **promises)  # type: ignore[type-var]
        self._look(f"promised: {promises}")

    def _look(self, when: str) -> None:
        for tree in self.disk.after_power_cut():
            alike = frozenset((_without_chance(path), content) for path, content in tree)
            self.moments.setdefault((alike, self.promised), Moment(when, tree, self.promised))

    def _die(self, sync: Sync, side: str) -> None:
        if not self._again and self.killed_at == (len(self.syncs) - 1, side):
            self._again = " after the kill"
            raise Killed(str(sync))


class Law(Generic[Promised]):
    """What must be true of anything that a power cut leaves of a life."""

    def __init__(
        self,
        life: Callable[[Path, Witness[Promised]], None],
        at_first: Promised,
        holds: Callable[[Path, Promised], None],
    ) -> None:
        """Args: holds: opens what was found, and raises if a promise was broken."""
        self._life = life
        self._at_first = at_first
        self._holds = holds
        self._kept: set[tuple[Tree, Promised]] = set()
        """Asked before, and true: lives have most of their moments in common."""

    def witnessed(
        self,
        ignored: Sync | None = None,
        killed_at: tuple[int, str] | None = None,
        written_back_at: int | None = None,
        torn: Torn = zeros,
    ) -> Witness[Promised]:
        """Live the life; if it is killed, live it again on what it left, until it comes to its end."""
        with TemporaryDirectory(dir=IN_MEMORY) as place, Disk(Path(place), torn) as disk:
            witness = Witness(disk, self._at_first, ignored, killed_at, written_back_at)
            try:
                self._life(Path(place), witness)
            except Killed:
                self._life(Path(place), witness)
            return witness

    def broken(self, witness: Witness[Promised]) -> str | None:
        """A moment that breaks the law, in words; None if there is none."""
        for key, moment in reversed(witness.moments.items()):
            if key not in self._kept:
                with TemporaryDirectory(dir=IN_MEMORY) as place:
                    lay_out(moment.tree, Path(place))
                    try:
                        self._holds(Path(place), moment.promised)
                    except (AssertionError, FedSophiaError, OSError) as error:
                        return f"{moment.when}: {type(error).__name__}: {error}\n{_listing(moment.tree)}"
                self._kept.add(key)
        return None

    def unnoticed(self, granted: Sequence[str] = ()) -> list[str]:
        """The syncs of an undisturbed life, beside those granted, that could be left out and break no law."""
        syncs = {str(sync): sync for sync in self.witnessed().syncs}
        assert len(syncs) == len(self.witnessed().syncs), "each has a name of its own"
        for name in granted:
            missed = self.broken(self.witnessed(syncs[name]))
            assert missed is None, f"granted, and yet needed: {name}\n{missed}"
        return [
            name
            for name, sync in syncs.items()
            if name not in granted
            and self.broken(self.witnessed(sync)) is None
            and self.first_broken(self.written_back(sync)) is None
        ]

    def written_back(self, ignored: Sync | None = None) -> Iterator[Witness[Promised]]:
        """The lives in which the system writes names back unasked, one life a moment."""
        for number in range(len(self.witnessed().syncs)):
            yield self.witnessed(ignored, written_back_at=number)

    def killed(self, ignored: Sync | None = None) -> Iterator[Witness[Promised]]:
        """The lives in which the process is killed at a sync and started again, one life a sync and side."""
        for number in range(len(self.witnessed().syncs)):
            for side in ("before", "after"):
                yield self.witnessed(ignored, (number, side))

    def first_broken(self, witnesses: Iterable[Witness[Promised]]) -> str | None:
        """The first that breaks the law, in words."""
        return next(filter(None, map(self.broken, witnesses)), None)


@cache
def _without_chance(path: str) -> str:
    """The same in every life, although files on their way have names drawn at random."""
    return re.sub(r"\b[0-9a-f]{32}\b", "*", path)


def _listing(tree: Tree) -> str:
    lines = [
        path + os.sep if content is None else f"{path} ({len(content)} bytes)"
        for path, content in sorted(tree, key=lambda entry: entry[0])
    ]
    return "\n".join(line for line in lines if not line.startswith("blobs/") or "(" in line)
