# SPDX-License-Identifier: Apache-2.0
"""A task of one's own: tell benign from malignant tumours by 30 measurements."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from fed_sophia import Examples, Task


class Tumours(Task):
    name = "tumours"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_data(self) -> Examples:
        inputs, labels = _measurements()
        return Examples(inputs[:450], labels[:450])

    def evaluation_data(self) -> Examples:
        inputs, labels = _measurements()
        return Examples(inputs[450:], labels[450:])


def _measurements() -> tuple[torch.Tensor, torch.Tensor]:
    numbers, labels = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor(numbers, dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0), torch.tensor(labels, dtype=torch.int64)
