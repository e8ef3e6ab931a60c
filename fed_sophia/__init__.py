# SPDX-License-Identifier: Apache-2.0
"""The front door: the command line, and the names that users import.

Importing this package loads neither PyTorch nor the server; `Task` and `Examples` are fetched from
`worker` when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from protocol.errors import FedSophiaError

if TYPE_CHECKING:
    __version__: str
    from worker.tasks.base import Examples, Task

__all__ = ["Examples", "FedSophiaError", "Task", "__version__"]

_FROM_WORKER = {"Examples": "worker.tasks.base", "Task": "worker.tasks.base"}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _FROM_WORKER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FROM_WORKER[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # loads half of the standard library

    try:
        return version("fed-sophia")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
