# SPDX-License-Identifier: Apache-2.0
"""Fed-Sophia's step as one pass over memory: a Triton kernel. It can be imported only where Triton is.

The equations are those of `worker/optimizers/sophia.py`, whose plain step is the reference: the same results
to 1e-6, and the same where something is NaN or infinite. θ, g, m and h are read once, θ and m' written once:
24 bytes a parameter, 8 more with an estimate.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# 16 values a thread: an H100 reaches the rate at which it copies
BLOCK = 4096
NUM_WARPS = 8


def fused_step(
    parameters: Tensor,
    gradients: Tensor,
    momentum: Tensor,
    hessian: Tensor,
    hessian_estimate: Tensor | None,
    held_back: Tensor | None,
    *,
    learning_rate: float,
    clip_bound: float,
    momentum_decay: float,
    hessian_decay: float,
    weight_decay: float,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Move `parameters` in place by one local step; give m' and h'.

    Args:
        parameters: θ. Like g, m, h and ĥ: float32, contiguous, of one number of values, on one CUDA device.
        momentum: m, not changed; m' is a new tensor.
        hessian: h, not changed; h' is a new tensor with an estimate, and h itself without one.
        held_back: a scalar of int64 on that device; how many coordinates the clip held back is added to it.
    """
    new_momentum = torch.empty_like(momentum)
    new_hessian = hessian if hessian_estimate is None else torch.empty_like(hessian)
    number = parameters.numel()
    # Triton launches on the current device, whichever the tensors are on
    on_device = torch.cuda.device(parameters.device) if parameters.is_cuda else nullcontext()
    with on_device:
        _kernel[(triton.cdiv(number, BLOCK),)](
            parameters,
            gradients,
            momentum,
            hessian,
            hessian_estimate,
            new_momentum,
            None if hessian_estimate is None else new_hessian,
            held_back,
            number,
            # every difference and product of the settings in float64, as the reference has them
            float(-learning_rate),
            float(-learning_rate * weight_decay),
            float(momentum_decay),
            float(1 - momentum_decay),
            float(hessian_decay),
            float(1 - hessian_decay),
            float(clip_bound),
            float(epsilon),
            DECAYS=weight_decay != 0,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            # which product and sum are rounded as one is said in the kernel, not left to Triton's version
            enable_fp_fusion=False,
        )
    return new_momentum, new_hessian


@triton.jit(do_not_specialize=["number"])
def _kernel(
    parameters,
    gradients,
    momentum,
    hessian,
    estimate,
    new_momentum,
    new_hessian,
    held_back,
    number,
    minus_rate,
    minus_rate_decay,
    momentum_decay,
    momentum_share,
    hessian_decay,
    hessian_share,
    clip_bound,
    epsilon,
    DECAYS: tl.constexpr,  # noqa: N803 - Triton's way with what a kernel is compiled for
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One block of the step; `estimate` and `new_hessian`, or `held_back`, may be None."""
    first = tl.program_id(0).to(tl.int64) * BLOCK  # there may be more than 2^31 values
    at = first + tl.arange(0, BLOCK)
    # only the last block needs a mask: with one that may end anywhere, each value is read by itself
    if first + BLOCK <= number:
        _block(
            parameters, gradients, momentum, hessian, estimate, new_momentum, new_hessian, held_back,
            at, None,
            minus_rate, minus_rate_decay, momentum_decay, momentum_share, hessian_decay, hessian_share,
            clip_bound, epsilon, DECAYS,
        )  # fmt: skip
    else:
        _block(
            parameters, gradients, momentum, hessian, estimate, new_momentum, new_hessian, held_back,
            at, at < number,
            minus_rate, minus_rate_decay, momentum_decay, momentum_share, hessian_decay, hessian_share,
            clip_bound, epsilon, DECAYS,
        )  # fmt: skip


@triton.jit
def _block(
    parameters,
    gradients,
    momentum,
    hessian,
    estimate,
    new_momentum,
    new_hessian,
    held_back,
    at,
    mask,
    minus_rate,
    minus_rate_decay,
    momentum_decay,
    momentum_share,
    hessian_decay,
    hessian_share,
    clip_bound,
    epsilon,
    DECAYS: tl.constexpr,  # noqa: N803
):
    theta = tl.load(parameters + at, mask)
    m = tl.fma(tl.load(gradients + at, mask), momentum_share, momentum_decay * tl.load(momentum + at, mask))
    tl.store(new_momentum + at, m, mask)
    h = tl.load(hessian + at, mask)
    if estimate is not None:
        h = tl.fma(tl.load(estimate + at, mask), hessian_share, hessian_decay * h)
        tl.store(new_hessian + at, h, mask)
    if DECAYS:
        theta = tl.fma(theta, minus_rate_decay, theta)
    # by default NaN would give way to the other number, and `/` would be off by a last bit or two
    move = tl.div_rn(m, tl.maximum(h, epsilon, propagate_nan=tl.PropagateNan.ALL))
    if held_back is not None:
        over = tl.abs(move) > clip_bound
        if mask is not None:
            over = over & mask
        tl.atomic_add(held_back, tl.sum(over.to(tl.int32)).to(tl.int64), sem="relaxed")
    move = tl.clamp(move, -clip_bound, clip_bound, propagate_nan=tl.PropagateNan.ALL)
    tl.store(parameters + at, tl.fma(move, minus_rate, theta), mask)
