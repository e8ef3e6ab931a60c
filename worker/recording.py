# SPDX-License-Identifier: Apache-2.0
"""A local step's way through the model, recorded on a CUDA device and played again: a CUDA graph.

A step of a small model, or of a large one in fast arithmetic, is over before the processor has named its
hundreds of kernels one by one. What was recorded is named by one word.
"""

import logging
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from worker.slope import Slope
from worker.tasks.base import Examples

log = logging.getLogger("fed_sophia.recording")

STEPS_BEFORE = 2
"""So many steps of a kind are computed as they are: what is compiled at a first step cannot be recorded."""
MOST_KINDS = 8
"""So many are recorded. Each holds a gradient and the like; and a server says how large batches are."""


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Examples
    """What the graph reads."""
    slope: Slope
    """What it writes."""


class Recorder:
    """Records each kind of step once, and plays it from then on.

    What a recording reads lies where it lay: parameters must stay in their place.
    """

    def __init__(self, generator: torch.Generator) -> None:
        """Args: generator: a CUDA device's, from which a step may draw beside the device's own."""
        self._generator = generator
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: dict[Hashable, _Recording] = {}
        self._seen: dict[Hashable, int] = {}
        self._fails = False

    def slope(self, kind: Hashable, batch: Examples, compute: Callable[[Examples], Slope]) -> Slope:
        """Give the slope of a mini-batch.

        Args:
            kind: of the step; the same work is done for two batches of one kind and one shape.
            compute: reads nothing on the device but the batch and what stays in its place, and does not wait
                for the device.

        Returns:
            Loss and gradient are written over by the next slope; the curvature is not.
        """
        kind = (kind, batch.inputs.shape, batch.targets.shape)
        seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._fails or seen <= STEPS_BEFORE:
            return compute(batch)
        known = kind in self._recordings
        if not known and (len(self._recordings) == MOST_KINDS or not self._record(kind, batch, compute)):
            return compute(batch)
        recording = self._recordings[kind]
        recording.batch.inputs.copy_(batch.inputs)
        recording.batch.targets.copy_(batch.targets)
        recording.graph.replay()
        curvature = recording.slope.curvature
        return recording.slope._replace(curvature=None if curvature is None else curvature.clone())

    def _record(self, kind: Hashable, batch: Examples, compute: Callable[[Examples], Slope]) -> bool:
        own = Examples(batch.inputs.clone(), batch.targets.clone())
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        # where a recording fails, torch leaves the stream that it was made in the current one
        stream = torch.cuda.stream(torch.cuda.current_stream(self._generator.device))
        try:
            # of this thread alone: others may be at work on the device
            with stream, torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                slope = compute(own)
        except Exception as error:  # whatever a stranger's model does that cannot be recorded
            self._fails = True
            self._renew_generators()
            # its end fails too, and then hides what went wrong first
            first = error.__context__ or error
            reason = f"{type(first).__name__}: {first}".partition("\n")[0][:200]
            log.warning("a step cannot be recorded, so that it is slower: %s", reason)
            return False
        self._recordings[kind] = _Recording(graph, own, slope)
        return True

    def _renew_generators(self) -> None:
        """Let it be possible to draw: where a recording failed, older torches take it that it goes on."""
        default = torch.cuda.default_generators[self._generator.device.index]
        for generator in (self._generator, default):
            generator.graphsafe_set_state(generator.clone_state())
