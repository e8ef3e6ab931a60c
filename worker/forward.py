# SPDX-License-Identifier: Apache-2.0
"""How a model's forward pass is computed in training: how precisely, compiled or not, what of it is kept.

None of it changes what is computed, but for rounding and for which numbers are drawn (dropout, the labels and
signs of an estimate), so it is each worker's own choice.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from protocol.errors import InvalidTask
from worker.options import Numerics
from worker.tasks.base import one_tensor
from worker.tasks.likelihood import Likelihood

MOST_SHAPES = 64
"""So many shapes are compiled for: torch alone gives up after 8, which a few workers of one process reach."""


class Forward:
    """A model and its loss, for training."""

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        device: torch.device,
        numerics: Numerics,
        *,
        twice_differentiable: bool = False,
    ) -> None:
        """Args: twice_differentiable: gradients are to have gradients, which compiled code's have not."""
        self.drawn, self.num_terms = likelihood.sample, likelihood.num_terms
        self._precision: Callable[[], AbstractContextManager[object]] = nullcontext
        if numerics.precision == "bfloat16":
            self._precision = partial(torch.autocast, device.type, torch.bfloat16)
        compiles = numerics.compile and not twice_differentiable
        self._outputs: Callable[[Tensor], Tensor] = compiled(model) if compiles else model
        self._loss = compiled(likelihood.loss) if compiles else likelihood.loss

    def outputs(self, inputs: Tensor) -> Tensor:
        with self._precision():
            return one_tensor(self._outputs(inputs))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Its arithmetic is float32: the likelihood and autocast see to it."""
        with self._precision():
            return self._loss(outputs, targets)


@dataclass(frozen=True)
class OneWorker:
    """The objective of one worker."""

    forward: Forward
    generator: torch.Generator
    """Of drawn labels and signs, on the outputs' device; the same seed gives the same estimate."""

    def outputs(self, inputs: Tensor) -> Tensor:
        return self.forward.outputs(inputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.forward.loss(outputs, targets)

    def drawn(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.forward.drawn(outputs, targets, self.generator)

    def signs(self, like: Tensor) -> Tensor:
        return drawn_signs(like, self.generator)


def drawn_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw -1 or 1, each with probability one half, for each place of `like`."""
    return torch.empty_like(like).bernoulli_(generator=generator).mul_(2).sub_(1)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function for each shape by itself; its backward pass can be gone through twice.

    What is compiled takes some tens of seconds at the first call, and again for another shape. Beyond
    `MOST_SHAPES` of them torch warns, and computes as if nothing had been compiled.
    """
    # slow to load, and wanted by few
    from torch._dynamo import config as dynamo
    from torch._functorch import config

    def settle(*_: Tensor) -> None:
        # a backward pass may not overwrite what it has saved: a Hessian estimate goes through it once more
        if config.donated_buffer:
            config.donated_buffer = False
        # all models of a process whose outermost module is of one class count together; named as in torch 2.6
        if dynamo.cache_size_limit < MOST_SHAPES:
            dynamo.cache_size_limit = MOST_SHAPES

    faster = torch.compile(function, dynamic=False)

    def settled(*args: Tensor) -> Tensor:
        # since torch 2.12 each thread has settings of its own; this one may be another at each round
        settle()
        outputs = faster(*args)
        # and in 2.12 the one that goes back on CUDA takes over none of them
        if isinstance(outputs, Tensor) and outputs.requires_grad:
            outputs.register_hook(settle)  # type: ignore[no-untyped-call]  # torch's
        return outputs

    return settled


def recompute_blocks(model: nn.Module, *, draws: bool) -> None:
    """Keep only the outputs of a model's blocks for the backward pass; what is in them is computed twice.

    The blocks are the children of the first `nn.ModuleList` or `nn.Sequential` which has several, all of one
    class that has children itself.

    Args:
        draws: whether the model draws by itself, and is to draw the same the second time. For this, torch
            reads and sets its global generators in each block, which can neither be recorded nor be done by
            several threads at once.

    Raises:
        InvalidTask: there is none.
    """
    for module in model.modules():
        blocks = [*module.children()] if isinstance(module, nn.ModuleList | nn.Sequential) else []
        if len(blocks) > 1 and len({type(block) for block in blocks}) == 1 and [*blocks[0].children()]:
            for block in blocks:
                block.forward = partial(_kept_small, block.forward, draws)
            return
    raise InvalidTask(
        "the model has no row of equal blocks, an nn.ModuleList or nn.Sequential, to compute a second time"
    )


def _kept_small(forward: Callable[..., Any], draws: bool, /, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # partial: a block's own keywords are not the checkpoint's
    own = partial(forward, **kwargs)
    return checkpoint(own, *args, use_reentrant=False, preserve_rng_state=draws)
