# SPDX-License-Identifier: Apache-2.0
"""Runs the application in this process: opens the stores, listens, stops cleanly when asked to."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvicorn

from protocol.errors import StorageNotWritable
from ps_service.allocator import keep_freed_memory
from ps_service.app import create_app
from ps_service.clock import SystemClock
from ps_service.collector import collect_seldom
from ps_service.connections import connection_options
from ps_service.given_key import admit, given_key
from ps_service.listening import BACKLOG, allow_many_connections, listen
from ps_service.service import Service
from ps_service.settings import Settings
from ps_service.storage import Stores, credential_records, directory_lock
from ps_service.storage.not_writable import writing_files
from ps_service.storage.open_blobs import open_blobs
from ps_service.storage.records import open_records
from ps_service.tls import TlsArguments, tls_arguments

log = logging.getLogger("fed_sophia.server")

AUDIT_LOG = "audit.jsonl"
CLOCK_MAY_BE_BEHIND_S = 60.0
DISK_THREADS = 32
"""They mostly wait for the disk: as many as there are processors would queue behind one another's fsyncs."""

OpensStores = Callable[[Path], Awaitable[Stores]]


async def open_stores(settings: Settings, directory: Path) -> Stores:
    """What the settings name, or else SQLite and files in this directory."""
    blobs = open_blobs(settings, directory)
    url = settings.database_url.get_secret_value()
    return Stores(await open_records(url or directory / "records.sqlite"), blobs)


def serve(settings: Settings, announce: Callable[[str], None], stores: OpensStores | None = None) -> None:
    """Serve until SIGINT or SIGTERM; call `announce(url)` once requests are answered.

    Args: stores: opens what the server keeps in its data directory; None: `open_stores`.

    Raises:
        InvalidUsage: the address or the data directory is another's, or the files of TLS, of the operator's
            key, or the object store cannot be used.
        StorageNotWritable: the disk of the data directory is full, read-only or failing.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    tls = tls_arguments(settings)
    key_file = settings.server_operator_key_file
    key = None if key_file is None else given_key(key_file)
    os.umask(0o077)  # all that is made is the operator's own, also in a directory that others may enter
    allow_many_connections()
    keep_freed_memory()
    # the loop uvicorn would choose: uvloop where it is installed
    loop_factory = uvicorn.Config("ps_service.app:create_app", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            runner.run(_serve(settings, tls, key, announce, stores or partial(open_stores, settings)))
        except StorageNotWritable as error:
            raise StorageNotWritable(f"data directory {settings.server_data_dir}: {error.detail}") from error


async def _serve(
    settings: Settings,
    tls: TlsArguments,
    key: str | None,
    announce: Callable[[str], None],
    open_: OpensStores,
) -> None:
    directory = settings.server_data_dir
    with writing_files():
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = directory_lock.hold(directory)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(DISK_THREADS, "disk"))
    listener = listen(settings)
    stores = await open_(directory)
    try:
        await stores.records.check()
        await asyncio.to_thread(stores.blobs.check)
        app = create_app(settings, stores, await _clock(stores), directory / AUDIT_LOG)
        service: Service = app.state.service
        if key is None:
            await service.operator_keys.make_first_credentials(directory)
        else:
            await admit(key, stores, service.clock, service.audit)
        host, port = listener.getsockname()[:2]
        scheme = "https" if tls else "http"
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
                **connection_options(settings),
                **tls,
            ),
            service,
            lambda: announce(url),
        )
        collecting = asyncio.create_task(collect_seldom())
        try:
            await server.serve(sockets=[listener])
        finally:
            collecting.cancel()
    finally:
        await stores.records.close()
        os.close(lock)


async def _clock(stores: Stores) -> SystemClock:
    """A clock that goes on from the last time that is written down."""
    async with stores.records.read() as connection:
        last_ms = await credential_records.latest_ms(connection)
        now_ms = await stores.records.now_ms(connection)
    if stores.records.shared:  # others go on writing times down: the database's are the ones that count
        return SystemClock(utc_ns=lambda: now_ms * 1_000_000)
    behind_s = last_ms / 1000 - time.time()
    if behind_s > CLOCK_MAY_BE_BEHIND_S:
        log.warning(
            "the machine's clock is %.0f s behind the last time that was written down here; this server "
            "goes on from there. If it was that time that was wrong, all times it gives are ahead",
            behind_s,
        )
    return SystemClock(not_before_ms=last_ms)


class _Server(uvicorn.Server):
    """uvicorn, which says when it is ready, sends waiting requests home, and ends without a signal."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        log.info("stopping (%s)", signal.Signals(number).name)
        self._service.stop_waiting()
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True
