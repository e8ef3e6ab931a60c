# SPDX-License-Identifier: Apache-2.0
"""Where the server keeps things: records (rows) and blobs (bytes named by their digest)."""

from dataclasses import dataclass

from ps_service.storage.blobs import BlobStore
from ps_service.storage.records import Records


@dataclass(frozen=True)
class Stores:
    """Both stores, open."""

    records: Records
    blobs: BlobStore
