# SPDX-License-Identifier: Apache-2.0
"""How one data set is divided among N workers, for simulations and trials on one machine.

Every scheme is seeded, gives every example to exactly one worker, and leaves none out. Two workers that
use the same data, scheme, N and seed agree on who has what. Most schemes go by the examples' targets;
`groups` goes by the file, author or site that each example came from, which a task may tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidTask, InvalidUsage

Indices = npt.NDArray[np.int64]
Targets = npt.NDArray[np.generic]

MIN_EXAMPLES = 10
"""Fewest examples that a scheme which draws sizes lets a worker have."""
MAX_REDRAWS = 1_000
LOG_SIZE_DEVIATION = 1.0
"""Standard deviation of the logarithm of a `labels` worker's weight for one of its labels.

At 1, the largest of 32 workers with 3 of 10 labels holds about 9 times what the smallest does, and the
first draw nearly always gives all of them `MIN_EXAMPLES`, even of 1,500 examples. At 2 it would be 70
times, and of so few examples a hundred draws would be thrown away: what is kept is then drawn otherwise.
"""


class Scheme(Protocol):
    """A way to divide targets, or groups; gives one array of indices for each worker."""

    def split(self, targets: Targets, of: int, rng: np.random.Generator) -> list[Indices]: ...


@dataclass(frozen=True)
class Partition:
    """A scheme with the checks and the seeding that all schemes share."""

    scheme: Scheme
    divides: Literal["targets", "groups"] = "targets"
    """What the scheme is shown of the examples."""

    def indices(
        self, targets: Targets, index: int, of: int, seed: int, groups: Indices | None = None
    ) -> Indices:
        """Which examples worker `index` of `of` has, in ascending order: `indices_of_each` for one."""
        return self.indices_of_each(targets, [index], of, seed, groups)[0]

    def indices_of_each(
        self,
        targets: Targets,
        workers: Sequence[int],
        of: int,
        seed: int,
        groups: Indices | None = None,
    ) -> list[Indices]:
        """Which examples each of these workers has, in ascending order; the data are divided once.

        Args:
            targets: of the whole data set; shape (N,) and whole numbers unless the scheme is `iid` or
                `groups`.
            workers: each 0 to `of` - 1.
            groups: shape (N,), the group each example came from; needed where `divides` says so.

        Raises:
            InvalidUsage: there is no such worker, or the data cannot be divided so.
            InvalidTask: the groups are not one whole number an example.
        """
        for index in workers:
            if not 0 <= index < of:
                raise InvalidUsage(f"part {index} of {of}: expected a part from 0 to {of - 1}")
        shown = targets if self.divides == "targets" else _groups(groups, len(targets))
        parts = self.scheme.split(shown, of, np.random.default_rng(seed))
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
        return _redrawn(
            f"dirichlet:{self.alpha:g}",
            classes,
            of,
            lambda _, members: self._cuts(members, of, rng),
            "use fewer workers or a larger alpha",
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


@dataclass(frozen=True)
class LabelSets:
    """Worker i holds the K labels (i + j) mod C, j = 0 … K - 1, of C in ascending order; sizes are unequal.

    Of every label, its workers' shares are in proportion to weights e^(σ·z), z standard normal and
    σ = `LOG_SIZE_DEVIATION`; each has one example at least while there are enough. All weights are
    redrawn until each worker has at least `MIN_EXAMPLES` examples.

    Source: the experiments of arXiv 2406.06655 (K = 3, C = 10, 32 workers). Differs: σ is ours, and all
    of the examples are given away.
    """

    per_worker: int

    def split(self, targets: Targets, of: int, rng: np.random.Generator) -> list[Indices]:
        name = f"labels:{self.per_worker}"
        labels = _labels(targets)
        distinct = np.unique(labels)
        if self.per_worker > distinct.size:
            raise InvalidUsage(f"{name}: the examples have {distinct.size} labels only")
        if of + self.per_worker - 1 < distinct.size:
            raise InvalidUsage(
                f"{name}: {of} workers would leave out label {distinct[of + self.per_worker - 1]}; "
                f"expected {distinct.size - self.per_worker + 1} workers or more"
            )
        # [c, i]: does worker i hold label c?
        held = (np.arange(distinct.size)[:, None] - np.arange(of)) % distinct.size < self.per_worker
        classes = [rng.permutation(np.flatnonzero(labels == label)) for label in distinct]
        return _redrawn(
            name,
            classes,
            of,
            lambda label, members: self._cuts(members, held[label], rng),
            "use fewer workers or more labels each",
        )

    def _cuts(self, num_members: int, holds: npt.NDArray[np.bool_], rng: np.random.Generator) -> Indices:
        """Where to cut a label's members: one more position than workers; who does not hold it gets none."""
        num_holders = int(holds.sum())
        certain = min(1, num_members // num_holders)
        shares = np.cumsum(rng.lognormal(0.0, LOG_SIZE_DEVIATION, num_holders))
        by_weight = np.rint(shares / shares[-1] * (num_members - certain * num_holders)).astype(np.int64)
        sizes = np.zeros(holds.size, dtype=np.int64)
        sizes[holds] = certain + np.diff(by_weight, prepend=0)
        return np.concatenate([[0], np.cumsum(sizes)])


@dataclass(frozen=True)
class WholeGroups:
    """Shuffled groups, each to the worker with the fewest examples so far, as a whole.

    Sizes differ by at most the size of the largest group. What it divides are the groups, not the targets.
    """

    def split(self, targets: Targets, of: int, rng: np.random.Generator) -> list[Indices]:
        numbers, group_of_each, sizes = np.unique(targets, return_inverse=True, return_counts=True)
        if numbers.size < of:
            raise InvalidUsage(f"groups: {numbers.size} groups of examples are too few for {of} workers")
        examples_so_far = np.zeros(of, dtype=np.int64)
        worker_of_each = np.empty(numbers.size, dtype=np.int64)
        for group in rng.permutation(numbers.size):
            worker = int(examples_so_far.argmin())
            worker_of_each[group] = worker
            examples_so_far[worker] += sizes[group]
        return [np.flatnonzero(worker_of_each[group_of_each] == worker) for worker in range(of)]


def parse_partition(text: str) -> Partition:
    """Read `iid`, `dirichlet:ALPHA`, `shards:K`, `labels:K` or `groups`.

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
        if name == "labels" and int(value) >= 1:
            return Partition(LabelSets(int(value)))
        if name == "groups" and not value:
            return Partition(WholeGroups(), divides="groups")
    except ValueError:
        pass  # the number cannot be read: refused below, like one out of range
    raise InvalidUsage(
        f"partition {text!r}: expected iid, dirichlet:ALPHA (above 0), shards:K (1 or more), "
        "labels:K (1 or more) or groups"
    )


def _redrawn(
    name: str,
    classes: Sequence[Indices],
    of: int,
    draw_cuts: Callable[[int, int], Indices],
    remedy: str,
) -> list[Indices]:
    """Cut every class's members among the workers, anew until each worker has `MIN_EXAMPLES`.

    Args:
        draw_cuts: for a class's place in `classes` and its number of members, of + 1 ascending
            positions, the first 0, the last the end.
    """
    for _ in range(MAX_REDRAWS):
        cuts = [draw_cuts(place, len(members)) for place, members in enumerate(classes)]
        sizes = sum(np.diff(cut) for cut in cuts)
        if np.min(sizes) >= MIN_EXAMPLES:
            pieces = [np.split(members, cut[1:-1]) for members, cut in zip(classes, cuts, strict=True)]
            return [np.concatenate([piece[worker] for piece in pieces]) for worker in range(of)]
    raise InvalidUsage(
        f"{name}: in {MAX_REDRAWS} draws some of {of} workers always had fewer than {MIN_EXAMPLES} "
        f"examples; {remedy}"
    )


def _groups(groups: Indices | None, num_examples: int) -> Indices:
    if groups is None:
        raise InvalidUsage("groups: this task does not say which group its examples came from")
    if groups.shape != (num_examples,) or not np.issubdtype(groups.dtype, np.integer):
        raise InvalidTask(
            f"groups: expected {num_examples} whole numbers, one an example, "
            f"got shape {groups.shape} and type {groups.dtype}"
        )
    return groups


def _labels(targets: Targets) -> Targets:
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise InvalidUsage(
            f"only iid and groups divide targets of shape {targets.shape} and type {targets.dtype}; "
            "the other schemes need one whole number an example"
        )
    return targets
