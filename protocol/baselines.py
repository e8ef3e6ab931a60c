# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the algorithms that Fed-Sophia is compared with."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from protocol.bound import DeltaBound
from protocol.hyperparameters import Decay, Hyperparameters, Rate


class FedAvgHyperparameters(Hyperparameters):
    """FedAvg (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1): local SGD, then the mean."""

    learning_rate: Rate = 0.15

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return {"learning_rate": self.learning_rate}

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1}

    def bound(self, steps: int, local_steps: int) -> DeltaBound | None:
        return None


class FedAvgMHyperparameters(FedAvgHyperparameters):
    """FedAvgM (Hsu et al. 2019, arXiv 1909.06335): momentum on the server."""

    learning_rate: Rate = 0.1
    server_learning_rate: Rate = 1.0
    momentum_decay: Decay = 0.9


class FedOptHyperparameters(FedAvgHyperparameters):
    """What the adaptive server steps share (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2)."""

    learning_rate: Rate = 0.1
    server_learning_rate: Rate = 0.03
    momentum_decay: Decay = 0.9
    epsilon: Annotated[float, Field(ge=1e-12, le=1e6)] = 1e-3
    """The paper's τ; its square, where the second moment starts, is a normal float32 number."""


class FedAdagradHyperparameters(FedOptHyperparameters):
    """FedAdagrad: the second moment is a sum."""

    momentum_decay: Decay = 0.0


class FedAdamHyperparameters(FedOptHyperparameters):
    """FedAdam: the second moment is an average."""

    second_moment_decay: Decay = 0.99


class FedYogiHyperparameters(FedOptHyperparameters):
    """FedYogi: the second moment moves by at most a part of Δ̄⊙Δ̄."""

    second_moment_decay: Decay = 0.99
