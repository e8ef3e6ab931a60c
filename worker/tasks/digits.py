# SPDX-License-Identifier: Apache-2.0
"""Task `digits`: 1,797 handwritten digits of 8×8 pixels, part of scikit-learn; nothing to download.

1,437 examples to train on and 360 to evaluate, split once and for all by a fixed seed. Source: Alpaydin
and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

import numpy as np
import torch
from torch import nn

from protocol.errors import DataUnavailable
from worker.tasks.base import Examples, Task

NUM_TRAINING = 1437
SPLIT_SEED = 0


class Digits(Task):
    """MLP 64-64-10 on digits scaled to [0, 1]."""

    name = "digits"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_data(self) -> Examples:
        return _all_examples().batch(_shuffled()[:NUM_TRAINING])

    def evaluation_data(self) -> Examples:
        return _all_examples().batch(_shuffled()[NUM_TRAINING:])


def _shuffled() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(1797))


def _all_examples() -> Examples:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataUnavailable("digits are part of scikit-learn, which is not installed") from None
    pixels, labels = load_digits(return_X_y=True)
    return Examples(
        torch.from_numpy(pixels.astype(np.float32) / 16), torch.from_numpy(labels.astype(np.int64))
    )
