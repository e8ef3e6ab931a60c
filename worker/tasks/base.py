# SPDX-License-Identifier: Apache-2.0
"""The task a user writes: a model, its data, and the likelihood that ties outputs to targets.

class Sensors(Task):
    name = "sensors"

    def model(self):
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))

    def training_data(self):
        return Examples(*torch.load(self.data_dir / "train.pt"))

    def evaluation_data(self):
        return Examples(*torch.load(self.data_dir / "test.pt"))
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from protocol.errors import InvalidTask


@dataclass(frozen=True)
class Examples:
    """Inputs and targets; their first dimensions count the examples and are equal."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for each in (self.inputs, self.targets):
            if not isinstance(each, Tensor):
                raise InvalidTask(f"examples: expected tensors of torch, got a {type(each).__name__}")
        if not self.inputs.ndim or not self.targets.ndim:
            raise InvalidTask("examples: the first dimension must count the examples, got a scalar")
        if len(self.inputs) != len(self.targets):
            raise InvalidTask(f"examples: {len(self.inputs)} inputs but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor | npt.NDArray[np.int64]) -> "Examples":
        """The examples at `indices`, in that order, as a copy: a mini-batch, or one worker's part."""
        rows = torch.as_tensor(indices, device=self.inputs.device)
        return Examples(self.inputs[rows], self.targets[rows])

    def to(self, device: torch.device) -> "Examples":
        return Examples(self.inputs.to(device), self.targets.to(device))


def one_tensor(outputs: object) -> Tensor:
    """Give what a model gave.

    Raises:
        InvalidTask: it is no tensor.
    """
    if not isinstance(outputs, Tensor):
        raise InvalidTask(f"the model gives a {type(outputs).__name__}, expected one tensor")
    return outputs


class Task(ABC):
    """What is learned. Subclass it, name it, and fill in three methods.

    The name is what a run asks for and what a worker enrols with. All workers of a run, and whoever
    creates it, must use the same task: its code never crosses the wire.
    """

    name: ClassVar[str]
    likelihood: ClassVar[str] = "categorical"
    """A name in `worker.tasks.likelihood.LIKELIHOODS`."""

    def __init__(self, data_dir: Path | None = None) -> None:
        self.data_dir = data_dir

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, initialised from torch's global random generator.

        Its parameters with `requires_grad`, of float32 or bfloat16, are exchanged as float32, by their
        names. Other parameters never cross the wire and must be identical on all workers: read them from a
        file, or draw them here, where every worker's generator has the same seed. Persistent buffers are
        refused for now.
        """

    @abstractmethod
    def training_data(self) -> Examples:
        """All the training examples of this place."""

    @abstractmethod
    def evaluation_data(self) -> Examples:
        """What an evaluator measures the global model on."""

    def groups(self) -> npt.NDArray[np.int64] | None:
        """For each training example, the number of the file, author or place it came from.

        Shape (N,), in the order of `training_data()`; None if the task does not say. The partition
        `groups` gives a worker whole groups.
        """
        return None
