# SPDX-License-Identifier: Apache-2.0
"""The parameter server, on stores in which it can die before and after each commit, fsync and delete.

A blob is renamed between the fsync of its file and that of its directory: the points after the one and
before the other lie before and after the rename. An effect begins when the commit that asks for it is done
(`+effects`) and ends with the commit that ticks it off (`~effects`): the points around these two commits lie
before and after the effect, and those around the fsyncs of a `state` within it.
"""

import os
import re
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.server import serve
from ps_service.settings import Settings
from ps_service.storage import Stores
from ps_service.storage.files import FileBlobs
from ps_service.storage.sqlite_records import SqliteRecords
from tests.system.crash.steps import Steps, path_of, shown

_WRITES = re.compile(r"\s*(INSERT(?: OR \w+)? INTO|UPDATE|DELETE FROM)\s+(\w+)")
_SIGN = {"I": "+", "U": "~", "D": "-"}


@dataclass(frozen=True)
class ServerOrders:
    """Where to listen, where to keep things, and whether to die."""

    port: int
    data_dir: Path
    deaths: Path | None


def be_the_server(orders: ServerOrders) -> None:
    """Serve until SIGTERM, or until the first point at which nobody has died."""
    steps = Steps(orders.deaths)

    async def open_stores(directory: Path) -> Stores:
        opened = await SqliteRecords.open(directory / "records.sqlite")
        return Stores(MortalRecords(opened, steps), MortalBlobs(directory, steps))

    serve(Settings(port=orders.port, server_data_dir=orders.data_dir), lambda _url: None, open_stores)


class MortalRecords(SqliteRecords):
    """Records whose commits are steps, each named by the tables it changes: +added, ~updated, -deleted."""

    def __init__(self, opened: SqliteRecords, steps: Steps) -> None:
        super().__init__(opened.engine)
        self._steps = steps
        self._changed: set[str] = set()  # by the one open write transaction
        event.listen(self.engine.sync_engine, "before_cursor_execute", self._note)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with super().write() as connection:
            self._changed.clear()
            yield connection
            changed = " ".join(sorted(self._changed))
            if changed:
                self._steps.reached(f"before commit of {changed}")
        if changed:
            self._steps.reached(f"after commit of {changed}")

    def _note(self, _connection: Connection, _cursor: object, statement: str, *_more: object) -> None:
        if found := _WRITES.match(statement):
            self._changed.add(_SIGN[found[1][0]] + found[2])


class MortalBlobs(FileBlobs):
    """Blobs whose fsyncs and deletes are steps."""

    def __init__(self, directory: Path, steps: Steps) -> None:
        super().__init__(directory, MortalSync(directory, steps))
        self._steps = steps

    def delete(self, digest: str) -> None:
        with self._steps.step("delete of a blob"):
            super().delete(digest)


class MortalSync:
    """An fsync that is a step, named by the directory and by the kind of message that was staged last."""

    def __init__(self, root: Path, steps: Steps) -> None:
        self._root = root
        self._steps = steps
        self._staged = threading.local()  # a message is sealed in one thread from beginning to end

    def __call__(self, descriptor: int) -> None:
        path = path_of(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._staged.kind = kind_of(path)
        kind = getattr(self._staged, "kind", "nothing")
        with self._steps.step(f"fsync of {shown(path, self._root)} with {kind}"):
            os.fsync(descriptor)


def kind_of(path: Path) -> str:
    """What a staged file begins as: an `update`, a `state`, or something `else`."""
    with path.open("rb") as file:
        beginning = file.read(64)
    return next((kind for kind in ("update", "state") if kind.encode() in beginning), "else")
