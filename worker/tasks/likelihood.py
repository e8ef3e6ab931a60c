# SPDX-License-Identifier: Apache-2.0
"""Likelihoods: how a model's outputs become a loss, and labels drawn from the model itself.

Both follow from one distribution p(target | outputs): the loss is its mean negative logarithm, and the
Gauss–Newton–Bartlett estimate needs targets drawn from it. To add a likelihood, write a class with the
methods of `Likelihood` and add a line to `LIKELIHOODS`.

The arithmetic is float32 at least, whatever the outputs are: of bfloat16's three digits a mean of many terms
leaves little, a probability near one is one, and noise of unit variance is lost in an output of a thousand.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from protocol.errors import InvalidTask
from worker.tasks.label_draws import drawn_labels

PADDING = -100
"""The class number that marks a target as padding, as PyTorch's cross-entropy has it."""


class Likelihood(Protocol):
    """A distribution of targets given outputs."""

    @property
    def padded(self) -> bool:
        """Whether a target may be padding, which is looked for in each batch."""
        ...

    def of_data(self, targets: Tensor) -> "Likelihood":
        """The same, for batches of these targets alone: what is known of all need not be looked for in each.

        The processor waits for a GPU to look into a batch that is there.

        Raises:
            InvalidTask: there is a target that this distribution cannot give.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood over the loss terms, a scalar.

        Raises:
            InvalidTask: the shapes do not belong together, or there is no loss term.
        """
        ...

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Draw targets from the outputs; `generator` is on the outputs' device.

        Args:
            targets: the true ones. They say only which of them are padding, and that stays padding.
        """
        ...

    def num_terms(self, targets: Tensor) -> int:
        """How many loss terms `loss` averages: B of the Gauss–Newton–Bartlett estimate."""
        ...

    def num_with_terms(self, targets: Tensor) -> int:
        """How many examples have a loss term."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Sums over the loss terms, so that batches add up; divide by their number for the mean."""
        ...


@dataclass(frozen=True)
class Categorical:
    """One of C classes; outputs are logits (…, C), targets class numbers (…).

    A loss term is one example for (B, C) and one token for (B, T, C). A target of `PADDING` is none: it
    has no part in the loss, the metrics or their number, and no label is drawn for it.
    """

    padded: bool = True
    """Whether a target may be padding."""

    def of_data(self, targets: Tensor) -> "Categorical":
        return Categorical(padded=bool((targets == PADDING).any()))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        _require_shape(targets, outputs.shape[:-1])
        if not self.num_terms(targets):
            raise InvalidTask(f"targets: every one of a batch is {PADDING}, which marks padding")
        return F.cross_entropy(_precise(outputs).flatten(0, -2), targets.flatten(), ignore_index=PADDING)

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        drawn = drawn_labels(outputs, generator)
        return drawn.masked_fill_(targets == PADDING, PADDING) if self.padded else drawn

    def num_terms(self, targets: Tensor) -> int:
        return int((targets != PADDING).sum()) if self.padded else targets.numel()

    def num_with_terms(self, targets: Tensor) -> int:
        if not self.padded:
            return len(targets)
        return int((targets != PADDING).reshape(len(targets), -1).any(dim=1).sum())

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        loss = self.loss(outputs, targets) * self.num_terms(targets)
        correct = (outputs.argmax(dim=-1) == targets).sum()  # no class number is PADDING
        return {"loss": loss.item(), "accuracy": correct.item()}


class Bernoulli:
    """Independent yes or no; outputs are logits, targets 0 or 1 of the same shape; each is a loss term."""

    padded = False

    def of_data(self, targets: Tensor) -> "Bernoulli":
        # of -1 and 1, say, the loss has no bound below
        if len(targets) and not bool(((targets >= 0) & (targets <= 1)).all()):
            low, high = targets.min().item(), targets.max().item()
            raise InvalidTask(f"targets: expected 0 or 1, got some from {low:g} to {high:g}")
        return self

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        _require_shape(targets, outputs.shape)
        outputs = _precise(outputs)
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(torch.sigmoid(_precise(outputs)), generator=generator)

    def num_terms(self, targets: Tensor) -> int:
        return targets.numel()

    def num_with_terms(self, targets: Tensor) -> int:
        return len(targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        loss = self.loss(outputs, targets) * targets.numel()
        correct = ((outputs > 0) == (targets > 0.5)).sum()
        return {"loss": loss.item(), "accuracy": correct.item()}


class Gaussian:
    """Independent normal values of unit variance; outputs are means, targets of the same shape.

    Each value is a loss term: (output - target)²/2. The constant log(2π)/2 is left out.
    """

    padded = False

    def of_data(self, targets: Tensor) -> "Gaussian":
        return self

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        _require_shape(targets, outputs.shape)
        outputs = _precise(outputs)
        return F.mse_loss(outputs, targets.to(outputs.dtype)) / 2

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        means = _precise(outputs)
        # not empty_like, whose order in memory is that of the means
        noise = torch.empty(means.shape, dtype=means.dtype, device=means.device)
        return means + noise.normal_(generator=generator)

    def num_terms(self, targets: Tensor) -> int:
        return targets.numel()

    def num_with_terms(self, targets: Tensor) -> int:
        return len(targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        loss = self.loss(outputs, targets) * targets.numel()
        return {"loss": loss.item(), "squared_error": 2 * loss.item()}


LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": Categorical(),
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(),
}


def likelihood_named(name: str) -> Likelihood:
    """Give the likelihood with this name.

    Raises:
        InvalidTask: there is none.
    """
    try:
        return LIKELIHOODS[name]
    except KeyError:
        raise InvalidTask(f"likelihood {name!r}: expected one of {', '.join(LIKELIHOODS)}") from None


def _precise(outputs: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _require_shape(targets: Tensor, expected: torch.Size) -> None:
    # without this (B,) targets against (B, 1) outputs broadcast to B·B wrong terms
    if targets.shape != expected:
        raise InvalidTask(f"targets: expected shape {tuple(expected)}, got {tuple(targets.shape)}")
