# SPDX-License-Identifier: Apache-2.0
"""Menu: tasks. To add one, copy `digits.py` and add a line to `TASKS`; or keep it in a file of your own.

The menu is read without torch: what a task is made of is loaded when it is the one that is asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import InvalidTask

if TYPE_CHECKING:
    from worker.tasks.base import Task

TASKS = {
    "digits": "digits.Digits",
    "fashion-mnist-mlp": "fashion_mnist.FashionMnistMlp",
    "fashion-mnist-cnn": "fashion_mnist.FashionMnistCnn",
    "fashion-mnist-dropout-mlp": "fashion_mnist.FashionMnistDropoutMlp",
    "fashion-mnist-dropout-cnn": "fashion_mnist.FashionMnistDropoutCnn",
    "mnist-sample-mlp": "mnist_sample.MnistSampleMlp",
    "mnist-sample-cnn": "mnist_sample.MnistSampleCnn",
    "char-lm": "char_lm.CharLm",
    "gpt-mini": "gpt_lm.GptMini",
    "gpt2-small": "gpt_lm.Gpt2Small",
}
"""{name: its file in this folder, and its class}."""


def load_task(name_or_path: str, data_dir: Path | None = None) -> "Task":
    """Give a task of the menu, or of a user's file: `path/to/file.py` or `path/to/file.py:ClassName`.

    Raises:
        InvalidTask: neither is meant, the file does not give one task, or making it failed.
    """
    from worker.tasks.failures import as_invalid_task

    task = task_class(name_or_path)
    with as_invalid_task(task.name):
        return task(data_dir)


def task_class(name_or_path: str) -> "type[Task]":
    """Give the class of a task of the menu, or of a user's file.

    Raises:
        InvalidTask: neither is meant, or the file does not give one task.
    """
    if name_or_path in TASKS:
        module, _, class_name = TASKS[name_or_path].partition(".")
        found: type[Task] = getattr(import_module(f"worker.tasks.{module}"), class_name)
        return found
    from worker.tasks.loading import task_class_in_file

    return task_class_in_file(*_file_and_class(name_or_path))


def name_in_menu(name_or_path: str) -> str | None:
    """Give the name of a task of the menu; None for a user's file, which has to be run to tell its name.

    Raises:
        InvalidTask: neither is meant.
    """
    if name_or_path in TASKS:
        return name_or_path
    _file_and_class(name_or_path)
    return None


def _file_and_class(name_or_path: str) -> tuple[Path, str]:
    path, class_name = name_or_path, ""
    if not path.endswith(".py"):
        path, _, class_name = name_or_path.rpartition(":")
    if not path.endswith(".py"):
        raise InvalidTask(
            f"task {name_or_path!r}: expected one of {', '.join(TASKS)}, or path/to/file.py:ClassName"
        )
    return Path(path), class_name
