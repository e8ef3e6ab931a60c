# SPDX-License-Identifier: Apache-2.0
"""Who is slow, who lies, and who dies in which round: decided by a seed alone. PURE.

The three groups do not overlap, so that all of them trouble every round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

SHARE = 0.1
"""Of the workers, in each group."""
SLOWEST = 10.0
LONGEST_AWAY_S = 1.0
_SLOW, _DEATHS, _GARBAGE = range(3)


class Garbage(StrEnum):
    """What a liar may send."""

    NOT_A_NUMBER = "not-a-number"
    HUGE = "huge"
    """1e6 everywhere, far outside the bound."""
    WRONG_SHAPE = "wrong-shape"
    """The right number of values, in tensors of another shape."""
    DAMAGED = "damaged"
    """Other bytes than were declared."""
    OVERLONG = "overlong"
    """More bytes than were declared."""
    TRUNCATED = "truncated"
    """Half of the body; then the connection is closed."""
    INSIDE = "inside"
    """As far as the bound allows in a random direction, and a random Hessian: it is admitted."""
    REVERSED = "reversed"
    """As far as the bound allows against the shared direction, and a random Hessian: it is admitted."""


REFUSABLE = tuple(kind for kind in Garbage if kind not in (Garbage.INSIDE, Garbage.REVERSED))
REPERTOIRES: Mapping[str, tuple[Garbage, ...]] = {
    "refusable": REFUSABLE,
    "mixed": REFUSABLE + (Garbage.INSIDE,) * len(REFUSABLE),
    "inside": (Garbage.INSIDE,),
    "reversed": (Garbage.REVERSED,),
}
"""What the liars of a run choose from, each for itself and each round anew: {name: equally likely kinds}."""


@dataclass(frozen=True)
class Death:
    """How a worker dies in a round."""

    sending: bool
    """In the middle of its upload; otherwise while it trains."""
    after: float
    """Where in its training: 0 at the beginning, 1 at the end."""
    away_s: float
    """How long it stays away once the round is over."""


@dataclass(frozen=True)
class Disturbances:
    """What goes wrong in a run."""

    seed: int
    slow: Mapping[int, float]
    """{worker: how many times longer than the others it takes}."""
    liars: frozenset[int]
    mortals: tuple[int, ...]
    """Who may die: everybody else."""
    deaths_a_round: int
    repertoire: tuple[Garbage, ...]

    def deaths_in(self, round_number: int) -> Mapping[int, Death]:
        """Who dies in this round, and how: {worker: death}."""
        chance = np.random.default_rng([self.seed, _DEATHS, round_number])
        dying = chance.choice(self.mortals, self.deaths_a_round, replace=False)
        return {
            int(worker): Death(
                sending=bool(chance.random() < 0.5),
                after=float(chance.uniform(0.1, 0.9)),
                away_s=float(chance.uniform(0, LONGEST_AWAY_S)),
            )
            for worker in dying
        }

    def garbage_of(self, worker: int, round_number: int) -> Garbage:
        """What this liar sends in this round."""
        return self.repertoire[int(self.chance_of(worker, round_number).integers(len(self.repertoire)))]

    def chance_of(self, worker: int, round_number: int) -> np.random.Generator:
        """Where a liar's numbers of this round come from."""
        return np.random.default_rng([self.seed, _GARBAGE, round_number, worker])


def undisturbed(num_workers: int) -> Disturbances:
    """Nothing goes wrong."""
    return Disturbances(0, {}, frozenset(), tuple(range(num_workers)), 0, ())


def disturbances(seed: int, num_workers: int, repertoire: tuple[Garbage, ...]) -> Disturbances:
    """A tenth of the workers die every round, a tenth are slow, a tenth lie; rounded to whole workers."""
    chance = np.random.default_rng([seed, _SLOW])
    size = round(SHARE * num_workers)
    order = [int(worker) for worker in chance.permutation(num_workers)]
    factors = np.exp(chance.uniform(0, np.log(SLOWEST), size))
    return Disturbances(
        seed=seed,
        slow={worker: float(factor) for worker, factor in zip(order[:size], factors, strict=True)},
        liars=frozenset(order[size : 2 * size]),
        mortals=tuple(sorted(order[2 * size :])),
        deaths_a_round=size,
        repertoire=repertoire,
    )
