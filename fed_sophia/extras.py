# SPDX-License-Identifier: Apache-2.0
"""Says which extra to install when a command needs a library that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from protocol.errors import InvalidUsage
from worker.lasting import lasting

OUR_PACKAGES = ("fed_sophia", "protocol", "ps_service", "worker")


@contextmanager
def needing(extra: str, *later: str) -> Iterator[None]:
    """Around the import of a part that only `fed-sophia[extra]` brings the libraries for.

    Args: later: libraries that this part loads only when it is at work.

    Raises:
        InvalidUsage: a library of that extra is missing; the sentence says how to get it.
    """
    try:
        for library in later:
            if find_spec(library) is None:
                raise ModuleNotFoundError(name=library)
        with lasting():
            yield
    except ModuleNotFoundError as error:
        missing = error.name or "a library"
        if missing.partition(".")[0] in OUR_PACKAGES:
            raise
        raise InvalidUsage(
            f"this needs {missing}, which is not installed: pip install 'fed-sophia[{extra}]'"
        ) from None
