# SPDX-License-Identifier: Apache-2.0
"""A local step's way through the model, recorded on a CUDA device and played again: a CUDA graph.

A step of a small model, or of a large one in fast arithmetic, is over before the processor has named its
hundreds of kernels one by one. What was recorded is named by one word.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress

import torch

from worker.slope import Slope
from worker.tasks.base import Examples
from worker.tasks.failures import in_one_line

log = logging.getLogger("fed_sophia.recording")

STEPS_BEFORE = 2
"""So many steps of a kind are computed as they are: what is made at a first step cannot be made later."""
MOST_KINDS = 8
"""So many are recorded. Each holds a gradient and the like; and a server says how large batches are."""

Compute = Callable[[Examples], Slope]
"""Gives the slope of a mini-batch."""


class Recorder:
    """Records each kind of step once, and plays it from then on."""

    def __init__(self, record: Callable[[Examples, Compute], Compute]) -> None:
        """Args:
        record: of a mini-batch like this. What plays it may write over whatever slopes were given before.
            Whatever it raises, no step is recorded any more.
        """
        self._record = record
        self._recordings: dict[Hashable, Compute] = {}
        self._seen: Counter[Hashable] = Counter()
        self._fails = False

    def slope(self, kind: Hashable, batch: Examples, compute: Compute) -> Slope:
        """Give the slope of a mini-batch.

        Args:
            kind: of the step; the same work is done for two batches of one kind and one shape.
            compute: reads nothing on the device but the batch and what stays in its place, and does not wait
                for the device.

        Returns:
            Loss and gradient are written over by the next slope; the curvature is not.
        """
        kind = (kind, batch.inputs.shape, batch.targets.shape)
        if self._fails:
            return compute(batch)
        play = self._recordings.get(kind) or self._recorded(kind, batch, compute)
        if play is None:
            return compute(batch)
        slope = play(batch)
        return slope._replace(curvature=None if slope.curvature is None else slope.curvature.clone())

    def _recorded(self, kind: Hashable, batch: Examples, compute: Compute) -> Compute | None:
        # in this thread, which may be another at each round: torch has handles of NVIDIA's libraries for
        # each, and they cannot be made while recording
        here = (threading.get_ident(), kind)
        self._seen[here] += 1
        if self._seen[here] <= STEPS_BEFORE or len(self._recordings) == MOST_KINDS:
            return None
        try:
            self._recordings[kind] = self._record(batch, compute)
        except Exception as error:  # whatever a stranger's model does that cannot be recorded
            self._fails = True
            self._recordings.clear()
            log.warning("a step cannot be recorded, so that it is slower: %s", in_one_line(error))
            return None
        return self._recordings[kind]


class CudaGraphs:
    """Recordings on one CUDA device.

    What they read lies where it lay: parameters must stay in their place. They share their memory, so that
    only what the last one wrote is still there.
    """

    def __init__(self, generator: torch.Generator) -> None:
        """Args: generator: the device's, from which a step may draw beside the device's own."""
        self._generator = generator
        self._device = generator.device
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, batch: Examples, compute: Compute) -> Compute:
        """Give what plays the way to a slope.

        Raises:
            Exception: whatever stands in the way.
        """
        own = Examples(batch.inputs.clone(), batch.targets.clone())
        # a thread's current device is the first one, whatever is trained on
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._generator)
            # of this thread alone: others may be at work on the device
            recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
            try:
                # where a recording fails, torch leaves its stream the current one
                with torch.cuda.stream(torch.cuda.current_stream()), recording:
                    slope = compute(own)
            except Exception as error:
                self._end()
                # its end fails too, hides what went wrong first, and by a traceback holds what was in memory
                raise (error.with_traceback(None).__context__ or error) from None

        def play(batch: Examples) -> Slope:
            own.inputs.copy_(batch.inputs)
            own.targets.copy_(batch.targets)
            graph.replay()
            return slope

        return play

    def _end(self) -> None:
        """Let it be possible to draw and to free memory: older torches take it that what failed goes on."""
        default = torch.cuda.default_generators[self._device.index]
        for generator in (self._generator, default):
            generator.graphsafe_set_state(generator.clone_state())
        before_2_8 = "_cuda_endAllocateCurrentStreamToPool"
        with suppress(RuntimeError, AttributeError):  # a newer one has done so
            end = getattr(torch._C, before_2_8, None) or torch._C._cuda_endAllocateToPool
            end(self._device.index, self._pool)
            torch._C._cuda_releasePool(self._device.index, self._pool)


def recorder_on(generator: torch.Generator, *, padded: bool) -> Recorder | None:
    """Give what records on a generator's device, if that can be; the log says why not.

    Args:
        padded: whether padding is looked for in each batch, for which the device is waited for.
    """
    if generator.device.type != "cuda":
        log.warning("steps are not recorded: only those on a CUDA device can be")
    elif padded:
        log.warning("steps are not recorded: targets are padding in places, which is looked for at each step")
    else:
        return Recorder(CudaGraphs(generator).record)
    return None
