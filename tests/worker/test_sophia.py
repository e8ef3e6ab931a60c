# SPDX-License-Identifier: Apache-2.0
"""Fed-Sophia's step: the equations, by an independent computation, by hand and by law."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from protocol.bound import DeltaBound
from protocol.encodings import ENCODINGS
from protocol.errors import InvalidMessage
from protocol.fed_sophia import FedSophiaHyperparameters, FedSophiaSharedHyperparameters
from tests.worker.watched import Watched
from worker.optimizers.base import KeptTensors, RoundStart
from worker.optimizers.sophia import (
    IN_CACHE,
    ClipCount,
    Sophia,
    SophiaSettings,
    SophiaShared,
    SophiaState,
    sophia_step,
)

Array = npt.NDArray[np.float64]

SETTINGS = SophiaSettings(
    learning_rate=0.02,
    clip_bound=2.0,
    momentum_decay=0.9,
    hessian_decay=0.95,
    weight_decay=0.1,
    epsilon=1e-12,
)


def tensors(*values: list[float]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


def a_start(
    parameters: tuple[torch.Tensor, ...],
    *,
    shared: dict[str, tuple[torch.Tensor, ...]] | None = None,
    kept: KeptTensors | None = None,
    wanted: tuple[str, ...] = ("delta",),
) -> RoundStart:
    return RoundStart(parameters, shared or {}, kept, wanted)


def random_problem(steps: int) -> tuple[Array, Array, Array]:
    """θ_0, every gradient, every Hessian estimate; a third of the coordinates have tiny curvature."""
    rng = np.random.default_rng(7)
    start = rng.normal(size=60).astype(np.float32).astype(np.float64)
    gradients = rng.normal(size=(steps, 60)).astype(np.float32).astype(np.float64)
    scale = np.repeat([1e-14, 0.3, 5.0], 20)
    estimates = (rng.random((steps, 60)) * scale).astype(np.float32).astype(np.float64)
    return start, gradients, estimates


def paper_form_in_float64(
    start: Array, gradients: Array, estimates: Array, settings: SophiaSettings, every: int
) -> tuple[Array, Array, Array]:
    """The equations of the design, written once more, in numpy and float64."""
    theta = start.copy()
    m = np.zeros_like(theta)
    h = np.zeros_like(theta)
    for t, (g, estimate) in enumerate(zip(gradients, estimates, strict=True)):
        m = settings.momentum_decay * m + (1 - settings.momentum_decay) * g
        if t % every == 0:
            h = settings.hessian_decay * h + (1 - settings.hessian_decay) * estimate
        theta = theta - settings.learning_rate * settings.weight_decay * theta
        u = np.clip(m / np.maximum(h, settings.epsilon), -settings.clip_bound, settings.clip_bound)
        theta = theta - settings.learning_rate * u
    return theta, m, h


def test_fifty_steps_with_refreshes_and_weight_decay_equal_a_float64_computation_of_the_equations() -> None:
    start, gradients, estimates = random_problem(50)
    values = vars(SETTINGS) | {"hessian_every": 10.0}
    parameters = (torch.tensor(start, dtype=torch.float32),)

    optimizer = Sophia.begin(values, a_start(parameters))
    for gradient, estimate in zip(gradients, estimates, strict=True):
        fresh = (torch.tensor(estimate, dtype=torch.float32),) if optimizer.wants_hessian else None
        optimizer = optimizer.step(parameters, (torch.tensor(gradient, dtype=torch.float32),), fresh)

    theta, m, h = paper_form_in_float64(start, gradients, estimates, SETTINGS, every=10)
    found = (parameters[0], optimizer.state.momentum[0], optimizer.state.hessian[0])
    for values_found, expected in zip(found, (theta, m, h), strict=True):
        np.testing.assert_allclose(values_found.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert 0.1 < optimizer.metrics()["clip_fraction"] < 0.9


def test_a_step_worked_by_hand() -> None:
    """Three coordinates; η = 0.1, ρ = 2, β1 = 0.9, β2 = 0.5, λ = 0.5, ε = 0.01.

    Before: θ = (1, −2, 4), m = (0, 1, −1), h = (2, 0, 8); g = (1, 1, 11), ĥ = (6, 0, 2).

        m = 0.9·(0, 1, −1) + 0.1·(1, 1, 11)          = (0.1, 1, 0.2)
        h = 0.5·(2, 0, 8) + 0.5·(6, 0, 2)            = (4, 0, 5)
        θ − 0.1·0.5·θ = 0.95·(1, −2, 4)              = (0.95, −1.9, 3.8)
        m / max(h, 0.01) = (0.1/4, 1/0.01, 0.2/5)    = (0.025, 100, 0.04), clipped (0.025, 2, 0.04)
        θ = (0.95 − 0.0025, −1.9 − 0.2, 3.8 − 0.004) = (0.9475, −2.1, 3.796)

    One of three coordinates is clipped, after four of six in the steps before.
    """
    settings = SophiaSettings(0.1, 2.0, 0.9, 0.5, 0.5, 0.01)
    parameters = tensors([1.0, -2.0, 4.0])
    clips = ClipCount(torch.tensor(4), of=6)
    before = SophiaState(7, tensors([0.0, 1.0, -1.0]), tensors([2.0, 0.0, 8.0]), clips)

    after = sophia_step(parameters, tensors([1.0, 1.0, 11.0]), before, settings, tensors([6.0, 0.0, 2.0]))

    torch.testing.assert_close(after.momentum, tensors([0.1, 1.0, 0.2]))
    torch.testing.assert_close(after.hessian, tensors([4.0, 0.0, 5.0]))
    torch.testing.assert_close(parameters, tensors([0.9475, -2.1, 3.796]))
    assert after.step == 8
    assert after.clips is not None and (after.clips.held_back.item(), after.clips.of) == (5, 9)
    torch.testing.assert_close(before.momentum, tensors([0.0, 1.0, -1.0]), rtol=0, atol=0)
    assert (clips.held_back.item(), clips.of) == (4, 6)


def test_a_shared_round_worked_by_hand() -> None:
    """Two coordinates, ρ = 2, β1 = 0.5, β2 = 0.9, η = 0.1, λ = 0, ε = 0.5; `hessian` is wanted.

    The server's q̄ = (0.5, −1), h = (3, 0); θ_0 = (0, 0); g = (1, 1); ĥ = (13, 100) at the first step.

        m_0 = −2·(0.5, −1)·max((3, 0), 0.5) = (−3, 1): the server's h, not yet the fresh one
        m   = 0.5·(−3, 1) + 0.5·(1, 1)      = (−1, 1)
        h_i = 0.9·(3, 0) + 0.1·(13, 100)    = (4, 10)
        θ   = −0.1·(−1/4, 1/10)             = (0.025, −0.01)

    Second step, no estimate: m = 0.5·(−1, 1) + 0.5·(1, 1) = (0, 1); θ = (0.025, −0.01 − 0.1·1/10) =
    (0.025, −0.02). What is uploaded is ĥ itself.
    """
    values = {
        "learning_rate": 0.1,
        "clip_bound": 2.0,
        "momentum_decay": 0.5,
        "hessian_decay": 0.9,
        "weight_decay": 0.0,
        "epsilon": 0.5,
    }
    parameters = tensors([0.0, 0.0])
    shared = {"direction": tensors([0.5, -1.0]), "hessian": tensors([3.0, 0.0])}
    optimizer = SophiaShared.begin(values, a_start(parameters, shared=shared, wanted=("delta", "hessian")))
    assert optimizer.wants_hessian

    optimizer = optimizer.step(parameters, tensors([1.0, 1.0]), tensors([13.0, 100.0]))
    torch.testing.assert_close(parameters, tensors([0.025, -0.01]))
    assert not optimizer.wants_hessian

    optimizer = optimizer.step(parameters, tensors([1.0, 1.0]), None)
    torch.testing.assert_close(parameters, tensors([0.025, -0.02]))
    torch.testing.assert_close(optimizer.uploads()["hessian"], tensors([13.0, 100.0]), rtol=0, atol=0)
    assert optimizer.kept() is None


def test_the_shared_form_starts_from_zeros_where_the_server_has_nothing_and_asks_for_no_hessian() -> None:
    values = FedSophiaSharedHyperparameters().optimizer_settings(10)
    optimizer = SophiaShared.begin(values, a_start(tensors([1.0, 2.0])))
    assert not optimizer.wants_hessian
    assert optimizer.uploads() == {}
    torch.testing.assert_close(optimizer.state.momentum, tensors([0.0, 0.0]))


def test_a_huge_hessian_stands_still() -> None:
    parameters = tensors([1.0, -3.0])
    huge = SophiaState(0, tensors([0.0, 0.0]), tensors([1e30, 1e30]))
    without_decay = SophiaSettings(0.02, 2.0, 0.9, 0.95, 0.0, 1e-12)
    sophia_step(parameters, tensors([5.0, -5.0]), huge, without_decay, None)
    torch.testing.assert_close(parameters, tensors([1.0, -3.0]), rtol=0, atol=0)


def test_without_curvature_every_coordinate_that_has_momentum_moves_by_exactly_the_longest_step() -> None:
    parameters = tensors([0.0, 0.0, 0.0])
    flat = SophiaState(0, tensors([0.0, 0.0, 0.0]), tensors([0.0, 0.0, 0.0]))
    without_decay = SophiaSettings(0.25, 2.0, 0.5, 0.95, 0.0, 1e-12)
    sophia_step(parameters, tensors([3.0, -1e-6, 0.0]), flat, without_decay, None)
    assert parameters[0].tolist() == [-0.5, 0.5, 0.0]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("max_round_step", [1e-7, 1.3e-4, 0.3])
@pytest.mark.parametrize("local_steps", [1, 54])
def test_rounding_never_takes_a_delta_out_of_the_bound_even_if_every_step_is_the_longest(
    weight_decay: float, max_round_step: float, local_steps: int
) -> None:
    """Always the same way, from parameters around 1: the rounding errors of the steps add up."""
    clip_bound = 7.7
    rate = max_round_step / (local_steps * clip_bound)
    settings = SophiaSettings(rate, clip_bound, 0.9, 0.9, weight_decay, 1e-12)
    bound = DeltaBound.after(
        local_steps, learning_rate=rate, clip_bound=clip_bound, weight_decay=weight_decay
    )
    start = torch.cat([torch.ones(50), torch.linspace(-1.01, 1.01, 200)])
    for push in (torch.full_like(start, 1e6), torch.full_like(start, -1e6)):
        parameters, state = (start.clone(),), SophiaState(0, (push,), (torch.zeros_like(push),))
        for _ in range(local_steps):
            state = sophia_step(parameters, (push,), state, settings, None)
        delta = parameters[0].numpy() - start.numpy()
        bound.check("parameters", delta, start.numpy(), ENCODINGS["f32"])


def test_the_paper_form_refreshes_by_steps_over_the_workers_life_not_by_rounds() -> None:
    values = FedSophiaHyperparameters(hessian_every=4).optimizer_settings(3)
    parameters = tensors([1.0])
    refreshed, kept = [], None
    for _ in range(3):
        optimizer = Sophia.begin(values, a_start(parameters, kept=kept))
        for _ in range(3):
            estimate = tensors([1.0]) if optimizer.wants_hessian else None
            if estimate:
                refreshed.append(optimizer.state.step)
            optimizer = optimizer.step(parameters, tensors([1.0]), estimate)
        kept = optimizer.kept()
    assert refreshed == [0, 4, 8]
    assert kept is not None and kept.step == 9


@pytest.mark.parametrize("form", [Sophia, SophiaShared])
def test_the_clip_fraction_is_the_mean_over_the_steps_of_this_round(
    form: type[Sophia | SophiaShared],
) -> None:
    """β1 = 0: m is the gradient; h stays 0, ε = 1: what is farther than ρ = 2 is clipped, 3, 1 and 0 of 4."""
    settings = SophiaSettings(0.1, 2.0, 0.0, 0.9, 0.0, 1.0)
    kept = KeptTensors(8, {"momentum": tensors([9.0] * 4), "hessian": tensors([0.0] * 4)})
    parameters = tensors([0.0] * 4)
    optimizer = form.begin(vars(settings) | {"hessian_every": 1e6}, a_start(parameters, kept=kept))
    for gradients in ([3.0, -3.0, 2.5, 2.0], [0.0, 0.0, -2.1, 0.0], [0.0, 0.0, 0.0, 0.0]):
        optimizer = optimizer.step(parameters, tensors(gradients), None)
    assert optimizer.metrics()["clip_fraction"] == pytest.approx((3 + 1 + 0) / 12)


def test_no_step_waits_for_the_device_to_count_and_the_metrics_do() -> None:
    values = FedSophiaHyperparameters(hessian_every=2).optimizer_settings(3)
    parameters = tensors([1.0, -1.0])
    optimizer = Sophia.begin(values, a_start(parameters))
    with Watched() as watched:
        for estimate in (tensors([1.0, 0.0]), None, tensors([1.0, 0.0])):
            optimizer = optimizer.step(parameters, tensors([1.0, 2.0]), estimate)
    assert not watched.waited_for_the_device
    with Watched() as watched:
        assert optimizer.metrics()["clip_fraction"] > 0
    assert watched.waited_for_the_device


def test_more_coordinates_than_float32_can_count_are_counted_exactly() -> None:
    number = 2**24 + 3
    begun = SophiaState(
        0, (torch.full((number,), 9.0),), (torch.zeros(number),), ClipCount(torch.tensor(0), 0)
    )
    settings = SophiaSettings(0.1, 2.0, 1.0, 0.9, 0.0, 1.0)
    # with gaps, so that they are not looked at in pieces
    after = sophia_step((torch.zeros(number, 2)[:, 0],), (torch.zeros(number),), begun, settings, None)
    assert after.clips is not None and after.clips.held_back.item() == number


def more_than_in_cache() -> int:
    """Of so many coordinates there are three pieces."""
    return 2 * IN_CACHE * torch.get_num_threads() + 34


@pytest.mark.parametrize("rows", [1, 17], ids=["one worker", "several"])
@pytest.mark.parametrize("refreshed", [False, True], ids=["plain", "refreshed"])
def test_large_tensors_are_stepped_in_pieces_to_the_bits_of_each_piece_by_itself(
    rows: int, refreshed: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (rows, -(-more_than_in_cache() // rows))
    theta, gradient, momentum, hessian, estimate = (torch.randn(shape, generator=generator) for _ in range(5))
    gradient[0, 0], hessian[-1, -1] = torch.nan, torch.inf  # below zero in places, as Hutchinson's may be

    def stepped(*given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        moved, gradient, momentum, hessian, estimate = given[0].clone(), *given[1:]
        begun = SophiaState(0, (momentum,), (hessian,), ClipCount.nothing_yet((moved,)))
        after = sophia_step((moved,), (gradient,), begun, SETTINGS, (estimate,) if refreshed else None)
        assert after.clips is not None and after.clips.of == moved.numel()
        return moved, after.momentum[0], after.hessian[0], after.clips.held_back

    given = (theta, gradient, momentum, hessian, estimate)
    *found, held_back = stepped(*given)
    pieces = zip(*(each.flatten().split(IN_CACHE // 2) for each in given), strict=True)
    *expected, counts = zip(*(stepped(*piece) for piece in pieces), strict=True)
    assert held_back == sum(counts)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == shape
        torch.testing.assert_close(one.flatten(), torch.cat(other), rtol=0, atol=0, equal_nan=True)


def test_tensors_of_other_sizes_are_not_stepped_as_far_as_they_go() -> None:
    number = more_than_in_cache()
    begun = SophiaState(0, (torch.zeros(number),), (torch.ones(number),))
    for estimate in (None, (torch.ones(number),)):
        with pytest.raises(ValueError, match="shorter"):
            sophia_step((torch.zeros(number),), (torch.ones(number - 34),), begun, SETTINGS, estimate)


@pytest.mark.parametrize("missing", ["clip_bound", "epsilon", "hessian_every"])
def test_a_missing_setting_is_named(missing: str) -> None:
    values = FedSophiaHyperparameters().optimizer_settings(10)
    del values[missing]
    with pytest.raises(InvalidMessage, match=missing):
        Sophia.begin(values, a_start(tensors([1.0])))


def test_a_refresh_period_below_one_is_refused() -> None:
    values = FedSophiaHyperparameters().optimizer_settings(10) | {"hessian_every": 0}
    with pytest.raises(InvalidMessage, match="hessian_every is 0"):
        Sophia.begin(values, a_start(tensors([1.0])))
