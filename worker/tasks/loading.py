# SPDX-License-Identifier: Apache-2.0
"""Loads a task from a user's own file.

The file becomes a module under a private name, so that it may be called anything, `worker.py` too. Its
folder goes to the end of the import path: its neighbours can be imported, but none of them ever stands
in for a module of ours or of the standard library.
"""

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from protocol.errors import InvalidTask
from worker.tasks.base import Task
from worker.tasks.failures import in_one_line


def task_class_in_file(path: Path, class_name: str = "") -> type[Task]:
    """Give the named task class of a file, or its only one when no name is given.

    Raises:
        InvalidTask: no such file or class, several tasks, an incomplete one, or the file cannot be run.
    """
    if not path.is_file():
        raise InvalidTask(f"{path}: no such file")
    module = _run(path.resolve())
    found = _chosen(module, path, class_name)
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise InvalidTask(f"{path}: task {found.__name__} lacks {', '.join(missing)}()")
    name = getattr(found, "name", None)
    if not isinstance(name, str) or not 1 <= len(name) <= 128:
        raise InvalidTask(f"{path}: task {found.__name__} needs a name of 1 to 128 characters")
    return found


def _chosen(module: ModuleType, path: Path, class_name: str) -> type[Task]:
    if class_name:
        named = getattr(module, class_name, None)
        if not (inspect.isclass(named) and issubclass(named, Task)):
            raise InvalidTask(f"{path}: expected a subclass of Task called {class_name}, found none")
        return named
    own = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Task) and member.__module__ == module.__name__
    ]
    if len(own) != 1:
        names = ", ".join(task.__name__ for task in own) or "none"
        raise InvalidTask(f"{path}: expected one subclass of Task, found {names}; say {path}:ClassName")
    return own[0]


def _run(path: Path) -> ModuleType:
    name = f"_fed_sophia_task_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a path ending in .py always has a loader
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's code raises becomes one sentence
        del sys.modules[name]
        raise InvalidTask(f"{path}: running it failed: {in_one_line(error)}") from error
    return module
