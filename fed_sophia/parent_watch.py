# SPDX-License-Identifier: Apache-2.0
"""Ends this process when the one that started it is gone, however that ended.

The parent holds the write end of our standard input; the kernel closes it when the parent dies, by
`kill -9` too. This works on every POSIX system, needs no polling and names no process.
"""

import os
import signal
import sys
import threading
import time

_GRACE_S = 10.0


def exit_with_parent() -> None:
    """From now on, the end of standard input asks this process to stop, and soon makes it."""
    threading.Thread(target=_wait_for_the_end, name="parent-watch", daemon=True).start()


def _wait_for_the_end() -> None:
    descriptor = sys.stdin.fileno()
    while os.read(descriptor, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)
