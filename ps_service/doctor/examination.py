# SPDX-License-Identifier: Apache-2.0
"""Makes all checks at once, and waits for none for longer than a while."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from protocol.errors import FedSophiaError
from ps_service.doctor.finding import Finding, error

LIMIT_S = 10.0


def examine(
    checks: Mapping[str, Callable[[], Finding]], limit_s: float = LIMIT_S
) -> Iterator[tuple[str, Finding]]:
    """The finding of each check, in their order; one that has none by `limit_s` is told as such.

    The thread of a check that hangs (in a disk that does not answer, for one) ends with the process, which
    does not wait for it.
    """
    deadline_s = time.monotonic() + limit_s
    answers = {name: _begun(check) for name, check in checks.items()}
    for name, answer in answers.items():
        try:
            yield name, answer.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            yield (
                name,
                error(
                    f"no answer within {limit_s:g} s",
                    "what this looks at takes questions and gives no answer: a network that drops packets, "
                    "a server that is stopped or overloaded, a file system whose disk is gone",
                ),
            )


def _begun(check: Callable[[], Finding]) -> "queue.SimpleQueue[Finding]":
    """Where its finding will be."""
    answer: queue.SimpleQueue[Finding] = queue.SimpleQueue()
    threading.Thread(target=lambda: answer.put(_made(check)), daemon=True).start()
    return answer


def _made(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except FedSophiaError as met:
        return error(met.detail, f"see `{met.code}` in the list of errors")
    except Exception as met:  # nothing of it is shown but its kind: its words may hold a secret
        return error(f"the check itself failed: {type(met).__name__}", "report this as a bug of fed-sophia")
