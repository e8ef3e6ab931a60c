# SPDX-License-Identifier: Apache-2.0
"""Whether the blob store can be written, read, listed and deleted from."""

import secrets
import tempfile
import time
from pathlib import Path

from protocol.errors import FedSophiaError, StorageNotWritable
from ps_service.doctor.data_directory import PROBE_BYTES, probe
from ps_service.doctor.finding import Finding, error, ok, warning
from ps_service.settings import Settings
from ps_service.storage.not_writable import writing_files
from ps_service.storage.open_blobs import open_blobs

SLOW_MS = 2000.0


def check_blobs(settings: Settings) -> Finding:
    """Whether a probe survives the way in and out, and how long it takes."""
    return _objects(settings) if settings.blobs_url else _files(settings.server_data_dir)


def _files(directory: Path) -> Finding:
    """Beside the server's own: what is no digest in there is none of the store's."""
    folder = directory / "blobs"
    if not folder.exists():
        return ok(f"files in {folder}, which the first start makes")
    began_s = time.perf_counter()
    try:
        with writing_files():
            probe(folder)
    except StorageNotWritable as met:
        return error(
            f"{folder}: {met.detail}",
            "free some space, mount the disk for writing, or give the directory to the server's user",
        )
    return _told(f"files in {folder}", began_s)


def _objects(settings: Settings) -> Finding:
    """With a spool of its own: that of the data directory may be a running server's."""
    began_s = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="fed-sophia-doctor-") as spool:
            store = open_blobs(settings, Path(spool))
            from ps_service.storage.objects import ObjectBlobs

            assert isinstance(store, ObjectBlobs)
            store.check()
            key, data = f"checks/{secrets.token_hex(8)}", secrets.token_bytes(PROBE_BYTES)
            store.objects.put(key, data)
            try:
                read = store.objects.read(key, 0, len(data))
                listed = [found for found, _ in store.objects.list(key.rpartition("/")[0])]
            finally:
                store.objects.delete([key])
    except FedSophiaError as met:
        return error(
            met.detail,
            "see FED_SOPHIA_BLOBS_URL in the list of settings: the address and the credentials come from "
            "AWS_…, GOOGLE_… or AZURE_…; they are to allow to put, get, list and delete",
        )
    if read is None or bytes(read) != data or key not in listed:
        remedy = "use a store in which what is written is read and listed at once, as S3 has it"
        return error("what was just written is not found in the object store", remedy)
    return _told(store.objects.name, began_s)


def _told(where: str, began_s: float) -> Finding:
    took_ms = round((time.perf_counter() - began_s) * 1000, 2)
    said = f"{where}: a probe was written, read and deleted in {took_ms:.1f} ms"
    if took_ms > SLOW_MS:
        return warning(said, "bring server and store closer: each update waits for it", probe_ms=took_ms)
    return ok(said, probe_ms=took_ms)
