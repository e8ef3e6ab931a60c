# SPDX-License-Identifier: Apache-2.0
"""What a round cannot cost less than on this machine now, done by the plainest possible processes.

Both floors move what a round moves: the model to each worker, and as much back from it.

    tcp      the bytes alone, through one socket pair on loopback, from one process to another and back
    honest   one process serves a model file to N processes at a time; each hashes what it receives, hashes,
             writes and fsyncs an update (it must outlive a crash of the worker), and sends it from its file;
             the server hashes it, writes it to a file and fsyncs it; at the end it adds up the updates and
             hashes, writes and fsyncs the next model

No HTTP, no checks, no database, no waiting for one another but at the end of the round.
"""

import hashlib
import multiprocessing
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

CHUNK_BYTES = 1024 * 1024
PEER_STARTS_WITHIN_S = 60.0
_FORK = multiprocessing.get_context("forkserver")  # a process with threads must not be forked itself
# each process loads anew what the main program imports, 0.7 s of a core, unless it is there already
_FORK.set_forkserver_preload([__name__, "benchmarks.exchange.rounds"])


@dataclass(frozen=True)
class Work:
    """What a round moves."""

    model_bytes: int
    workers: int


@dataclass(frozen=True)
class HonestRound:
    """What one took."""

    seconds: float
    server_cpu_s: float


def tcp_seconds(work: Work, repeats: int) -> list[float]:
    """Seconds for the bytes of a round, each time."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PEER_STARTS_WITHIN_S)
    total = work.model_bytes * work.workers
    peer = _FORK.Process(target=_echo, args=(listener.getsockname(), total, repeats), daemon=True)
    peer.start()
    taken = []
    with listener, listener.accept()[0] as connection:
        for _ in range(repeats):
            began_s = time.perf_counter()
            _send_zeros(connection, total)
            _receive(connection, total, lambda _: None)
            taken.append(time.perf_counter() - began_s)
    peer.join()
    return taken


def _echo(address: tuple[str, int], total: int, repeats: int) -> None:
    with socket.create_connection(address) as connection:
        for _ in range(repeats):
            _receive(connection, total, lambda _: None)
            _send_zeros(connection, total)


def honest_rounds(work: Work, repeats: int, folder: Path) -> list[HonestRound]:
    """Rounds, one after the other; this process is the server, and nothing else meanwhile."""
    folder.mkdir()
    (folder / "model").write_bytes(os.urandom(work.model_bytes))
    listener = socket.create_server(("127.0.0.1", 0), backlog=work.workers)
    listener.settimeout(PEER_STARTS_WITHIN_S)
    address, begin = listener.getsockname(), [_FORK.Event() for _ in range(repeats)]
    peers = [
        _FORK.Process(target=_worker, args=(address, work, folder / f"sent-{n}", begin), daemon=True)
        for n in range(work.workers)
    ]
    for peer in peers:
        peer.start()
    connections = [listener.accept()[0] for _ in peers]
    taken = []
    for each in begin:
        began_s, cpu_before_s = time.perf_counter(), time.process_time()
        each.set()
        _one_round(work, folder, connections)
        taken.append(HonestRound(time.perf_counter() - began_s, time.process_time() - cpu_before_s))
    for peer, connection in zip(peers, connections, strict=True):
        connection.close()
        peer.join()
    listener.close()
    shutil.rmtree(folder)
    return taken


def _one_round(work: Work, folder: Path, connections: list[socket.socket]) -> None:
    files = [folder / f"update-{number}" for number in range(len(connections))]
    threads = [
        threading.Thread(target=_serve, args=(work, folder / "model", path, connection))
        for path, connection in zip(files, connections, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _aggregate(work, files, folder / "next")


def _serve(work: Work, model: Path, update: Path, connection: socket.socket) -> None:
    _receive_exactly(connection, 1)
    with model.open("rb") as served:
        connection.sendfile(served)
    sha256 = hashlib.sha256()
    with update.open("wb", buffering=0) as file:

        def take(chunk: memoryview) -> None:
            sha256.update(chunk)
            file.write(chunk)

        _receive(connection, work.model_bytes, take)
        os.fsync(file.fileno())
    connection.sendall(sha256.digest())


def _worker(address: tuple[str, int], work: Work, path: Path, begin: list[Event]) -> None:
    update = np.full(work.model_bytes, 1, np.uint8).data
    model = memoryview(bytearray(work.model_bytes))
    with socket.create_connection(address) as connection:
        for each in begin:
            each.wait()
            connection.sendall(b"?")
            sha256 = hashlib.sha256()
            received = 0
            while received < work.model_bytes:
                count = connection.recv_into(model[received : received + CHUNK_BYTES])
                sha256.update(model[received : received + count])
                received += count
            hashlib.sha256(update)
            with path.open("wb", buffering=0) as file:
                _write(file.write, update)
                os.fsync(file.fileno())
            with path.open("rb") as kept:
                connection.sendfile(kept)
            _receive_exactly(connection, 32)


def _aggregate(work: Work, files: list[Path], target: Path) -> None:
    elements = CHUNK_BYTES // 4
    rows = np.empty((len(files), elements), np.float32)
    total = np.empty(elements, np.float32)
    sha256 = hashlib.sha256()
    opened = [path.open("rb", buffering=0) for path in files]
    with target.open("wb", buffering=0) as out:
        for first in range(0, work.model_bytes, CHUNK_BYTES):
            count = min(CHUNK_BYTES, work.model_bytes - first) // 4
            total[:count] = 0
            for file, row in zip(opened, rows, strict=True):
                file.readinto(row[:count].data)
                total[:count] += row[:count]
            sha256.update(total[:count].data)
            out.write(total[:count].data)
        os.fsync(out.fileno())
    for file in opened:
        file.close()


def _send_zeros(connection: socket.socket, size_bytes: int) -> None:
    zeros = memoryview(bytes(CHUNK_BYTES))
    while size_bytes:
        count = min(CHUNK_BYTES, size_bytes)
        connection.sendall(zeros[:count])
        size_bytes -= count


def _receive(connection: socket.socket, size_bytes: int, take: Callable[[memoryview], None]) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while size_bytes:
        filled = 0
        wanted = min(CHUNK_BYTES, size_bytes)
        while filled < wanted:
            count = connection.recv_into(buffer[filled:wanted])
            if not count:
                raise ConnectionError("the other process has ended")
            filled += count
        take(buffer[:wanted])
        size_bytes -= wanted


def _receive_exactly(connection: socket.socket, size_bytes: int) -> None:
    while size_bytes:
        size_bytes -= len(connection.recv(size_bytes)) or size_bytes


def _write(write: Callable[[memoryview], int], data: memoryview) -> None:
    while data:
        data = data[write(data) :]
