# SPDX-License-Identifier: Apache-2.0
"""The rules of values: one coordinate outside is enough, and each bundle has its own."""

import numpy as np
import pytest

from protocol.bound import DeltaBound
from protocol.encodings import encoding_named
from protocol.errors import NegativeHessian, NotFinite, OutsideBound
from ps_service.value_rules import check_update_values

BOUND = DeltaBound.after(10, learning_rate=0.001, clip_bound=4.0, weight_decay=0.0)
"""R = 4·10·0.001 = 0.04."""
EVERY_BUNDLE = pytest.mark.parametrize(
    "bundle", ["delta", "hessian", "momentum", "control_delta", "gradient"]
)


def judge(bundle, values, bound=BOUND):
    values = np.array(values, dtype=np.float32)
    check_update_values(
        bundle,
        "fc.weight",
        values,
        bound=bound,
        started_from=lambda: np.zeros_like(values),
        encoding=encoding_named("f32"),
    )


@EVERY_BUNDLE
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_but_numbers_passes_in_any_bundle(bundle, value):
    with pytest.raises(NotFinite, match=r"fc\.weight"):
        judge(bundle, [0.0, value, 0.0])


def test_a_delta_passes_up_to_its_bound_and_no_farther():
    judge("delta", [0.04, -0.04, 0.0])
    with pytest.raises(OutsideBound, match="1 of 3 coordinates"):
        judge("delta", [0.0401, -0.04, 0.0])


def test_a_delta_that_nothing_bounds_may_be_of_any_length():
    judge("delta", [1e30, -1e30], bound=None)


def test_curvature_is_never_negative_and_may_be_huge():
    judge("hessian", [0.0, -0.0, 1e30])
    with pytest.raises(NegativeHessian, match="1 values are negative"):
        judge("hessian", [0.0, -1e-30])


@pytest.mark.parametrize("bundle", ["momentum", "control_delta", "gradient"])
def test_other_bundles_are_not_held_to_the_bound_of_deltas(bundle):
    judge(bundle, [1e6, -1e6])


def test_the_parameters_are_read_only_where_they_are_needed():
    def never():
        raise AssertionError

    for bundle, bound in (("hessian", BOUND), ("delta", None)):
        check_update_values(
            bundle,
            "w",
            np.ones(1, dtype=np.float32),
            bound=bound,
            started_from=never,
            encoding=encoding_named("f32"),
        )
