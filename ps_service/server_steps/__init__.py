# SPDX-License-Identifier: Apache-2.0
"""Menu: combined values → the next global state. To add one, copy `average.py` and add a line below."""

from ps_service.server_steps.adagrad import Adagrad
from ps_service.server_steps.adam import Adam
from ps_service.server_steps.average import Average
from ps_service.server_steps.base import ServerStep, StepContext
from ps_service.server_steps.curvature_weighted import CurvatureWeighted
from ps_service.server_steps.direction import Direction
from ps_service.server_steps.done import Done
from ps_service.server_steps.momentum import Momentum
from ps_service.server_steps.scaffold import Scaffold
from ps_service.server_steps.shared_momentum import SharedMomentum
from ps_service.server_steps.sophia_shared import SophiaShared
from ps_service.server_steps.yogi import Yogi

__all__ = ["SERVER_STEPS", "ServerStep", "StepContext"]

SERVER_STEPS: dict[str, ServerStep] = {
    "adagrad": Adagrad(),
    "adam": Adam(),
    "average": Average(),
    "curvature_weighted": CurvatureWeighted(),
    "direction": Direction(),
    "done": Done(),
    "momentum": Momentum(),
    "scaffold": Scaffold(),
    "shared_momentum": SharedMomentum(),
    "sophia_shared": SophiaShared(),
    "yogi": Yogi(),
}
