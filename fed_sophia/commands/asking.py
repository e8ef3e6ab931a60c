# SPDX-License-Identifier: Apache-2.0
"""How a command asks the server something."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from fed_sophia.interruptible import run_interruptibly
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import operator_key

T = TypeVar("T")


def ask(server: str, key_file: Path | None, question: Callable[[OperatorClient], Awaitable[T]]) -> T:
    """Put a question to the server as its operator; Ctrl-C gives it up."""
    key = operator_key(server, key_file, os.environ)

    async def asked() -> T:
        async with OperatorClient(server, key) as client:
            return await question(client)

    return run_interruptibly(asked())
