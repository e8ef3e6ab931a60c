# SPDX-License-Identifier: Apache-2.0
"""Tasks from the menu and from a user's own file."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.errors import InvalidTask
from worker.tasks import load_task
from worker.tasks.base import Examples

TASK = """
import torch
from torch import nn

from worker.tasks.base import Examples, Task


class {name}(Task):
    name = "{name}"
    likelihood = "gaussian"

    def model(self):
        return nn.Linear(3, 1)

    def training_data(self):
        return Examples(torch.ones(4, 3), torch.ones(4, 1))

    def evaluation_data(self):
        return self.training_data()
"""


@pytest.fixture(autouse=True)
def import_path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def a_file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_menus_tasks_are_loaded_by_name(tmp_path: Path) -> None:
    task = load_task("digits", tmp_path)
    assert (task.name, task.data_dir) == ("digits", tmp_path)


def test_the_digits_are_split_into_1437_and_360_that_share_none() -> None:
    task = load_task("digits")
    training, evaluation = task.training_data(), task.evaluation_data()
    assert (len(training), len(evaluation)) == (1437, 360)
    assert training.inputs.min() == 0 and training.inputs.max() == 1
    both = torch.cat([training.inputs, evaluation.inputs])
    assert both.unique(dim=0).shape[0] == 1797


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("fashion-mnist-mlp", 159_010),
        ("fashion-mnist-cnn", 20_602),
        ("digits", 4_810),
        ("fashion-mnist-dropout-mlp", 79_510),
        ("fashion-mnist-dropout-cnn", 21_840),
        ("mnist-sample-mlp", 79_510),
        ("mnist-sample-cnn", 21_840),
        ("char-lm", 116_834),
        ("gpt-mini", 1_334_016),
        ("gpt2-small", 124_475_904),
    ],
)
def test_models_have_the_published_number_of_parameters(name: str, num_parameters: int) -> None:
    with torch.device("meta"):  # parameters that take no memory
        assert sum(p.numel() for p in load_task(name).model().parameters()) == num_parameters


def test_a_users_only_task_is_found_and_one_of_several_by_its_name(tmp_path: Path) -> None:
    one = a_file(tmp_path, TASK.format(name="Sensors"))
    assert load_task(str(one), tmp_path).name == "Sensors"
    two = a_file(tmp_path, TASK.format(name="Sensors") + TASK.format(name="Valves"), "two.py")
    assert load_task(f"{two}:Valves").name == "Valves"


def test_a_path_may_hold_dots_and_colons(tmp_path: Path) -> None:
    folder = tmp_path / ".pyenv:1"
    folder.mkdir()
    path = a_file(folder, TASK.format(name="Sensors"))
    assert load_task(str(path)).name == load_task(f"{path}:Sensors").name == "Sensors"


def test_a_folder_with_its_own_worker_and_protocol_does_not_break_ours(tmp_path: Path) -> None:
    """In a fresh process, so that ours are found by the import path and not remembered."""
    a_file(tmp_path, "raise SystemExit('the wrong worker')", "worker.py")
    a_file(tmp_path, "raise SystemExit('the wrong protocol')", "protocol.py")
    a_file(tmp_path, "SIZE = 4", "neighbour.py")
    task = a_file(tmp_path, "import neighbour\nimport worker.training\n" + TASK.format(name="Sensors"))
    script = (
        "import sys\n"
        "from worker.tasks import load_task\n"
        f"print(load_task({str(task)!r}).name)\n"
        "import protocol.bound, worker.curvature\n"
        f"assert sys.path[-1] == {str(tmp_path)!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Sensors\n"), done.stderr


def test_a_file_called_worker_is_a_task_file_like_any_other(tmp_path: Path) -> None:
    path = a_file(tmp_path, TASK.format(name="Sensors"), "worker.py")
    assert load_task(str(path)).name == "Sensors"


def test_importing_the_worker_package_does_not_import_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, worker; sys.exit('torch' in sys.modules)"],
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_an_unknown_name_is_refused_with_the_menu() -> None:
    with pytest.raises(InvalidTask, match=r"digits, fashion-mnist-mlp, .*gpt2-small, or path/to/file\.py"):
        load_task("imagenet")


INCOMPLETE = TASK.format(name="Sensors").replace("def evaluation_data", "def evaluation")
NAMELESS = TASK.format(name="Sensors").replace('name = "Sensors"', "pass")


@pytest.mark.parametrize(
    ("text", "class_name", "reason"),
    [
        ("x = 1", "", "expected one subclass of Task, found none"),
        (TASK.format(name="A") + TASK.format(name="B"), "", "found A, B; say .*mine.py:ClassName"),
        (TASK.format(name="A"), ":B", "a subclass of Task called B, found none"),
        (TASK.format(name="A"), ":nn", "a subclass of Task called nn, found none"),
        ("import nothing_of_this_name", "", "running it failed: ModuleNotFoundError"),
        ("class :", "", "running it failed: SyntaxError"),
        (INCOMPLETE, "", r"Sensors lacks evaluation_data\(\)"),
        (NAMELESS, "", "Sensors needs a name"),
    ],
)
def test_a_file_that_gives_no_task_is_refused_with_the_reason(
    tmp_path: Path, text: str, class_name: str, reason: str
) -> None:
    path = a_file(tmp_path, text)
    with pytest.raises(InvalidTask, match=reason):
        load_task(f"{path}{class_name}")


def test_a_task_that_cannot_be_made_is_refused_in_one_line_of_bounded_length(tmp_path: Path) -> None:
    init = """
    def __init__(self, data_dir=None):
        raise KeyError(str(data_dir) + 300 * "x" + chr(10) + "and a second line")
"""
    path = a_file(tmp_path, TASK.format(name="Sensors") + init)
    with pytest.raises(InvalidTask) as raised:
        load_task(str(path), tmp_path)
    assert raised.value.detail.startswith("task Sensors: KeyError: ")
    assert isinstance(raised.value.__cause__, KeyError)
    assert len(raised.value.detail) < 250 and "\n" not in raised.value.detail


def test_a_file_whose_running_fails_at_length_is_refused_in_one_line(tmp_path: Path) -> None:
    path = a_file(tmp_path, "raise RuntimeError(300 * 'x' + chr(10) + 'and a second line')")
    with pytest.raises(InvalidTask, match=r"running it failed: RuntimeError: x{200}$"):
        load_task(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match=r"absent\.py: no such file"):
        load_task(str(tmp_path / "absent.py"))


def test_examples_must_be_as_many_as_their_targets() -> None:
    with pytest.raises(InvalidTask, match="3 inputs but 2 targets"):
        Examples(torch.zeros(3, 5), torch.zeros(2))
    with pytest.raises(InvalidTask, match="got a scalar"):
        Examples(torch.zeros(3, 5), torch.tensor(1))
    with pytest.raises(InvalidTask, match="examples: expected tensors of torch, got a ndarray"):
        Examples(torch.zeros(3, 5), np.zeros(3))  # type: ignore[arg-type]


def test_a_batch_is_the_examples_asked_for_in_that_order() -> None:
    examples = Examples(torch.arange(12).reshape(6, 2), torch.arange(6))
    batch = examples.batch(torch.tensor([4, 0, 4]))
    assert batch.inputs.tolist() == [[8, 9], [0, 1], [8, 9]]
    assert batch.targets.tolist() == [4, 0, 4]
