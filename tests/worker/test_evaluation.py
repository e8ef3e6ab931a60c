# SPDX-License-Identifier: Apache-2.0
"""How many examples are evaluated at once."""

import pytest

from worker.evaluation import EVALUATION_BATCH, MAX_OUTPUTS, examples_at_once


@pytest.mark.parametrize("outputs_each", [0, 1, 10, 64 * 98, MAX_OUTPUTS // EVALUATION_BATCH])
def test_a_thousand_examples_are_evaluated_at_once_where_their_outputs_are_small(outputs_each: int) -> None:
    assert examples_at_once(outputs_each) == 1000


def test_of_a_large_language_model_no_more_than_fit_and_at_least_one() -> None:
    logits_of_gpt2 = 1024 * 50_304
    assert examples_at_once(logits_of_gpt2) == 2
    assert examples_at_once(MAX_OUTPUTS + 1) == 1
