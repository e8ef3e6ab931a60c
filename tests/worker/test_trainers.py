# SPDX-License-Identifier: Apache-2.0
"""Building trainers whose data are divided by where the examples came from."""

from pathlib import Path

import pytest

from protocol.errors import InvalidTask, InvalidUsage
from tests.worker.small_rounds import a_state, an_assignment
from worker.options import WorkerOptions
from worker.trainers import build_trainers, chosen_device

FROM_FIVE_PLACES = """
import numpy as np

from worker.tasks.digits import Digits


class Mine(Digits):
    name = "mine"

    def groups(self):
        return {groups}
"""


def options(task: str) -> WorkerOptions:
    return WorkerOptions(
        "http://127.0.0.1:9", None, "w", Path(), task, partition="groups", partition_of=5, device="cpu"
    )


def a_task_file(folder: Path, groups: str) -> str:
    path = folder / "mine.py"
    path.write_text(FROM_FIVE_PLACES.format(groups=groups))
    return str(path)


def test_the_groups_that_a_task_tells_decide_what_each_trainer_holds(tmp_path: Path) -> None:
    _, trainers = build_trainers(options(a_task_file(tmp_path, "np.arange(1437) // 300")), range(5))
    trained = [trainer.train(an_assignment("fedavg"), a_state("fedavg"), None) for trainer in trainers]
    assert sorted(each.num_examples for each in trained) == [237, 300, 300, 300, 300]


def test_a_task_that_tells_no_groups_cannot_be_divided_by_them() -> None:
    with pytest.raises(InvalidUsage, match="does not say which group"):
        build_trainers(options("digits"), [0])


@pytest.mark.parametrize(
    ("groups", "reason"), [("np.arange(12)", "expected 1437 whole numbers"), ("[0] * 1437", "AttributeError")]
)
def test_groups_that_are_no_array_of_one_number_an_example_are_the_tasks_fault(
    tmp_path: Path, groups: str, reason: str
) -> None:
    with pytest.raises(InvalidTask, match=reason):
        build_trainers(options(a_task_file(tmp_path, groups)), [0])


def test_the_device_that_is_told_is_the_one_that_trains() -> None:
    assert chosen_device(options("digits")) == "cpu"
