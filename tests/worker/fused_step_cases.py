# SPDX-License-Identifier: Apache-2.0
"""What the fused step must hold, on CUDA or, under TRITON_INTERPRET=1, by Triton's interpreter on a CPU.

`test_fused_sophia.py` collects these where CUDA is, and runs them by the interpreter everywhere. The
reference is `sophia_step` on a CPU, which is the plain step there.
"""

import itertools
import os

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.optimizers.fused_sophia import BLOCK, fused_step
from worker.optimizers.sophia import ClipCount, SophiaSettings, SophiaState, sophia_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LARGE = [] if INTERPRETED else [(2**20 + 13,), (7, 2**19 + 1), (50_000_017,)]

# 1 − β is far from what float32 makes of it
SETTINGS = SophiaSettings(
    learning_rate=0.02,
    clip_bound=2.0,
    momentum_decay=0.9999999,
    hessian_decay=0.95,
    weight_decay=0.1,
    epsilon=1e-12,
)


def random_tensors(shape: tuple[int, ...]) -> list[Tensor]:
    """θ, g, m, h and ĥ; some of h is below ε."""
    generator = torch.Generator().manual_seed(7)
    theta, g, m, h, estimate = torch.randn((5, *shape), generator=generator)
    return [theta, g * 1e6, m, h, estimate.square()]


def assert_as_the_reference(settings: SophiaSettings, tensors: list[Tensor], estimated: bool) -> None:
    given = [tensor.to(DEVICE, copy=True) for tensor in tensors]
    before = [tensor.clone() for tensor in given]
    theta, g, m, h, estimate = tensors
    state = SophiaState(0, (m,), (h,))
    after = sophia_step((theta,), (g,), state, settings, (estimate,) if estimated else None)

    new_m, new_h = fused_step(
        *given[:4], given[4] if estimated else None, torch.zeros_like(g, dtype=torch.int64).sum().to(DEVICE),
        **vars(settings),
    )  # fmt: skip

    for found, expected in ((given[0], theta), (new_m, after.momentum[0]), (new_h, after.hessian[0])):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert new_m is not given[2]
    assert (new_h is given[3]) is not estimated
    for now, then in zip(given[1:], before[1:], strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("estimated", [False, True], ids=["plain", "refresh"])
@pytest.mark.parametrize(
    "shape", [(1,), (5,), (BLOCK,), (BLOCK + 1,), (3, 2 * BLOCK - 1), (70_001,), *LARGE], ids=str
)
def test_it_is_the_reference_whatever_the_number_of_values(shape: tuple[int, ...], estimated: bool) -> None:
    assert_as_the_reference(SETTINGS, random_tensors(shape), estimated)


@pytest.mark.parametrize("estimated", [False, True], ids=["plain", "refresh"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("learning_rate", [0.0, 0.02])
def test_it_is_the_reference_where_something_is_nan_or_infinite_or_hardly_a_number(
    learning_rate: float, weight_decay: float, estimated: bool
) -> None:
    """Every combination of θ, g, m, h and ĥ."""
    odd = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1e30, 1e-40]
    columns = zip(*itertools.product(odd, repeat=5), strict=True)
    settings = SophiaSettings(learning_rate, 2.0, 0.9, 0.95, weight_decay, 1e-12)
    with np.errstate(all="ignore"):  # the interpreter reckons with numpy
        assert_as_the_reference(settings, [torch.tensor(column) for column in columns], estimated)


def test_one_and_other_whole_numbers_are_settings_like_any() -> None:
    settings = SophiaSettings(1, 2, 0, 1, 1, 1)
    assert_as_the_reference(settings, random_tensors((100,)), estimated=True)


def test_the_count_goes_on_from_where_it_was_and_nan_is_not_held_back() -> None:
    """β1 = 0, so that m' = g; ρ = 2, ε = 1: m'/max(h, ε) = 2, 2.5, −3, NaN, ∞, −1/3."""
    g = torch.tensor([2.0, 5.0, -3.0, float("nan"), float("inf"), -1.0], device=DEVICE)
    h = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 3.0], device=DEVICE)
    held_back = torch.tensor(2**40, device=DEVICE)
    numbers = vars(SophiaSettings(0.02, 2.0, 0.0, 0.95, 0.1, 1.0))
    fused_step(torch.zeros_like(g), g, torch.zeros_like(g), h, None, held_back, **numbers)
    assert held_back.item() == 2**40 + 3


def test_all_blocks_count_into_one_number() -> None:
    shape = (5 * BLOCK + 3,)
    theta, g, m, h, _ = random_tensors(shape)
    begun = SophiaState(0, (m,), (h,), ClipCount.nothing_yet((theta,)))
    clips = sophia_step((theta.clone(),), (g,), begun, SETTINGS, None).clips
    held_back = torch.zeros((), dtype=torch.int64, device=DEVICE)
    given = [tensor.to(DEVICE) for tensor in (theta, g, m, h)]
    fused_step(*given, None, held_back, **vars(SETTINGS))
    assert clips is not None and 0.1 < clips.fraction < 0.9
    # a value at the bound itself may be rounded to either side
    assert abs(held_back.item() - clips.held_back.item()) <= 2


if not INTERPRETED:

    def test_the_processor_does_not_wait_for_the_device_to_step_or_to_count() -> None:
        theta, g, m, h, estimate = (tensor.to(DEVICE) for tensor in random_tensors((1000,)))
        state = SophiaState(0, (m,), (h,), ClipCount.nothing_yet((theta,)))
        sophia_step((theta,), (g,), state, SETTINGS, (estimate,))  # to compile it, it may wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            state = sophia_step((theta,), (g,), state, SETTINGS, (estimate,))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert state.clips is not None and 0 < state.clips.fraction < 1

    def test_more_values_than_fit_in_31_bits_have_their_own_places() -> None:
        number = 2**31 + BLOCK + 5
        if torch.cuda.mem_get_info()[0] < 17 * number:
            pytest.skip("this takes 35 GB of the device's memory")
        theta, values = torch.ones(number, device=DEVICE), torch.ones(number, device=DEVICE)
        values[-3:] = torch.tensor([0.5, -4.0, 8.0])
        new_m, _ = fused_step(
            theta, values, values, values.square(), None, None, **vars(SophiaSettings(0.5, 2, 0.5, 0, 0, 1))
        )
        assert new_m[-4:].tolist() == [1.0, 0.5, -4.0, 8.0]
        assert theta[-4:].tolist() == [0.5, 0.75, 1.125, 0.9375]
        assert theta[:: 2**20].unique().tolist() == [0.5]
