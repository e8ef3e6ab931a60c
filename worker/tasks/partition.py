# SPDX-License-Identifier: Apache-2.0
"""How one data set is divided among N workers, for simulations and trials on one machine.

Every scheme is seeded, gives every example to exactly one worker, and leaves none out. Two workers that
use the same data, scheme, N and seed agree on who has what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidUsage

Indices = npt.NDArray[np.int64]
Targets = npt.NDArray[np.generic]

MIN_EXAMPLES = 10
"""Fewest examples the Dirichlet scheme lets a worker have."""
MAX_REDRAWS = 1_000


class Scheme(Protocol):
    """A way to divide targets; gives one array of indices for each worker."""

    def split(self, targets: Targets, of: int, rng: np.random.Generator) -> list[Indices]: ...


@dataclass(frozen=True)
class Partition:
    """A scheme with the checks and the seeding that all schemes share."""

    scheme: Scheme

    def indices(self, targets: Targets, index: int, of: int, seed: int) -> Indices:
        """Which examples worker `index` of `of` has, in ascending order: `indices_of_each` for one."""
        return self.indices_of_each(targets, [index], of, seed)[0]

    def indices_of_each(self, targets: Targets, workers: Sequence[int], of: int, seed: int) -> list[Indices]:
        """Which examples each of these workers has, in ascending order; the data are divided once.

        Args:
            targets: of the whole data set; shape (N,) and whole numbers unless the scheme is `iid`.
            workers: each 0 to `of` - 1.

        Raises:
            InvalidUsage: there is no such worker, or the data cannot be divided so.
        """
        for index in workers:
            if not 0 <= index < of:
                raise InvalidUsage(f"part {index} of {of}: expected a part from 0 to {of - 1}")
        parts = self.scheme.split(targets, of, np.random.default_rng(seed))
        for index in workers:
            if not parts[index].size:
                raise InvalidUsage(f"part {index} of {of} is empty: there are {len(targets)} examples")
        return [np.sort(parts[index]) for index in workers]


@dataclass(frozen=True)
class Iid:
    """A random even division; sizes differ by at most one."""

    def split(self, targets: Targets, of: int, rng: np.random.Generator) -> list[Indices]:
        return np.array_split(rng.permutation(len(targets)), of)


@dataclass(frozen=True)
class Dirichlet:
    """For every class, shares ~ Dirichlet(α) over the workers; small α makes workers differ more.

    All shares are redrawn until each worker has at least `MIN_EXAMPLES` examples.
    """

    alpha: float

    def split(self, targets: Targets, of: int, rng: np.random.Generator) -> list[Indices]:
        labels = _labels(targets)
        classes = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        for _ in range(MAX_REDRAWS):
            cuts = [self._cuts(len(members), of, rng) for members in classes]
            sizes = sum(np.diff(cut) for cut in cuts)
            if np.min(sizes) >= MIN_EXAMPLES:
                pieces = [np.split(members, cut[1:-1]) for members, cut in zip(classes, cuts, strict=True)]
                return [np.concatenate([piece[worker] for piece in pieces]) for worker in range(of)]
        raise InvalidUsage(
            f"dirichlet:{self.alpha:g}: in {MAX_REDRAWS} draws some of {of} workers always had fewer than "
            f"{MIN_EXAMPLES} examples; use fewer workers or a larger alpha"
        )

    def _cuts(self, num_members: int, of: int, rng: np.random.Generator) -> Indices:
        """Where to cut a class's members: of + 1 ascending positions, the first 0, the last the end."""
        shares = np.cumsum(rng.dirichlet(np.full(of, self.alpha)))
        cuts = np.concatenate([[0.0], shares[:-1] * num_members, [num_members]])
        positions: Indices = np.minimum(np.rint(cuts), num_members).astype(np.int64)
        return positions


@dataclass(frozen=True)
class Shards:
    """Sorted by label, cut into N·K shards whose sizes differ by at most one, K random ones a worker.

    A worker sees at most K labels where shards do not straddle two labels (at most 2K where they do).
    """

    per_worker: int

    def split(self, targets: Targets, of: int, rng: np.random.Generator) -> list[Indices]:
        shuffled = rng.permutation(len(targets))
        by_label = shuffled[np.argsort(_labels(targets)[shuffled], kind="stable")]
        shards = np.array_split(by_label, of * self.per_worker)
        dealt = rng.permutation(len(shards)).reshape(of, self.per_worker)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in dealt]


def parse_partition(text: str) -> Partition:
    """Read `iid`, `dirichlet:ALPHA` or `shards:K`.

    Raises:
        InvalidUsage: it is none of them, or the number is missing or out of range.
    """
    name, _, value = text.partition(":")
    try:
        if name == "iid" and not value:
            return Partition(Iid())
        if name == "dirichlet" and 0 < float(value) < np.inf:
            return Partition(Dirichlet(float(value)))
        if name == "shards" and int(value) >= 1:
            return Partition(Shards(int(value)))
    except ValueError:
        pass  # the number cannot be read: refused below, like one out of range
    raise InvalidUsage(f"partition {text!r}: expected iid, dirichlet:ALPHA (above 0) or shards:K (1 or more)")


def _labels(targets: Targets) -> Targets:
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise InvalidUsage(
            f"only iid divides targets of shape {targets.shape} and type {targets.dtype}; "
            "the other schemes need one whole number an example"
        )
    return targets
