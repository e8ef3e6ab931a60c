# SPDX-License-Identifier: Apache-2.0
"""Menu: what dishonest workers of an experiment send. To add one, add a line to `ATTACKS`. PURE.

A forger has trained like anybody else, and knows what all honest workers are about to send: more than a
deployment would let it know. All forgers of a trial do the same. They hold the last slots, so that the honest
ones are those of a smaller federation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.bound import DeltaBound

Values = npt.NDArray[np.float32]
Tensors = dict[str, Values]

BOOST = 10.0
NOISE = 1.0
"""Standard deviation: a coordinate of an honest Fed-Sophia delta is at most 0.04."""
HUGE = 1e6


@dataclass(frozen=True)
class Known:
    """What a forger goes by in one tensor."""

    honest_mean: Values
    """Of what the honest workers are about to send."""
    started_from: Values
    """The parameters that all were given."""
    bound: DeltaBound | None
    """Of the steps assigned."""
    generator: np.random.Generator
    """The forger's own."""


Forge = Callable[[Values, Known], Values]
"""(a tensor that the forger has honestly made, what it knows) → what it sends instead."""


@dataclass(frozen=True)
class Attack:
    """One line of the menu."""

    summary: str
    bundle: str | None = None
    """Of which the values are forged; None where none are."""
    forge: Forge = lambda own, known: own
    sends: bool = True
    """Whether anything is sent at all."""
    flips_labels: bool = False
    """Whether it trains on examples of class y as if they were of the class y counts from the other end."""


def _times(factor: float) -> Forge:
    return lambda own, known: own * np.float32(factor)


def _everywhere(value: float) -> Forge:
    return lambda own, known: np.full_like(own, value)


def _noise(own: Values, known: Known) -> Values:
    drawn: Values = known.generator.standard_normal(own.shape, dtype=np.float32) * np.float32(NOISE)
    return drawn


def _in_box(own: Values, known: Known) -> Values:
    """Δ with Δ + (1−a)·θ_0 = −R·sign(mean honest Δ): as far the other way as the bound lets anybody go."""
    if known.bound is None:
        return -own
    against = -np.sign(known.honest_mean) * np.float32(known.bound.radius)
    forged: Values = against - np.float32(known.bound.shrinkage) * known.started_from
    return forged


ATTACKS: dict[str, Attack] = {
    "absent": Attack("Sends nothing: what the honest workers alone would have made.", sends=False),
    "sign-flip": Attack("Its honest delta × −10.", "delta", _times(-BOOST)),
    "scaling": Attack("Its honest delta × 10.", "delta", _times(BOOST)),
    "noise": Attack("A normal draw of deviation 1 for every coordinate of the delta.", "delta", _noise),
    "nan": Attack("NaN for every coordinate of the delta.", "delta", _everywhere(np.nan)),
    "label-flip": Attack(
        "What it honestly learns from its examples with the label 9 − y.", flips_labels=True
    ),
    "in-box": Attack(
        "The delta that goes as far as the bound allows, at every coordinate against the mean of the honest "
        "deltas; without a bound its own honest delta × −1.",
        "delta",
        _in_box,
    ),
    "hessian-huge": Attack("10⁶ for every coordinate of the Hessian estimate.", "hessian", _everywhere(HUGE)),
    "hessian-zero": Attack("0 for every coordinate of the Hessian estimate.", "hessian", _everywhere(0.0)),
    "hessian-negative": Attack(
        "−10⁶ for every coordinate of the Hessian estimate.", "hessian", _everywhere(-HUGE)
    ),
}


@dataclass(frozen=True)
class Forgers:
    """The dishonest workers of a trial: the last of its slots."""

    attack: Attack
    slots: frozenset[int]

    @classmethod
    def last(cls, attack: str, number: int, workers: int) -> "Forgers":
        """So many of the workers, as this line of the menu says."""
        return cls(ATTACKS[attack], frozenset(range(workers - number, workers)))

    def forged(
        self,
        made: Mapping[int, dict[str, Tensors]],
        started_from: Mapping[str, Values],
        bound: DeltaBound | None,
        seed: tuple[int, ...],
    ) -> dict[int, dict[str, Tensors]]:
        """Give what the workers of a round send: {slot: {bundle: tensors}}.

        Args:
            made: the same as all of them have honestly made it.
            seed: of this round.
        """
        bundle = self.attack.bundle
        honest = [bundles for slot, bundles in made.items() if slot not in self.slots] or list(made.values())
        if bundle is None or bundle not in honest[0]:
            return dict(made)
        means = {
            name: np.stack([bundles[bundle][name] for bundles in honest]).mean(axis=0, dtype=np.float32)
            for name in started_from
        }
        sent = dict(made)
        for slot in sorted(self.slots & made.keys()):
            generator = np.random.default_rng((*seed, slot))
            forged = {
                name: self.attack.forge(own, Known(means[name], started_from[name], bound, generator))
                for name, own in made[slot][bundle].items()
            }
            sent[slot] = {**made[slot], bundle: forged}
        return sent
