# SPDX-License-Identifier: Apache-2.0
"""Where chance in training comes from: every source has a seed.

A model draws from torch's global generators: its first values, its dropout. They belong to the whole
process, so two threads that draw from them at once disturb each other's draws.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_STATES = threading.Lock()
"""Held by whoever reads or sets the state of a global generator.

torch (2.13, for one) does both under a lock of its own while it has Python's. It makes a tensor meanwhile,
which may set off a look for garbage, and to free a tensor lets go of Python's lock: a thread that comes for
the state then waits for torch's lock and has Python's, and the process stands still for ever.
"""


class Draws(NamedTuple):
    """The random sources of one assignment.

    Their three seeds are the first words of numpy's SeedSequence of the assignment's seed: torch's
    generator on a CPU heeds 32 bits of a seed only, and the assignment's has 63.
    """

    batches: torch.Generator
    """On the CPU, so that every device draws the same batches."""
    labels: torch.Generator
    """On the model's device."""
    model_seed: int
    """For torch's global generators."""

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "Draws":
        batches, labels, model = np.random.SeedSequence(seed).generate_state(3, np.uint64).tolist()
        return cls(torch.Generator().manual_seed(batches), torch.Generator(device).manual_seed(labels), model)


@contextmanager
def torch_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of a CUDA device; afterwards they are as before.

    That of another kind of device (mps) is left alone: what a model draws there is not repeatable.
    """
    on_cuda = device.type == "cuda"
    forked = ExitStack()
    with _STATES:
        forked.enter_context(torch.random.fork_rng(devices=[device] if on_cuda else []))
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        with _STATES:
            forked.close()


def draws_by_itself(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a training pass over these inputs draws from torch's global generators: dropout, for one.

    It is tried, since a model's code may draw without a layer that says so.
    """
    device = inputs.device
    with torch_seeded(0, device), torch.no_grad():
        before = _generator_states(device)
        model.train()
        model(inputs)
        return any(not torch.equal(*each) for each in zip(before, _generator_states(device), strict=True))


def _generator_states(device: torch.device) -> list[Tensor]:
    with _STATES:
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
    return states
