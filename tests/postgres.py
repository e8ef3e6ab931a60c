# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL of the tests' own, on a free port of loopback."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STARTS_WITHIN_S = 60


def binaries() -> Path | None:
    """Where PostgreSQL's programs are; None: nowhere."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian's
    if found := shutil.which("initdb"):
        folders.append(Path(found).resolve().parent)
    needed = ("initdb", "postgres", "pg_isready", "psql", "pg_dump", "pg_restore")
    return next((each for each in folders if all((each / name).exists() for name in needed)), None)


class Postgres:
    """One data directory, and the server on it while there is one."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self._binaries = programs
        self.directory = directory
        self._user = self._owner()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        # of another order than that of bytes, as a database that somebody has is likely to be
        locale = ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"]
        self._run("initdb", "-D", str(directory), "-U", "postgres", "--auth=trust", "--no-sync", *locale)

    @staticmethod
    def _owner() -> str | None:
        """PostgreSQL does not run as root: who it is to be then."""
        if os.getuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in known else "nobody"

    def _run(self, program: str, *arguments: str) -> None:
        if self._user is not None:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            shutil.chown(self.directory, self._user)
        subprocess.run(
            [str(self._binaries / program), *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            cwd="/",
            timeout=STARTS_WITHIN_S,
        )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self, *options: str) -> None:
        """Serve; come back once it does."""
        log = (self.directory.parent / f"{self.directory.name}.log").open("ab")
        options = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", *options)
        with log:
            self.process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.directory), "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd="/",
            )
        until = time.monotonic() + STARTS_WITHIN_S
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"PostgreSQL did not start:\n{Path(log.name).read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, as by `pg_ctl stop -m immediate`: what was committed is there at the next start."""
        if self.process is not None:
            self.process.send_signal(3)  # SIGQUIT
            self.process.wait(STARTS_WITHIN_S)
            self.process = None

    def move_to(self, directory: Path) -> None:
        """Have the data elsewhere, and serve it from there the next time."""
        self.directory.rename(directory)
        self.directory = directory

    def create(self, database: str) -> str:
        """A new, empty database; its URL."""
        self._psql("-c", f'CREATE DATABASE "{database}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        self._psql("-c", f'DROP DATABASE "{database}" WITH (FORCE)')

    def load(self, database: str, file: Path) -> str:
        """A new database with what a file of statements puts into it; its URL."""
        url = self.create(database)
        self._psql("-v", "ON_ERROR_STOP=1", "-f", str(file), url=url)
        return url

    def dump(self, url: str, file: Path) -> None:
        """Back a database up, as it is at this moment."""
        self._ask("pg_dump", "--format=custom", f"--file={file}", url)

    def restore(self, file: Path, url: str) -> None:
        """Put what was dumped into an empty database."""
        options = ("--no-owner", "--exit-on-error", "--single-transaction")
        self._ask("pg_restore", *options, f"--dbname={url}", str(file))

    def _psql(self, *arguments: str, url: str | None = None) -> None:
        self._ask("psql", "-q", "-X", "-d", url or self.url(), *arguments)

    def _ask(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binaries / program), *arguments],
            check=True,
            capture_output=True,
            timeout=STARTS_WITHIN_S,
        )


FAST = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200")
"""For tests in which nothing loses its power."""


@contextmanager
def a_postgres(require_part: Callable[[bool, str], None], *options: str) -> Iterator[Postgres]:
    """A server that is there while this is open; skips the tests, or fails them, where none is installed."""
    programs = binaries()
    require_part(programs is not None, "PostgreSQL")
    assert programs is not None
    with tempfile.TemporaryDirectory(prefix="fed-sophia-postgres-") as folder:
        Path(folder).chmod(0o755)  # for who is not root
        postgres = Postgres(Path(folder) / "data", programs)
        try:
            postgres.start(*options)
            yield postgres
        finally:
            postgres.stop()
