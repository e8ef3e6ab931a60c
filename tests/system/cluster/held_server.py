# SPDX-License-Identifier: Apache-2.0
"""A server that stands still in an aggregation for as long as it is told to, to be stopped there.

    python held_server.py PORT DATA_DIR        the rest from the environment, as for any server

Whoever wants it held makes DATA_DIR/hold. Once it is, it makes DATA_DIR/held; when DATA_DIR/hold is gone, it
goes on.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from ps_service.server import open_stores, serve
from ps_service.settings import Settings
from ps_service.storage import Stores
from ps_service.storage.blobs import BlobStore, Staged

HELD_S = 120.0
"""At most."""


class HeldBlobs:
    """A blob store in which nothing is begun while it is held: the next version, for one."""

    def __init__(self, blobs: BlobStore, directory: Path) -> None:
        self._blobs = blobs
        self._directory = directory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def stage(self) -> Staged:
        until_s = time.monotonic() + HELD_S
        while (self._directory / "hold").exists() and time.monotonic() < until_s:
            (self._directory / "held").touch()
            time.sleep(0.01)
        return self._blobs.stage()


async def open_held(settings: Settings, directory: Path) -> Stores:
    stores = await open_stores(settings, directory)
    return Stores(stores.records, HeldBlobs(stores.blobs, directory))  # type: ignore[arg-type]


def announce(url: str) -> None:
    sys.stdout.write(json.dumps({"url": url}) + "\n")
    sys.stdout.flush()


def main() -> None:
    settings = Settings(port=int(sys.argv[1]), server_data_dir=Path(sys.argv[2]))
    serve(settings, announce, partial(open_held, settings))


if __name__ == "__main__":
    main()
