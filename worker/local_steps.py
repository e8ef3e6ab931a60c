# SPDX-License-Identifier: Apache-2.0
"""The loop of a round: draw a mini-batch, look which way is down, step. Of one worker or of several."""

import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from protocol.errors import NotFinite
from protocol.messages import Assignment
from worker.evaluation import heed
from worker.meter import Meter
from worker.optimizers.base import Optimizer
from worker.slope import Slope
from worker.tasks.base import Examples


class Stepped(NamedTuple):
    """Where the local steps of a round led."""

    optimizer: Optimizer
    metrics: dict[str, float]
    """The mean training loss, what the optimizer and the meter tell."""


def local_steps(
    assignment: Assignment,
    begin: Callable[[], Optimizer],
    theta: Tensor,
    next_batch: Callable[[], Examples],
    slope_at: Callable[[Examples, Optimizer], Slope],
    meter: Meter,
    stop: threading.Event | None,
    *,
    after_step: Callable[[], None] = lambda: None,
    workers: int = 1,
) -> Stepped:
    """Do an assignment's local steps.

    Args:
        begin: gives the optimizer at the start of the round. Nobody else is to hold it, so that the state it
            begins with is let go of at the first step.
        theta: the parameters, shape (n,) or (K, n), which are moved.
        slope_at: of a mini-batch, at θ, as far as the optimizer wants to know it.
        after_step: called when θ has moved.
        workers: K, which step together; a slope's loss is the sum of theirs.

    Raises:
        Stopped: `stop` was set.
        NotFinite: a loss was NaN or infinite.
    """
    optimizer = begin()
    mean_loss = torch.zeros((), device=theta.device)
    measured, num_terms = meter.round(), 0
    for step in range(1, assignment.local_steps + 1):
        heed(stop)
        if step == 1 or not optimizer.one_batch:
            batch = next_batch()
        slope = slope_at(batch, optimizer)
        curvature = None if slope.curvature is None else (slope.curvature,)
        refreshed = optimizer.wants_hessian
        optimizer = optimizer.step((theta,), (slope.gradient,), curvature)
        after_step()
        # kept on the device; one loss that is not finite makes it NaN for good
        mean_loss += (slope.loss / workers - mean_loss) / step
        num_terms += slope.num_terms
        measured.step_done(refreshed)
        # each as large as the model: not held while the next are made
        del slope, curvature
    train_loss = mean_loss.item()
    if not math.isfinite(train_loss):
        raise NotFinite(f"a training loss of round {assignment.round} is NaN or infinite")
    examples = assignment.local_steps * assignment.batch_size
    figures = measured.metrics(examples, num_terms, sharing=workers)
    return Stepped(optimizer, {"train_loss": train_loss} | figures | optimizer.metrics())
