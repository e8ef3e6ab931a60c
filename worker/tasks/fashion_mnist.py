# SPDX-License-Identifier: Apache-2.0
"""Tasks `fashion-mnist-…`: ten kinds of clothing, 28×28 grey pixels; four models to choose from.

60,000 examples to train on and the 10,000 of the published test set to evaluate. Nothing is held out
of the training set: a study that tunes hyper-parameters splits off its own validation examples (5,000
of the 60,000 is usual; see `held_out.py`). Source: Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747).
"""

import os

import torch
from torch import nn

from worker.tasks.base import Examples, Task
from worker.tasks.dropout_models import dropout_cnn, dropout_mlp
from worker.tasks.fashion_mnist_data import Part, find_or_fetch, read_examples

PIXEL_MEAN = 0.286
PIXEL_DEVIATION = 0.353


class _FashionMnist(Task):
    def training_data(self) -> Examples:
        return self._examples(Part.TRAINING)

    def evaluation_data(self) -> Examples:
        return self._examples(Part.TEST)

    def _examples(self, part: Part) -> Examples:
        images, labels = read_examples(find_or_fetch(self.data_dir, os.environ), part)
        pixels = torch.from_numpy(images).unsqueeze(1).to(torch.float32)
        # in place: the training pixels are 188 MB
        pixels.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_DEVIATION)
        return Examples(pixels, torch.from_numpy(labels).to(torch.int64))


class FashionMnistMlp(_FashionMnist):
    """MLP 784-200-10: 159,010 parameters."""

    name = "fashion-mnist-mlp"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


class FashionMnistCnn(_FashionMnist):
    """Two strided convolutions (28×28 → 14×14 → 7×7) and a linear layer: 20,602 parameters."""

    name = "fashion-mnist-cnn"

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 10),
        )


class FashionMnistDropoutMlp(_FashionMnist):
    """MLP 784-100-10 with dropout."""

    name = "fashion-mnist-dropout-mlp"

    def model(self) -> nn.Module:
        return dropout_mlp()


class FashionMnistDropoutCnn(_FashionMnist):
    """Two 5×5 convolutions and two linear layers, with dropout."""

    name = "fashion-mnist-dropout-cnn"

    def model(self) -> nn.Module:
        return dropout_cnn()
