# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the algorithms that Fed-Sophia is compared with."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from protocol.bound import DeltaBound
from protocol.hyperparameters import (
    Decay,
    EstimatingHyperparameters,
    Hyperparameters,
    Period,
    Rate,
    WeightDecay,
    check_decay,
)


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


class FedProxHyperparameters(FedAvgHyperparameters):
    """FedProx (Li et al. 2018, arXiv 1812.06127): local SGD drawn back to where it began."""

    proximal_weight: Annotated[float, Field(ge=0, le=1e9)] = 0.01
    """μ."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return super().optimizer_settings(local_steps) | {"proximal_weight": self.proximal_weight}


class LocalAdamWHyperparameters(FedAvgHyperparameters):
    """AdamW on the workers (Loshchilov & Hutter 2017, arXiv 1711.05101), then the mean."""

    learning_rate: Rate = 2e-3
    momentum_decay: Decay = 0.9
    second_moment_decay: Decay = 0.99
    weight_decay: WeightDecay = 1e-2
    epsilon: Rate = 1e-8
    keep_state: Annotated[int, Field(ge=0, le=1)] = 1
    """1: the moments stay on the worker between rounds; 0: each round begins with new ones."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        check_decay(self.learning_rate, self.weight_decay)
        return super().optimizer_settings(local_steps) | {
            "momentum_decay": self.momentum_decay,
            "second_moment_decay": self.second_moment_decay,
            "weight_decay": self.weight_decay,
            "epsilon": self.epsilon,
            "keep_state": float(self.keep_state),
        }


class FedLionHyperparameters(Hyperparameters):
    """FedLion (Tang & Chang 2024, arXiv 2402.09941); η = R/J, so changing J needs no retuning."""

    max_round_step: Rate = 0.02
    """R: the farthest a coordinate can move in a round."""
    momentum_weight: Decay = 0.9
    """The paper's β1: what of a step's sign is the momentum's."""
    momentum_decay: Decay = 0.99
    """The paper's β2."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return {
            "learning_rate": self.max_round_step / local_steps,
            "momentum_weight": self.momentum_weight,
            "momentum_decay": self.momentum_decay,
        }

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1, "momentum": 1}

    def bound(self, steps: int, local_steps: int) -> DeltaBound:
        rate = self.max_round_step / local_steps
        return DeltaBound.after(steps, learning_rate=rate, clip_bound=1.0, weight_decay=0.0)


class FedCmHyperparameters(FedAvgHyperparameters):
    """FedCM (Xu et al. 2021, arXiv 2106.10874): momentum that the server sends down."""

    learning_rate: Rate = 0.2
    gradient_weight: Annotated[float, Field(gt=0, le=1)] = 0.1
    """α: what of a step is the worker's own gradient; the rest is the server's direction."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return super().optimizer_settings(local_steps) | {"gradient_weight": self.gradient_weight}


class ScaffoldHyperparameters(FedAvgHyperparameters):
    """SCAFFOLD, option II (Karimireddy et al. 2020, arXiv 1910.06378): control variates."""

    learning_rate: Rate = 0.05
    server_learning_rate: Rate = 1.0
    """η_g."""

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1, "control_delta": 1}


class CurvatureWeightedHyperparameters(FedAvgHyperparameters, EstimatingHyperparameters):
    """Deltas averaged by each worker's curvature (Matena & Raffel 2021, arXiv 2111.09832)."""

    hessian_every: Period = 2
    """τ: a Hessian estimate every so many local steps of a round, the first included."""
    damping: Rate = 1e-3
    """γ: what is added to every curvature; the larger, the nearer to the plain mean."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return super().optimizer_settings(local_steps) | {"hessian_every": float(self.hessian_every)}

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1, "hessian": 1}


class DoneHyperparameters(Hyperparameters):
    """DONE (Dinh et al. 2022, arXiv 2012.05625): Newton's direction by Richardson iteration."""

    richardson_rate: Rate = 0.005
    """ω, the paper's α; above 2/λ_max of a worker's Hessian its direction grows without end."""
    server_learning_rate: Rate = 1.0
    """η_s."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return {"richardson_rate": self.richardson_rate}

    def periods(self) -> Mapping[str, int]:
        return {"gradient": 2, "delta": 2}

    def bundles_wanted(self, count: int) -> tuple[str, ...]:
        return ("delta",) if count % 2 else ("gradient",)

    def bound(self, steps: int, local_steps: int) -> DeltaBound | None:
        return None
