# SPDX-License-Identifier: Apache-2.0
"""The server's half of Fed-Sophia with shared curvature and direction.

    q_i = (Δ_i + (1−a_i)·θ_i)/R_i                  a_i, R_i: the bound of the steps worker i did;
                                                   θ_i: the version it started from, θ if synchronous
    θ ← θ + s·combine(Δ_i)                         s: the share, 1 but in asynchronous runs
    q̄ ← c·q̄ + (1−c)·combine(q_i)                   `direction`, in [−1, 1]
    h ← β2·h + (1−β2)·combine(ĥ_i)                 `hessian`, every R_h versions

Source: none; ours. It shares through the server what arXiv 2406.06655 keeps on each worker. Near prior
art: FedPAC (arXiv 2602.19271) averages the preconditioner, FedCM (arXiv 2106.10874) sends momentum down.
q_i is normalised by each worker's own bound and start, so that weight decay, unequal numbers of steps and
stale updates are right.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from protocol.fed_sophia import FedSophiaSharedHyperparameters
from ps_service.server_steps.base import Chunk, StepContext, blend

PARTIAL_MIXING = 0.5
"""c under partial participation, unless the run says otherwise; measured best of 0 and 0.5.

With a share s below a half it is 1−s: q̄ then spans as many updates as it does in a synchronous run.
"""


class SophiaShared:
    """Moves θ, the shared direction q̄ and the shared diagonal Hessian h."""

    def derive(
        self, received: Mapping[str, Chunk], starts: Iterable[Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        direction = np.empty_like(received["delta"])
        for row, delta, start, bound in zip(
            direction, received["delta"], starts, context.bounds, strict=True
        ):
            assert bound is not None
            row[:] = bound.normalise(delta, start)
        return {"direction": direction}

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        hyperparameters = context.hyperparameters
        assert isinstance(hyperparameters, FedSophiaSharedHyperparameters)
        mixing = hyperparameters.direction_mixing
        if mixing is None:
            mixing = max(1 - context.share, PARTIAL_MIXING if context.partial else 0.0)
        changed: dict[str, Chunk] = {
            "params": state["params"] + np.float32(context.share) * combined["delta"],
            "direction": blend(state["direction"], combined["direction"], mixing),
        }
        if "hessian" in combined:
            changed["hessian"] = blend(state["hessian"], combined["hessian"], hyperparameters.hessian_decay)
        return changed
