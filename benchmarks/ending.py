# SPDX-License-Identifier: Apache-2.0
"""How a benchmark ends that was interrupted, or met an error."""

from collections.abc import Iterator
from contextlib import contextmanager

from fed_sophia.interruptible import Interrupted
from fed_sophia.output import Output
from protocol.errors import FedSophiaError


@contextmanager
def ending(output: Output) -> Iterator[None]:
    """End the process if the work inside does not: by a signal's code, or by 1 once an error is told."""
    try:
        yield
    except Interrupted as interrupted:
        raise SystemExit(interrupted.exit_code) from None
    except FedSophiaError as error:
        output.error(error)
        raise SystemExit(1) from None
