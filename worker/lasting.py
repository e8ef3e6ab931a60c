# SPDX-License-Identifier: Apache-2.0
"""Loads what lasts as long as the process without looking for garbage in it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Around imports: Python looks for garbage neither meanwhile nor ever again in what they have made.

    It would go through all of it again and again while it grows, and once more at the end: a sixth of
    the time that a server takes to start or torch and scikit-learn to load, and much of their end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
