# SPDX-License-Identifier: Apache-2.0
"""Labels drawn from a softmax: as often as it says, and the same however many rows there are at a time."""

import math

import pytest
import torch

from tests.worker.watched import Watched
from worker.tasks.label_draws import LOGITS_IN_CACHE, Draw, by_inversion, by_noise, classes_at, drawn_labels

BOTH = pytest.mark.parametrize("draw", [by_inversion, by_noise])


def a_generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@BOTH
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_each_class_is_drawn_as_often_as_the_softmax_says(draw: Draw, kind: torch.dtype) -> None:
    logits = torch.tensor([2.0, -torch.inf, 0.0, -1.0, -1.0, -30.0, -torch.inf], dtype=kind)
    frequency = torch.bincount(draw(logits.expand(40_000, 7), a_generator()), minlength=7) / 40_000
    p = torch.softmax(logits.float(), 0)
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / 40_000).sqrt() + 1e-9).all()


@BOTH
def test_each_row_is_drawn_by_itself_and_from_its_own_softmax(draw: Draw) -> None:
    likely = torch.randint(50, (300,), generator=a_generator())
    logits = torch.zeros(300, 50).scatter_(1, likely[:, None], 40.0)
    assert torch.equal(draw(logits, a_generator()), likely)
    fair = draw(torch.zeros(300, 2), a_generator())
    assert 100 < fair.sum() < 200


@BOTH
def test_logits_in_bfloat16_are_told_apart_as_those_in_float32(draw: Draw) -> None:
    logits = (torch.randn(500, 40, generator=a_generator()) * 3).bfloat16()
    assert torch.equal(draw(logits, a_generator()), draw(logits.float(), a_generator()))


def test_classes_too_rare_for_sums_in_float32_are_drawn_each_in_its_turn() -> None:
    """A million of 2^-28 each behind a class that is nearly certain, where float32 knows steps of 2^-24."""
    logits = torch.full((2**20 + 1,), -28 * math.log(2))
    logits[0] = math.log(1 - 2**-8)
    numbers = 1 - 2**-9 + torch.arange(100, dtype=torch.float64) * 2**-28
    drawn = classes_at(logits.expand(100, -1), numbers)
    steps = drawn.diff()
    assert ((steps >= 0) & (steps <= 2)).all()
    assert drawn.unique().numel() > 90


@BOTH
def test_a_row_with_nan_gets_some_class_so_that_its_loss_can_be_nan(draw: Draw) -> None:
    logits = torch.tensor([[torch.nan, 0.0, 1.0], [0.0, 1.0, torch.nan], [-torch.inf] * 3])
    drawn = draw(logits, a_generator())
    assert ((drawn >= 0) & (drawn < 3)).all()


def test_a_class_without_probability_is_not_drawn_at_either_end() -> None:
    """Of the smallest and the largest number that can be drawn, times a sum that is not quite one."""
    logits = torch.tensor([-torch.inf, 0.3, 0.1, 0.7, -torch.inf])
    numbers = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert classes_at(logits.expand(2, -1), numbers).tolist() == [1, 3]


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)], ids=["examples", "tokens"])
def test_there_is_a_label_for_each_row_whatever_the_number_of_dimensions(shape: tuple[int, ...]) -> None:
    logits = torch.randn(*shape, generator=a_generator())
    drawn = drawn_labels(logits, a_generator())
    assert torch.equal(drawn, by_inversion(logits.flatten(0, -2), a_generator()).view(shape[:-1]))


def test_many_logits_are_drawn_from_in_bounded_memory_and_the_same_labels_as_at_once() -> None:
    logits = torch.randn(4096, generator=a_generator()).expand(3, 600, 4096)
    with Watched() as watched:
        drawn = drawn_labels(logits, a_generator())
    assert watched.largest_bytes == 8 * LOGITS_IN_CACHE < 4 * logits.numel()
    assert torch.equal(drawn.flatten(), by_inversion(logits.flatten(0, 1), a_generator()))


def test_more_classes_than_logits_at_once_are_drawn_row_by_row() -> None:
    logits = torch.zeros(1).expand(2, LOGITS_IN_CACHE + 1)
    assert drawn_labels(logits, a_generator()).shape == (2,)
