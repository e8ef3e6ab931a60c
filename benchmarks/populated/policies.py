# SPDX-License-Identifier: Apache-2.0
"""The ways of holding rounds that are compared."""

from collections.abc import Mapping

from protocol.messages import RunSpec, parse

DEADLINE_S = 900.0
QUORUM_SHARE = 0.8
"""Of the updates that a round collects."""
ADAPTIVE = {"spread": 4.0, "floor_s": 60.0, "ceiling_s": 3_600.0}
OVER_SELECTIONS = (1.0, 1.1, 1.3, 1.5)

_DEADLINES: Mapping[str, Mapping[str, object]] = {
    "fixed": {},
    "extended": {"max_extensions": 1},
    "adaptive": {"adaptive_deadline": ADAPTIVE},
}
POLICIES: Mapping[str, Mapping[str, object]] = {
    f"{over_selection}-{deadline}": {"over_selection": over_selection, **changes}
    for deadline, changes in _DEADLINES.items()
    for over_selection in OVER_SELECTIONS
}
"""`1.3-fixed` invites 1.3 workers for each update and closes after 900 s at the latest."""
COMPARED = ("1.0-fixed", "1.1-fixed", "1.3-fixed", "1.5-fixed", "1.0-adaptive", "1.3-adaptive")
"""Unless others are asked for."""


def spec_for(policy: str, cohort: int, seed: int, hours: float) -> RunSpec:
    """A run of so many hours; it trains nothing, so that its model does not matter."""
    fixed = {
        "name": "population",
        "task": "none",
        "algorithm": "fedavg",
        "model": [{"name": "w", "shape": [1]}],
        "params_digest": "00" * 32,
        "seed": seed,
        "rounds": 1_000_000,
        "cohort_size": cohort,
        "quorum": max(1, round(QUORUM_SHARE * cohort)),
        "deadline_s": DEADLINE_S,
        "max_duration_s": hours * 3600,
    }
    return parse(RunSpec, fixed | dict(POLICIES[policy]))
