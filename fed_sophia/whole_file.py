# SPDX-License-Identifier: Apache-2.0
"""Writes a file that is there whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from protocol.errors import InvalidUsage


@contextmanager
def whole_file(destination: Path) -> Iterator[BinaryIO]:
    """A new file beside `destination`, which takes its place at the end of the block unless that raised.

    Raises:
        InvalidUsage: the file cannot be written.
    """
    part = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(destination)
    except BrokenPipeError:  # of who reads what we print; a file gives none
        raise
    except OSError as error:
        raise InvalidUsage(f"{destination} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):  # on a disk gone read-only the error above says more
            part.unlink(missing_ok=True)
