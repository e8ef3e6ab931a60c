# SPDX-License-Identifier: Apache-2.0
"""Dividing a data set among workers."""

from dataclasses import dataclass

import numpy as np
import pytest

from protocol.errors import InvalidTask, InvalidUsage
from worker.tasks.partition import MIN_EXAMPLES, Iid, Partition, parse_partition

SCHEMES = ["iid", "dirichlet:0.5", "shards:2", "shards:3", "labels:5", "groups"]


def balanced(num_classes: int = 10, each: int = 96) -> np.ndarray:
    labels = np.repeat(np.arange(num_classes), each)
    return np.random.default_rng(1).permutation(labels)


def files(num_examples: int) -> np.ndarray:
    """Fifty files of unequal length, out of order, whose numbers have gaps."""
    rng = np.random.default_rng(2)
    return np.sort(rng.choice(50, num_examples, p=rng.dirichlet(np.full(50, 2.0)))) * 3 % 101


def all_parts(scheme: str, targets: np.ndarray, of: int, seed: int = 0) -> list[np.ndarray]:
    partition: Partition = parse_partition(scheme)
    groups = files(len(targets))
    return [partition.indices(targets, index, of, seed, groups) for index in range(of)]


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


@pytest.mark.parametrize(("per_worker", "of"), [(3, 32), (1, 10), (4, 7), (10, 3)])
def test_a_worker_holds_its_own_label_and_the_next_ones_and_no_other(per_worker: int, of: int) -> None:
    labels = np.arange(10) ** 2 - 7  # their order counts, not their values
    targets = labels[balanced(each=500)]
    for worker, part in enumerate(all_parts(f"labels:{per_worker}", targets, of)):
        expected = {labels[(worker + offset) % 10] for offset in range(per_worker)}
        assert set(targets[part]) == expected


def test_workers_with_equally_many_labels_hold_unequally_many_examples() -> None:
    sizes = [part.size for part in all_parts("labels:3", balanced(each=600), of=32)]
    assert min(sizes) >= MIN_EXAMPLES
    assert max(sizes) > 4 * min(sizes)


def test_a_label_with_too_few_examples_for_its_workers_is_still_given_away_whole() -> None:
    targets = np.concatenate([balanced(num_classes=9, each=100), np.full(3, 9)])
    parts = all_parts("labels:3", targets, of=20)
    assert sum((targets[part] == 9).sum() for part in parts) == 3


def test_a_label_that_no_worker_would_hold_is_refused_and_so_are_more_labels_than_there_are() -> None:
    with pytest.raises(InvalidUsage, match=r"7 workers would leave out label 9; expected 8 workers or more"):
        parse_partition("labels:3").indices(balanced(), 0, 7, 0)
    assert len(all_parts("labels:3", balanced(), of=8)) == 8
    with pytest.raises(InvalidUsage, match="labels:11: the examples have 10 labels only"):
        parse_partition("labels:11").indices(balanced(), 0, 8, 0)


def test_labels_that_cannot_give_every_worker_enough_say_so_after_a_bounded_time() -> None:
    with pytest.raises(InvalidUsage, match=r"labels:3: in 1000 draws .* fewer workers or more labels"):
        parse_partition("labels:3").indices(balanced(each=9), 0, 10, 0)


def test_a_group_is_never_divided() -> None:
    groups = files(960)
    held = [set(groups[part]) for part in all_parts("groups", balanced(), of=7)]
    assert sum(len(each) for each in held) == len(set.union(*held)) == len(set(groups))


@pytest.mark.parametrize("seed", range(5))
def test_no_worker_is_ahead_of_another_by_more_than_the_largest_group(seed: int) -> None:
    sizes = [part.size for part in all_parts("groups", balanced(), of=7, seed=seed)]
    assert max(sizes) - min(sizes) <= np.bincount(files(960)).max()


def test_targets_of_any_shape_are_divided_by_their_groups() -> None:
    tokens = np.zeros((6, 64), dtype=np.int64)
    groups = np.array([5, 5, 0, 0, 9, 9])
    parts = parse_partition("groups").indices_of_each(tokens, range(3), 3, 0, groups)
    assert sorted(part.tolist() for part in parts) == [[0, 1], [2, 3], [4, 5]]


def test_fewer_groups_than_workers_are_refused_and_so_is_a_task_that_tells_none() -> None:
    with pytest.raises(InvalidUsage, match="3 groups of examples are too few for 4 workers"):
        parse_partition("groups").indices(np.zeros(6), 0, 4, 0, np.array([1, 1, 2, 2, 3, 3]))
    with pytest.raises(InvalidUsage, match="does not say which group"):
        parse_partition("groups").indices(balanced(), 0, 4, 0)


@pytest.mark.parametrize(
    "groups", [np.zeros(5, dtype=np.int64), np.zeros(6), np.zeros((6, 1), dtype=np.int64)]
)
def test_groups_that_are_not_one_whole_number_an_example_are_the_tasks_fault(groups: np.ndarray) -> None:
    with pytest.raises(InvalidTask, match="expected 6 whole numbers"):
        parse_partition("groups").indices(np.zeros(6), 0, 2, 0, groups)


def test_a_dirichlet_partition_stays_what_it_was() -> None:
    """Runs that were made before may be repeated: the numbers are of the first release."""
    parts = all_parts("dirichlet:0.5", balanced(), of=4, seed=3)
    assert [part.size for part in parts] == [226, 219, 318, 197]
    assert [int(part.sum()) for part in parts] == [108410, 100580, 157034, 94296]


@pytest.mark.parametrize(
    "text",
    ["", "iid:2", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:nan", "dirichlet:inf", "shards:0",
     "shards:1.5", "shards:two", "labels", "labels:0", "labels:x", "groups:2",
     "random"],
)  # fmt: skip
def test_a_partition_that_cannot_be_read_is_refused_with_the_menu(text: str) -> None:
    with pytest.raises(InvalidUsage, match=r"expected iid, dirichlet:ALPHA .*, labels:K .* or groups"):
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
