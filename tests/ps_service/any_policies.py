# SPDX-License-Identifier: Apache-2.0
"""Strategies: what a run may say about its rounds, and small choices among what there is."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

which = st.integers(0, 11)
"""One of those there are, counted round and round: `one_of`."""
seeds = st.integers(0, 2)
"""Few, so that different workers also send the same bytes."""
jumps_ms = st.one_of(
    st.integers(1, 10_000), st.integers(-10_000, -1), st.sampled_from([60_000, 10**7, -60_000, -(10**7)])
)


ASYNCHRONOUS = st.fixed_dictionaries(
    {"max_staleness": st.integers(0, 2), "concurrency": st.sampled_from([None, 1, 2, 4])}
)


def one_of(choices: Sequence[T], number: int) -> T:
    return choices[number % len(choices)]


@st.composite
def policies(draw, workers: int) -> dict:
    """Policies of a run that so many workers can serve; most of them let it end soon."""
    awaited, fraction = draw(st.integers(1, workers)), draw(st.sampled_from([None, 0.5, 1.0]))
    size = draw(st.integers(1, awaited))
    asynchronous = draw(st.sampled_from([None, None, ASYNCHRONOUS]))
    if asynchronous is not None:
        fraction, asynchronous = None, draw(asynchronous)
    cohort = size if fraction is None else (awaited + 1) // 2 if fraction == 0.5 else awaited
    return {
        "asynchronous": asynchronous,
        "algorithm": draw(st.sampled_from(["fedavg", "fed-sophia", "fed-sophia-shared"])),
        "cohort_fraction": fraction,
        "cohort_size": size if fraction is None else None,
        "min_workers": awaited,
        "over_selection": draw(st.sampled_from([1.0, 1.5])) if asynchronous is None else 1.0,
        "quorum": draw(st.integers(1, cohort)),
        "rounds": draw(st.integers(1, 4)),
        "deadline_s": draw(st.sampled_from([5, 20, 60])),
        "adaptive_deadline": draw(st.sampled_from([None, None, {"floor_s": 2.0, "ceiling_s": 30.0}]))
        if asynchronous is None
        else None,
        "max_extensions": draw(st.integers(0, 2)),
        "max_abandoned_rounds": draw(st.integers(1, 3)),
        "max_duration_s": draw(st.sampled_from([None, None, 40, 200])),
        "target_metric": draw(st.sampled_from([None, None, {"name": "loss", "at_most": 0.5, "wait_s": 10}])),
        "retention": draw(st.sampled_from([{}, {"last": 1}, {"last": 1, "every": 2, "update_rounds": 1}])),
    }
