# SPDX-License-Identifier: Apache-2.0
"""Which versions keep their tensors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import BestVersions, Retention
from ps_service.retention import kept_versions


def measured(**values):
    """{version: {"accuracy": value}} of v3=0.5 and the like."""
    return {int(name[1:]): {"accuracy": value} for name, value in values.items()}


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(last=1), {9}),
        (Retention(last=3), {7, 8, 9}),
        (Retention(last=1, every=4), {0, 4, 8, 9}),
        (Retention(last=1, best=BestVersions(metric="accuracy")), {5, 9}),
        (Retention(last=1, best=BestVersions(metric="accuracy", count=2)), {3, 5, 9}),
        (Retention(last=1, best=BestVersions(metric="accuracy", order="lowest")), {2, 9}),
        (Retention(last=1, best=BestVersions(metric="loss")), {9}),
        (Retention(last=2, every=5, best=BestVersions(metric="accuracy")), {0, 5, 8, 9}),
        (Retention(last=100), set(range(10))),
    ],
)
def test_the_last_every_nth_and_the_best_are_kept(retention, kept):
    metrics = measured(v2=0.1, v3=0.7, v4=0.6, v5=0.7)
    assert kept_versions(retention, range(10), metrics) == kept


retentions = st.builds(
    Retention,
    last=st.integers(1, 5),
    every=st.none() | st.integers(1, 5),
    best=st.none() | st.builds(BestVersions, metric=st.just("accuracy"), count=st.integers(1, 3)),
)
accuracies = st.dictionaries(st.integers(0, 30), st.floats(0, 1).map(lambda value: {"accuracy": value}))


@given(retentions, st.sets(st.integers(0, 30), min_size=1), accuracies)
def test_the_current_version_is_always_kept_and_tidying_twice_is_tidying_once(retention, versions, metrics):
    kept = kept_versions(retention, versions, metrics)
    assert max(versions) in kept <= versions
    assert kept_versions(retention, kept, metrics) == kept


@given(retentions, st.integers(1, 30), accuracies)
def test_tidying_after_each_version_keeps_what_tidying_at_the_end_keeps(retention, newest, metrics):
    present: set[int] = set()
    for version in range(newest + 1):
        present = kept_versions(retention, present | {version}, metrics)
    assert present == kept_versions(retention, range(newest + 1), metrics)
