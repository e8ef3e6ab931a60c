# SPDX-License-Identifier: Apache-2.0
"""The MLP and the CNN of Fed-Sophia's authors, for ten classes of 28×28 grey pixels, inputs (B, 1, 28, 28).

Source: the experiments of arXiv 2406.06655. The rate of dropout is PyTorch's own, a half.
"""

from torch import nn


def dropout_mlp() -> nn.Module:
    """MLP 784-100-10 with dropout: 79,510 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.Dropout(), nn.ReLU(), nn.Linear(100, 10))


def dropout_cnn() -> nn.Module:
    """Two 5×5 convolutions (28×28 → 12×12 → 4×4) and two linear layers, with dropout: 21,840 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 10, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, kernel_size=5),
        nn.Dropout2d(),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * 4 * 4, 50),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(50, 10),
    )
