# SPDX-License-Identifier: Apache-2.0
"""Dividing a data set among workers."""

from dataclasses import dataclass

import numpy as np
import pytest

from protocol.errors import InvalidUsage
from worker.tasks.partition import MIN_EXAMPLES, Iid, Partition, parse_partition

SCHEMES = ["iid", "dirichlet:0.5", "shards:2", "shards:3"]


def balanced(num_classes: int = 10, each: int = 96) -> np.ndarray:
    labels = np.repeat(np.arange(num_classes), each)
    return np.random.default_rng(1).permutation(labels)


def all_parts(scheme: str, targets: np.ndarray, of: int, seed: int = 0) -> list[np.ndarray]:
    partition: Partition = parse_partition(scheme)
    return [partition.indices(targets, index, of, seed) for index in range(of)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_examples", [960, 957])
def test_every_example_goes_to_exactly_one_worker(scheme: str, num_examples: int) -> None:
    parts = all_parts(scheme, balanced()[:num_examples], of=7)
    assert all(part.dtype == np.int64 for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_seed_gives_the_same_parts_and_another_seed_others(scheme: str) -> None:
    targets = balanced()
    first, again, other = (all_parts(scheme, targets, of=6, seed=seed) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("scheme", ["iid", "shards:2"])
def test_workers_get_about_equally_many_examples(scheme: str) -> None:
    sizes = [part.size for part in all_parts(scheme, balanced()[:957], of=7)]
    assert max(sizes) - min(sizes) <= (1 if scheme == "iid" else 2)


@pytest.mark.parametrize("per_worker", [1, 2, 3])
def test_a_worker_sees_at_most_as_many_labels_as_it_has_shards(per_worker: int) -> None:
    targets = balanced(num_classes=10, each=96)  # 20·K shards: none straddles two labels
    for part in all_parts(f"shards:{per_worker}", targets, of=20):
        assert np.unique(targets[part]).size <= per_worker


def test_a_small_alpha_makes_workers_more_one_sided_than_a_large_one() -> None:
    targets = balanced()

    def largest_share(scheme: str) -> float:
        parts = all_parts(scheme, targets, of=5)
        return float(np.mean([np.bincount(targets[part]).max() / part.size for part in parts]))

    assert largest_share("dirichlet:0.1") > 2 * largest_share("dirichlet:100")


def test_a_dirichlet_partition_gives_every_worker_enough_examples() -> None:
    assert min(part.size for part in all_parts("dirichlet:0.1", balanced(), of=8)) >= MIN_EXAMPLES


def test_a_dirichlet_partition_that_cannot_succeed_says_so_after_a_bounded_time() -> None:
    with pytest.raises(InvalidUsage, match="fewer workers or a larger alpha"):
        parse_partition("dirichlet:0.1").indices(balanced(each=2), 0, 8, 0)


@pytest.mark.parametrize(
    "text",
    ["", "iid:2", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:nan", "dirichlet:inf", "shards:0",
     "shards:1.5", "shards:two", "random"],
)  # fmt: skip
def test_a_partition_that_cannot_be_read_is_refused_with_the_menu(text: str) -> None:
    with pytest.raises(InvalidUsage, match=r"expected iid, dirichlet:ALPHA .* or shards:K"):
        parse_partition(text)


def test_the_data_are_divided_once_for_however_many_workers_ask_at_once() -> None:
    @dataclass
    class Counted:
        times: int = 0

        def split(self, targets: np.ndarray, of: int, rng: np.random.Generator) -> list[np.ndarray]:
            self.times += 1
            return Iid().split(targets, of, rng)

    scheme = Counted()
    at_once = Partition(scheme).indices_of_each(balanced(), [4, 0, 2], 5, 0)
    assert scheme.times == 1
    one_by_one = all_parts("iid", balanced(), of=5)
    assert all(np.array_equal(at_once[at], one_by_one[index]) for at, index in enumerate([4, 0, 2]))


@pytest.mark.parametrize("index", [-1, 3])
def test_there_are_only_the_parts_from_0_to_n_minus_1(index: int) -> None:
    with pytest.raises(InvalidUsage, match="part from 0 to 2"):
        parse_partition("iid").indices(balanced(), index, 3, 0)


def test_more_workers_than_examples_is_refused() -> None:
    with pytest.raises(InvalidUsage, match="part 4 of 5 is empty: there are 3 examples"):
        parse_partition("iid").indices(np.arange(3), 4, 5, 0)


def test_targets_that_are_no_labels_can_only_be_divided_evenly() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    assert parse_partition("iid").indices(values, 0, 5, 0).size == 10
    with pytest.raises(InvalidUsage, match="only iid"):
        parse_partition("shards:2").indices(values, 0, 5, 0)
