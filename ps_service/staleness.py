# SPDX-License-Identifier: Apache-2.0
"""How old an update of an asynchronous run may be, and what it weighs. PURE.

    staleness s_i = v − v_i               v: the version its round builds on; v_i: that it was made from
    weight    w_i ∝ (1 + s_i)^−a / n_i    relative to the others of its round; n_i: its worker's updates in it

Source: FedBuff, Nguyen et al. 2022 (arXiv 2106.06639), which takes a = 1/2. Differs: our weights sum to 1, so
that a round of stale updates moves the model as far as one of fresh ones (there the whole step shrinks),
and a worker that sends several in a round has one say in it.
"""

from protocol.errors import TooStale
from protocol.messages import RunSpec


def require_fresh(spec: RunSpec, staleness: int) -> None:
    """Raises: TooStale: more than the spec allows."""
    if spec.asynchronous is not None and staleness > spec.asynchronous.max_staleness:
        raise TooStale(
            f"{staleness} versions were made since the one this update starts from; "
            f"at most {spec.asynchronous.max_staleness} are allowed"
        )


def oldest_fresh_version(spec: RunSpec, version: int) -> int | None:
    """Nothing older is taken once the run has this version; None in a synchronous run."""
    return None if spec.asynchronous is None else version - spec.asynchronous.max_staleness


def weight(spec: RunSpec, staleness: int) -> float:
    """What an update weighs by its age, relative to a fresh one."""
    return (
        1.0 if spec.asynchronous is None else float((1 + staleness) ** -spec.asynchronous.staleness_exponent)
    )
