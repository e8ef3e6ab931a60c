# SPDX-License-Identifier: Apache-2.0
"""What a round took of the machine."""

from collections.abc import Sequence

import pytest
import torch

from protocol.messages import UpdateHeader, parse
from worker.energy import Counter
from worker.meter import TIMED_STEPS, MeasuredRound, Meter, Stopwatch, peak_resident_bytes

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


class HandMovedClock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def figures_of(
    steps_s: Sequence[tuple[float, bool]], examples: int = 64, terms: int | None = None
) -> dict[str, float]:
    """Of a round on a CPU whose steps took so long, and took an estimate or not."""
    clock = HandMovedClock()
    measured = Meter(CPU, clock).round()
    for seconds, refreshed in steps_s:
        clock.now_s += seconds
        measured.step_done(refreshed)
    clock.now_s += 1000.0  # what comes after the last step is none of the round's steps
    return measured.metrics(examples, terms)


def test_a_step_takes_the_median_and_a_refresh_what_it_takes_more() -> None:
    figures = figures_of([(0.5, True), (0.010, False), (0.012, False), (9.0, False), (0.032, True)])
    assert figures["step_ms"] == pytest.approx(12.0)
    assert figures["refresh_ms"] == pytest.approx((0.5 + 0.032) / 2 * 1000 - 12.0)


def test_examples_a_second_are_of_all_steps_and_of_nothing_after_them() -> None:
    figures = figures_of([(1.0, True), (0.5, False), (0.5, False)], examples=96)
    assert figures["examples_per_second"] == pytest.approx(48.0)


def test_terms_are_counted_where_an_example_has_more_than_one() -> None:
    steps = [(1.0, False), (1.0, False)]
    assert figures_of(steps, examples=64, terms=640)["tokens_per_second"] == pytest.approx(320.0)
    assert "tokens_per_second" not in figures_of(steps, examples=64, terms=64)
    assert "tokens_per_second" not in figures_of(steps, examples=64)


def test_a_round_without_a_refresh_says_nothing_of_one() -> None:
    assert "refresh_ms" not in figures_of([(0.01, False)] * 3)


def test_a_round_of_refreshes_alone_knows_neither_a_step_nor_what_they_add() -> None:
    assert not {"step_ms", "refresh_ms"} & set(figures_of([(0.01, True)] * 3))


def test_a_clock_that_stood_still_gives_no_throughput() -> None:
    figures = figures_of([(0.0, False)])
    assert figures["step_ms"] == 0.0
    assert "examples_per_second" not in figures


def test_a_round_that_ended_before_its_first_step_has_no_times() -> None:
    assert not {"step_ms", "refresh_ms", "examples_per_second"} & set(figures_of([]))


def test_a_very_long_round_is_held_in_bounded_memory_and_its_throughput_is_of_all_of_it() -> None:
    clock = HandMovedClock()
    measured = MeasuredRound(Stopwatch(clock, lambda first, second: second - first), lambda: None, ())
    for step in range(3 * TIMED_STEPS):
        clock.now_s += 1.0 if step < TIMED_STEPS else 4.0
        measured.step_done(refreshed=False)
    figures = measured.metrics(examples=3 * TIMED_STEPS)
    assert figures == {"step_ms": 1000.0, "examples_per_second": pytest.approx(1 / 3)}


def test_energy_is_shared_by_the_workers_that_stepped_together() -> None:
    stood_at = iter([10.0, 16.0])
    counter = Counter(lambda: next(stood_at))
    measured = MeasuredRound(Stopwatch(lambda: 0.0, lambda first, second: 0.0), lambda: None, (counter,))
    assert measured.metrics(examples=1, sharing=4) == {"energy_joules": 1.5}


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_counter_that_is_lost_fails_no_round_and_gives_no_figure(fails_at: int) -> None:
    reads = iter(range(2))

    def read_joules() -> float:
        if next(reads) == fails_at:
            raise OSError("the device is lost")
        return 1.0

    stopwatch = Stopwatch(lambda: 0.0, lambda first, second: 0.0)
    measured = MeasuredRound(stopwatch, lambda: None, (Counter(read_joules),))
    assert measured.metrics(examples=1) == {}


def test_the_memory_of_a_cpu_s_round_is_the_process_s_peak() -> None:
    peak = peak_resident_bytes()
    if peak is None:
        pytest.skip("this system does not say")
    assert 10_000_000 < peak <= figures_of([(0.01, False)])["peak_memory_bytes"]


def test_where_a_call_returns_before_its_work_is_done_no_step_is_timed_but_the_round_is() -> None:
    clock = HandMovedClock()
    measured = Meter(torch.device("mps"), clock).round()
    for refreshed in (True, False):
        clock.now_s += 1.0
        measured.step_done(refreshed)
    assert measured.metrics(examples=64) == {"examples_per_second": 32.0}


def test_an_update_may_carry_all_of_it_beside_what_training_says() -> None:
    figures = figures_of([(0.02, True), (0.01, False)], terms=640)
    said = {
        "digest": "ab" * 32, "size_bytes": 1, "bundles": ["delta"], "encodings": {"delta": "f32"},
        "num_examples": 60, "local_steps": 2,
        "metrics": figures | {"train_loss": 0.5, "train_seconds": 0.1, "clip_fraction": 0.5},
    }  # fmt: skip
    assert parse(UpdateHeader, said).metrics.keys() >= figures.keys()


@needs_cuda
def test_on_a_gpu_steps_are_timed_as_the_device_does_them() -> None:
    device = torch.device("cuda")
    left = torch.randn(4096, 4096, device=device)
    meter = Meter(device)
    left @ left  # loads what the measured ones need
    measured = meter.round()
    for step in range(8):
        for _ in range(40 if step % 4 == 0 else 10):
            product = left @ left
        measured.step_done(refreshed=step % 4 == 0)
    assert product.isfinite().all().item()
    figures = measured.metrics(examples=64)
    assert 1 < figures["refresh_ms"] / figures["step_ms"] < 6  # 3 times as many products more
    assert figures["peak_memory_bytes"] >= 2 * left.nbytes
    assert figures["examples_per_second"] > 0
    assert figures.get("energy_joules", 0.0) >= 0.0


@needs_cuda
def test_the_peak_of_a_gpu_s_round_is_its_own() -> None:
    device = torch.device("cuda")
    meter = Meter(device)
    first, large = meter.round(), torch.zeros(2**28, dtype=torch.uint8, device=device)
    before = first.metrics(examples=1)["peak_memory_bytes"]
    del large
    assert meter.round().metrics(examples=1)["peak_memory_bytes"] <= before - 2**28
