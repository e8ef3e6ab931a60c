# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL and an S3 server of our own: the same as those that the tests start."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import InvalidUsage
from tests.postgres import Postgres, a_postgres
from tests.s3 import S3Server, an_s3_server

DRAIN_S = 0
REQUESTS_PER_S_PER_ADDRESS = 1_000_000
"""All workers have one address here, and none where they are devices."""


@dataclass(frozen=True)
class Stores:
    """What a federation's servers share."""

    database: str
    environment: Mapping[str, str]
    """By which a server finds both."""


class StoreProcesses:
    """The two processes, and room for federations in them."""

    def __init__(self, postgres: Postgres, s3: S3Server) -> None:
        self._postgres = postgres
        self._s3 = s3

    @property
    def postgres_pid(self) -> int:
        """Of the process whose children are the connections."""
        assert self._postgres.process is not None
        return self._postgres.process.pid

    @property
    def s3_pid(self) -> int:
        return self._s3.pid

    @property
    def watching_url(self) -> str:
        """A database in which nothing happens: who watches from there is not counted."""
        return self._postgres.url()

    def new(self, name: str, **settings: str) -> Stores:
        """An empty database and an empty prefix; `settings` go to the servers beside them."""
        environment = {
            "FED_SOPHIA_DATABASE_URL": self._postgres.create(name),
            "FED_SOPHIA_BLOBS_URL": self._s3.url(name),
            "FED_SOPHIA_DRAIN_S": str(DRAIN_S),
            "FED_SOPHIA_REQUESTS_PER_S_PER_ADDRESS": str(REQUESTS_PER_S_PER_ADDRESS),
        }
        return Stores(name, self._s3.environment | environment | settings)


@contextmanager
def store_processes() -> Iterator[StoreProcesses]:
    """Both, as they are by default (every commit is synced); they are gone when the block is left.

    Raises:
        InvalidUsage: one of them is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="fed-sophia-s3-") as name:
        folder = Path(name, "s3")
        folder.mkdir()
        with a_postgres(_require) as postgres, an_s3_server(folder, _require) as s3:
            yield StoreProcesses(postgres, s3)


def _require(found: bool, what: str) -> None:
    if not found:
        raise InvalidUsage(f"{what} is missing: the benchmark starts one of its own")
