# SPDX-License-Identifier: Apache-2.0
"""What several workers make small together: each its own mean loss, by parameters of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.forward import drawn_signs
from worker.model import ExchangedParameters
from worker.optimizers.base import Tensors
from worker.stacked_outputs import stacked_outputs
from worker.tasks.likelihood import Likelihood


class ManyWorkers:
    """The objective of K workers. Outputs and targets begin with dimensions (K, B); none is padding."""

    def __init__(
        self,
        model: nn.Module,
        exchanged: ExchangedParameters,
        theta: Tensor,
        likelihood: Likelihood,
        generators: Sequence[torch.Generator],
    ) -> None:
        """Args:
        theta: the parameters of all, shape (K, n).
        generators: of each worker's drawn labels and signs.
        """
        self._model = model
        self._names = exchanged.names
        self._kinds = [parameter.dtype for parameter in exchanged.tensors]
        self._likelihood = likelihood
        self._generators = generators
        self.parameters: Tensors = tuple(
            view.requires_grad_() for view in exchanged.layout.views(theta.detach())
        )
        """Views of θ, each (K, *shape)."""

    def outputs(self, inputs: Tensor) -> Tensor:
        # rounded where the model's own are; to what is float32 this does nothing
        rounded = tuple(each.to(kind) for each, kind in zip(self.parameters, self._kinds, strict=True))
        return stacked_outputs(self._model, self._names, rounded, inputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Σ over the workers of their mean losses; all have equally many terms."""
        return self._likelihood.loss(outputs.flatten(0, 1), targets.flatten(0, 1)) * len(outputs)

    def drawn(self, outputs: Tensor, targets: Tensor) -> Tensor:
        own = zip(outputs, targets, self._generators, strict=True)
        return torch.stack([self._likelihood.sample(*each) for each in own])

    def signs(self, like: Tensor) -> Tensor:
        own = zip(like, self._generators, strict=True)
        return torch.stack([drawn_signs(row, generator) for row, generator in own])
