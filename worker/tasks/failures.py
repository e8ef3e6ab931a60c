# SPDX-License-Identifier: Apache-2.0
"""What a user's own code, or torch beneath it, raises becomes one error of ours, of one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from protocol.errors import FedSophiaError, InvalidTask
from worker.patience import Stopped

MAX_MESSAGE = 200


@contextmanager
def as_invalid_task(name: str, device: torch.device | None = None) -> Iterator[None]:
    """Turn what is raised inside into an InvalidTask that names the task; our own errors pass.

    Args:
        name: of the task.
        device: named when its memory is used up.
    """
    try:
        yield
    except (FedSophiaError, Stopped):
        raise
    except torch.OutOfMemoryError as error:
        raise InvalidTask(f"task {name}: out of memory on {device}: {in_one_line(error)}") from error
    except Exception as error:  # whatever a stranger's code raises becomes one sentence
        raise InvalidTask(f"task {name}: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """The error's type and the first line of its message, cut to a bounded length."""
    first_line = str(error).strip().partition("\n")[0].strip()[:MAX_MESSAGE]
    kind = type(error).__name__[:MAX_MESSAGE]
    return f"{kind}: {first_line}" if first_line else kind
