# SPDX-License-Identifier: Apache-2.0
"""Menu: tasks. To add one, copy `digits.py` and add a line to `TASKS`; or keep it in a file of your own."""

from pathlib import Path

from protocol.errors import InvalidTask
from worker.tasks.base import Examples, Task
from worker.tasks.char_lm import CharLm
from worker.tasks.digits import Digits
from worker.tasks.failures import as_invalid_task
from worker.tasks.fashion_mnist import (
    FashionMnistCnn,
    FashionMnistDropoutCnn,
    FashionMnistDropoutMlp,
    FashionMnistMlp,
)
from worker.tasks.loading import task_class_in_file
from worker.tasks.mnist_sample import MnistSampleCnn, MnistSampleMlp

__all__ = ["TASKS", "Examples", "Task", "load_task"]

TASKS: dict[str, type[Task]] = {
    "digits": Digits,
    "fashion-mnist-mlp": FashionMnistMlp,
    "fashion-mnist-cnn": FashionMnistCnn,
    "fashion-mnist-dropout-mlp": FashionMnistDropoutMlp,
    "fashion-mnist-dropout-cnn": FashionMnistDropoutCnn,
    "mnist-sample-mlp": MnistSampleMlp,
    "mnist-sample-cnn": MnistSampleCnn,
    "char-lm": CharLm,
}


def load_task(name_or_path: str, data_dir: Path | None = None) -> Task:
    """Give a task of the menu, or of a user's file: `path/to/file.py` or `path/to/file.py:ClassName`.

    Raises:
        InvalidTask: neither is meant, the file does not give one task, or making it failed.
    """
    task = _class_named(name_or_path)
    with as_invalid_task(task.name):
        return task(data_dir)


def _class_named(name_or_path: str) -> type[Task]:
    if name_or_path in TASKS:
        return TASKS[name_or_path]
    path, class_name = name_or_path, ""
    if not path.endswith(".py"):
        path, _, class_name = name_or_path.rpartition(":")
    if path.endswith(".py"):
        return task_class_in_file(Path(path), class_name)
    raise InvalidTask(
        f"task {name_or_path!r}: expected one of {', '.join(TASKS)}, or path/to/file.py:ClassName"
    )
