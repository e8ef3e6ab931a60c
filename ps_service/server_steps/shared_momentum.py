# SPDX-License-Identifier: Apache-2.0
"""The server's half of FedLion: the workers' momentum is averaged and sent down again.

    θ ← θ + s·combine(Δ_i)               s: the share, 1 but in asynchronous runs
    m ← (1−s)·m + s·combine(m_i)         `momentum`

Source: Tang & Chang 2024 (arXiv 2402.09941). Where we differ: deltas come dense, where the
paper sends them as integers; the share is ours, so that m is of as many workers as in a synchronous run.
"""

from collections.abc import Mapping

import numpy as np

from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext, blend


class SharedMomentum(CombinesAsReceived):
    """Moves θ by the combined delta, and `momentum` to the combined one."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        changed: dict[str, Chunk] = {
            "params": state["params"] + np.float32(context.share) * combined["delta"]
        }
        if "momentum" in combined:  # too few bring it where an asynchronous run has no quorum
            changed["momentum"] = blend(state["momentum"], combined["momentum"], 1 - context.share)
        return changed
