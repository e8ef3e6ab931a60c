# SPDX-License-Identifier: Apache-2.0
"""The ways of holding rounds that are compared: combiners and policies of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fed_sophia.new_run import RunRequest

TASK = "fashion-mnist-mlp"
WORKERS = 32
QUORUM = 16
KEPT = 23
"""Workers that are neither dead nor slow nor liars in a round of 32."""
TARGETS = (0.75, 0.80)
_DEADLINE = {"deadline_s": 10.0, "adaptive_deadline": {"spread": 4.0, "floor_s": 5.0, "ceiling_s": 30.0}}
_TARGET_WAIT_S = 30.0
_ALL = {"cohort_size": WORKERS, "quorum": QUORUM} | _DEADLINE
_FIRST = {"cohort_size": KEPT, "over_selection": WORKERS / KEPT, "quorum": QUORUM} | _DEADLINE
_TRIMMED = {"delta": "trimmed_mean"}


@dataclass(frozen=True)
class Setting:
    """What the clean and the disturbed run have in common."""

    policies: Mapping[str, object]
    combiners: Mapping[str, str] = field(default_factory=dict)


SETTINGS: Mapping[str, Setting] = {
    "all-mean": Setting(_ALL),
    "all-trimmed": Setting(_ALL, _TRIMMED),
    "first-mean": Setting(_FIRST),
    "first-trimmed": Setting(_FIRST, _TRIMMED),
}
"""`all` waits for everybody invited until the deadline, `first` invites everybody and keeps the first 23."""


def request_for(setting: Setting, seed: int, most_rounds: int) -> RunRequest:
    """A run that ends with the first version at the highest target."""
    target = {"name": "test_accuracy", "at_least": max(TARGETS), "wait_s": _TARGET_WAIT_S}
    return RunRequest(
        task=TASK,
        name="reliability",
        rounds=most_rounds,
        policies={"min_workers": WORKERS, "target_metric": target, **setting.policies},
        combiners=dict(setting.combiners),
        seed=seed,
    )
