# SPDX-License-Identifier: Apache-2.0
"""Where chance in training comes from: every source has a seed.

A model draws from torch's global generators: its first values, its dropout. They belong to the whole
process, so two threads that draw from them at once disturb each other's draws.
"""

import threading
from collections.abc import Iterator, Sequence
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


ROWS_AT_ONCE = 2**16
"""So many rows are drawn at a time, and sent to the device: it is waited for once for many steps."""


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
    def seeded(cls, seed: int, device: torch.device, generator: torch.Generator | None = None) -> "Draws":
        """Args: generator: of labels, on the device; None makes a new one."""
        batches, labels, model = np.random.SeedSequence(seed).generate_state(3, np.uint64).tolist()
        generator = torch.Generator(device) if generator is None else generator
        return cls(torch.Generator().manual_seed(batches), generator.manual_seed(labels), model)


class Batches:
    """The rows of one mini-batch after the other, of several workers that step together or of one.

    A step's are the same however many are drawn at a time.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        rows: Sequence[Tensor | int],
        batch_size: int,
        steps: int,
        device: torch.device,
    ) -> None:
        """Args:
        generators: of each worker, on the CPU.
        rows: which rows are each worker's: on the CPU, or their number where they are the first.
        steps: so many mini-batches are wanted, at most.
        """
        self._generators = generators
        self._rows = rows
        self._batch_size = batch_size
        self._device = device
        self._left = steps
        self._ahead: Iterator[Tensor] = iter(())

    def next(self) -> Tensor:
        """Give the next rows of each worker, shape (K, B), on the device."""
        rows = next(self._ahead, None)
        if rows is None:
            steps = min(self._left, max(1, ROWS_AT_ONCE // (self._batch_size * len(self._rows))))
            self._left -= steps
            self._ahead = iter(self._drawn(steps).to(self._device))
            rows = next(self._ahead)
        return rows

    def _drawn(self, steps: int) -> Tensor:
        """Shape (steps, K, B)."""
        drawn = []
        for generator, own in zip(self._generators, self._rows, strict=True):
            number = own if isinstance(own, int) else len(own)
            places = torch.randint(number, (steps, self._batch_size), generator=generator)
            drawn.append(places if isinstance(own, int) else own[places])
        return torch.stack(drawn, dim=1)


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

    It is tried, since a model's code may draw without a layer that says so; and taken for granted on a device
    whose generator is not known here (mps).
    """
    device = inputs.device
    if device.type not in ("cpu", "cuda"):
        return True
    with torch_seeded(0, device), torch.no_grad():
        before = _generator_states(device)
        model.train()
        model(inputs.clone())  # it may write into them
        return any(not torch.equal(*each) for each in zip(before, _generator_states(device), strict=True))


def _generator_states(device: torch.device) -> list[Tensor]:
    with _STATES:
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
    return states
