# SPDX-License-Identifier: Apache-2.0
"""How a command asks the server something."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from fed_sophia.interruptible import run_interruptibly
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import operator_key
from protocol.addresses import refuse_plain_http, speaks_tls
from worker.options import Trust
from worker.tls import tls_of

T = TypeVar("T")


def ask(
    server: str, key_file: Path | None, trust: Trust, question: Callable[[OperatorClient], Awaitable[T]]
) -> T:
    """Put a question to the server as its operator; Ctrl-C gives it up."""
    refuse_plain_http(server, trust.insecure)
    key = operator_key(server, key_file, os.environ)
    tls = tls_of(trust) if speaks_tls(server) else None

    async def asked() -> T:
        async with OperatorClient(server, key, tls=tls) as client:
            return await question(client)

    return run_interruptibly(asked())
