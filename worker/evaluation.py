# SPDX-License-Identifier: Apache-2.0
"""What a model is worth on given examples."""

import math
import threading

import torch
from torch import nn

from protocol.errors import InvalidTask, NotFinite
from worker.patience import Stopped
from worker.tasks.base import Examples, one_tensor
from worker.tasks.likelihood import Likelihood

EVALUATION_BATCH = 1000
MAX_OUTPUTS = 2**27
"""Values of a batch's outputs, 512 MiB in float32: each token of a language model has a logit a word."""


def heed(stop: threading.Event | None) -> None:
    """Raises: Stopped: it was set."""
    if stop is not None and stop.is_set():
        raise Stopped


def examples_at_once(outputs_each: int) -> int:
    """Give how many examples to evaluate in a batch, by how many values a model's outputs of one have."""
    return min(EVALUATION_BATCH, max(1, MAX_OUTPUTS // max(1, outputs_each)))


def measure(
    model: nn.Module,
    likelihood: Likelihood,
    examples: Examples,
    prefix: str,
    stop: threading.Event | None = None,
) -> dict[str, float]:
    """Give the means over the loss terms, each name with the prefix: `test_loss`, `test_accuracy` …

    Args:
        examples: on the model's device.
        stop: set from another thread, it ends the work within a batch.

    Raises:
        Stopped: `stop` was set.
        InvalidTask: there are no examples, or the model's outputs are no tensor.
        NotFinite: a metric is NaN or infinite.
    """
    if not len(examples):
        raise InvalidTask(f"there are no evaluation examples ({prefix})")
    model.eval()
    sums: dict[str, float] = {}
    num_terms = 0
    with torch.inference_mode():
        # copies: a model may write into its inputs, and the next version is measured on the same
        batch = examples_at_once(one_tensor(model(examples.inputs[:1].clone())).numel())
        for first in range(0, len(examples), batch):
            heed(stop)
            rows = slice(first, first + batch)
            targets = examples.targets[rows]
            outputs = model(examples.inputs[rows].clone())
            for name, value in likelihood.metrics(outputs, targets).items():
                sums[name] = sums.get(name, 0.0) + value
            num_terms += likelihood.num_terms(targets)
    metrics = {f"{prefix}_{name}": value / num_terms for name, value in sums.items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NotFinite(f"{name} is NaN or infinite")
    return metrics
