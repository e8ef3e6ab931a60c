# SPDX-License-Identifier: Apache-2.0
"""A run of three versions, as a server tells of it and as an archive holds it."""

import gzip
import hashlib
import json
import subprocess
from pathlib import Path
from typing import BinaryIO

import httpx

from fed_sophia.archive import export_run, import_run
from fed_sophia.archive_file import ArchiveReader
from fed_sophia.operator_client import OperatorClient
from fed_sophia.progress import Progress
from fed_sophia.version_choice import Wanted
from protocol.messages import parse
from protocol.run_archive import RunArchive

LAST = 2
MODEL = [{"name": "w", "shape": [1]}]
Blobs = dict[str, bytes]


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# {digest: bytes}; the client looks no further than at the digest
TENSORS: Blobs = {digest_of(content): content for content in (b"first" * 100, b"second" * 300, b"third" * 1)}
PARAMS = list(TENSORS)
SPEC = {
    "name": "n",
    "task": "t",
    "algorithm": "fedavg",
    "model": MODEL,
    "params_digest": PARAMS[0],
    "rounds": 5,
    "cohort_size": 1,
    "quorum": 1,
}


def a_round(number: int, status: str = "committed", **changes: object) -> dict:
    fields = {
        "round": number,
        "status": status,
        "base_version": number - 1,
        "version": number if status == "committed" else None,
        "invited": 1,
        "admitted": 1,
        "declined": 0,
        "opened_ms": 10 * number,
        "deadline_ms": 1000,
        "ended_ms": None if status == "collecting" else 10 * number + 5,
        "bytes_up": 7,
        "bytes_down": 8,
        "metrics": {"train_loss": 0.5 / number},
    }
    return fields | changes


class FakeServer(httpx.AsyncBaseTransport):
    """One run as a server tells of it, and what it is sent; what it lacks it says so."""

    def __init__(self, blobs: Blobs | None = None) -> None:
        self.blobs = dict(TENSORS if blobs is None else blobs)
        self.status = "paused"
        self.rounds = [a_round(1), a_round(2), a_round(3, "collecting")]
        self.versions = [
            {"version": number, "tensors": {"params": digest}, "created_ms": number}
            for number, digest in enumerate(PARAMS)
        ]
        self.imported: list[dict] = []
        self.asked: list[str] = []
        self.forget_once: set[str] = set()

    def client(self) -> OperatorClient:
        return OperatorClient("http://server.test", "key", transport=self)

    async def export(self, path: Path, wanted: Wanted = "last") -> list[Progress]:
        told: list[Progress] = []
        async with self.client() as client:
            await export_run(client, "r", wanted, path, told.append)
        return told

    async def take(self, path: Path, name: str | None = None) -> None:
        async with self.client() as client:
            await import_run(client, path, name, lambda progress: None)

    def summary(self) -> dict:
        ended = {"ended_ms": 99} if self.status == "finished" else {}
        fields = {"run_id": "r", "spec": SPEC, "status": self.status, "round": 3, "version": 2, "tensors": {}}
        return fields | {"members": 1, "created_ms": 1} | ended

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        digest = path.rpartition("/")[2]
        if request.method == "PUT":
            self.blobs[digest] = await request.aread()
            return httpx.Response(201, json={"digest": digest})
        if request.method == "HEAD":
            return httpx.Response(204 if digest in self.blobs else 404)
        if path == "/v1/runs/import":
            return self._import(json.loads(gzip.decompress(await request.aread())))
        if "/tensors/" in path:
            return self._tensors(digest)
        if path.endswith("/rounds"):
            return httpx.Response(200, json={"rounds": self.rounds})
        if path.endswith("/versions"):
            return httpx.Response(200, json={"versions": self.versions})
        return httpx.Response(200, json=self.summary())

    def _tensors(self, digest: str) -> httpx.Response:
        if digest not in self.blobs:
            return refusal(404, "not-found", f"run r has no tensors {digest}")
        return httpx.Response(200, content=self.blobs[digest])

    def _import(self, document: dict) -> httpx.Response:
        for digest in self.forget_once:
            del self.blobs[digest]
        self.forget_once = set()
        for number in {*document["included"], len(document["versions"]) - 1}:
            for digest in document["versions"][number]["tensors"].values():
                if digest not in self.blobs:
                    return refusal(422, "unknown-tensors", f"version {number}: nothing is stored")
        self.imported.append(document)
        return httpx.Response(201, json=self.summary())


def refusal(status: int, code: str, detail: str) -> httpx.Response:
    fields = {"type": "t", "title": "t", "status": status, "detail": detail, "code": code, "retryable": False}
    return httpx.Response(status, json=fields)


def read(path: Path) -> ArchiveReader:
    with path.open("rb") as file:
        return read_all(file)


def read_all(file: BinaryIO) -> ArchiveReader:
    reader = ArchiveReader(file)
    for _ in reader.check():
        pass
    return reader


def a_document(included: tuple[int, ...] = (LAST,)) -> bytes:
    server = FakeServer()
    fields = {"spec": SPEC, "status": "paused", "created_ms": 1, "rounds": server.rounds[:2]}
    return (
        parse(RunArchive, json.dumps(fields | {"versions": server.versions, "included": included}))
        .model_dump_json()
        .encode()
    )


def tar(folder: Path, arguments: str) -> None:
    """Have the system's own tar do something in a folder."""
    subprocess.run(f"tar {arguments}", cwd=folder, check=True, timeout=30, shell=True)


def files_in(folder: Path) -> dict[str, bytes]:
    """{name: content}."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
