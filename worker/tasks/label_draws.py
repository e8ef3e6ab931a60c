# SPDX-License-Identifier: Apache-2.0
"""Labels drawn from a softmax, some rows at a time: no copy of all the logits is made.

On a CPU by inversion, for which a row takes one random number; of these it makes one after the other, and
one for each logit took half the time of a Hessian estimate. Elsewhere by noise on each logit: a GPU makes
random numbers by the thousand, and is slow at the sums along a row that inversion needs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LOGITS_IN_CACHE = 2**18
"""So many are looked at together on a CPU, 3 MiB of probabilities and sums."""
LOGITS_AT_ONCE = 2**24
"""So many are elsewhere: 64 MiB of noise, whatever the batch and the number of classes."""

Draw = Callable[[Tensor, torch.Generator], Tensor]


def drawn_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the softmax of each row of `logits`, shape (…, C); give class numbers, shape (…).

    A class whose logit is -inf is not drawn. Of a row with NaN it is any class.

    Args:
        generator: on the logits' device. On a CPU it gives the same labels however many rows are looked at
            together.
    """
    draw, at_once = (by_inversion, LOGITS_IN_CACHE) if logits.is_cpu else (by_noise, LOGITS_AT_ONCE)
    parts = torch.split(logits.flatten(0, -2), max(1, at_once // logits.shape[-1]))
    return torch.cat([draw(part, generator) for part in parts]).view(logits.shape[:-1])


def by_inversion(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The classes at numbers drawn evenly: what they are at is as long as their probability."""
    numbers = torch.rand(len(logits), generator=generator, dtype=torch.float64)
    return classes_at(logits, numbers)


def classes_at(logits: Tensor, numbers: Tensor) -> Tensor:
    """Give of each row the first class at which the sum of the probabilities is over a number.

    Args:
        logits: shape (rows, C).
        numbers: from 0 to less than 1, of the whole sum; float64, shape (rows,).
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    # sums in float64: in float32 a class of 10^-8 behind many others would be drawn never or too often
    sums = torch.softmax(logits, -1, dtype=kind).cumsum(-1, dtype=torch.float64)
    whole = sums[:, -1:]
    # rounding may have made it the whole sum, over which there is no class
    at = torch.minimum(numbers[:, None] * whole, whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(sums, at, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def by_noise(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The argmax of logits with Gumbel noise, which is a draw from their softmax."""
    # −log(E) of a standard exponential E is such noise. It and the sum are float32 whatever the logits are:
    # of so few numbers as bfloat16 has, many would be equal
    exponential = torch.empty(logits.shape, device=logits.device).exponential_(generator=generator)
    return (logits - exponential.log_()).argmax(dim=-1)
