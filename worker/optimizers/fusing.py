# SPDX-License-Identifier: Apache-2.0
"""Whether a step can be one kernel here: on CUDA, where Triton is and compiles."""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from worker.optimizers.base import Tensors

log = logging.getLogger("fed_sophia.optimizers")

FusedStep = Callable[..., tuple[Tensor, Tensor]]
"""`worker.optimizers.fused_sophia.fused_step`."""


def fused_step_for(*bundles: Tensors | None) -> FusedStep | None:
    """Give Fed-Sophia's step as one kernel if all these tensors can be handed to it; else None.

    They can if they are float32, contiguous and on one CUDA device, in bundles of equal shapes.
    """
    given = [bundle for bundle in bundles if bundle is not None]
    device = given[0][0].device
    if device.type != "cuda" or not all(_alike(device, tensors) for tensors in zip(*given, strict=True)):
        return None
    return _compiled_on(device)


def _alike(device: torch.device, tensors: Tensors) -> bool:
    return all(
        tensor.device == device
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and tensor.shape == tensors[0].shape
        for tensor in tensors
    )


@cache
def _compiled_on(device: torch.device) -> FusedStep | None:
    """The step, once it was tried: Triton compiles when first called, for which it needs a C compiler."""
    try:
        from worker.optimizers.fused_sophia import fused_step
    except ImportError:
        return None
    values, count = torch.ones(1, device=device), torch.zeros((), dtype=torch.int64, device=device)
    numbers = dict.fromkeys(("learning_rate", "momentum_decay", "hessian_decay", "weight_decay"), 0.5)
    try:
        fused_step(values, values, values, values, None, count, clip_bound=1.0, epsilon=1.0, **numbers)
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever its compilers raise: the step can be had without them
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        log.warning(
            "Triton cannot compile for %s, so that steps are several times slower: %s", device, reason
        )
        return None
    return fused_step
