# SPDX-License-Identifier: Apache-2.0
"""What a GPU allows, and what training on it costs here: a JSON line a figure.

    python -m benchmarks.gpu                            all of it, at GPT-2-small size; a quarter of an hour
    python -m benchmarks.gpu --only step --only swarm
    python -m benchmarks.gpu --tiny --device cpu        whether it runs at all, without a GPU

It needs a CUDA device, torch, triton and this project. Every figure is a median, taken in turns with what it
is compared with, on the same machine in the same run:

step     one Fed-Sophia step over flat storage, beside its floor: 24 bytes a parameter at the rate at which
         the device copies
train    our training loop beside the plainest loop over the same compiled model: SGD beside SGD, and
         Fed-Sophia at τ = 10, with estimates of an eighth of the mini-batch, beside AdamW(fused); and what
         an estimate adds to a step. Of 8 examples a step, whose kernels take the processor as long to name
         as the device to run, and of 32
swarm    32 CNN workers stacked, beside one by one
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.assignment import an_assignment
from worker.machine import description
from worker.meter import Stopwatch, cuda_stopwatch
from worker.optimizers.sophia import ClipCount, SophiaSettings, SophiaState, sophia_step
from worker.options import Numerics
from worker.stacked import Job, StackedTrainer
from worker.tasks.base import Examples, Task
from worker.tasks.fashion_mnist import FashionMnistCnn
from worker.tasks.gpt_lm import Gpt2Small, GptMini
from worker.training import Trainer, initial_parameters

HESSIAN_EVERY = 10

Moment = TypeVar("Moment")


def say(what: str, **figures: object) -> None:
    shown = {name: round(x, 4) if isinstance(x, float) else x for name, x in figures.items()}
    print(json.dumps({"what": what, **shown}), flush=True)  # noqa: T201 - what it is for


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of `work` on the device, the first few times left out."""
    if device.type == "cuda":
        return _milliseconds(work, cuda_stopwatch(device), repeats)
    return _milliseconds(work, Stopwatch(time.perf_counter, lambda first, second: second - first), repeats)


def _milliseconds(work: Callable[[], object], watch: Stopwatch[Moment], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 3):
        begun = watch.note()
        work()
        taken.append(watch.seconds_between(begun, watch.note()) * 1e3)
    return statistics.median(taken[3:])


# --- the step ------------------------------------------------------------------------------------


def measure_step(task: Task, device: torch.device, repeats: int) -> None:
    """Counting what is clipped, as in training; and with an estimate folded in, which is 8 bytes more."""
    number = sum(values.size for values in initial_parameters(task, 0).values())
    source = torch.randn(1 << (28 if device.type == "cuda" else 26), device=device)  # more than caches hold
    target = torch.empty_like(source)
    copying = partial(milliseconds, lambda: target.copy_(source), device, repeats)
    theta, gradient, momentum = (torch.randn(number, device=device) for _ in range(3))
    hessian, estimate = (torch.rand(number, device=device) for _ in range(2))
    settings = SophiaSettings(1e-4, 0.04, 0.9, 0.99, 1e-3, 1e-12)
    state = SophiaState(0, (momentum,), (hessian,), ClipCount.nothing_yet((theta,)))

    def step(fresh: Tensor | None) -> None:
        sophia_step((theta,), (gradient,), state, settings, None if fresh is None else (fresh,))

    copy_ms = copying()
    bytes_a_ms = 8 * source.numel() / copy_ms
    cases: Mapping[str, tuple[Tensor | None, int]] = {"plain": (None, 24), "with estimate": (estimate, 32)}
    for name, (fresh, bytes_each) in cases.items():
        took = milliseconds(partial(step, fresh), device, repeats)
        floor = bytes_each * number / bytes_a_ms
        say("step", case=name, ms=took, floor_ms=floor, over_floor=took / floor, parameters=number)
    say("copy", gb_per_s=bytes_a_ms / 1e6, again_gb_per_s=8 * source.numel() / copying() / 1e6)


# --- training ------------------------------------------------------------------------------------


class _RandomTokens(Gpt2Small):
    """GPT-2 small on tokens drawn evenly: the time of a step does not depend on what they say."""

    def training_data(self) -> Examples:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.max_tokens, (64, self.context + 1), generator=generator)
        return Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class _RandomTokensMini(GptMini, _RandomTokens):
    pass


def plain_steps(
    task: Task, data: Examples, batch: int, device: torch.device
) -> dict[str, Callable[[], None]]:
    """Steps of the plainest loop: draw, forward, backward, step. Model and loss are compiled as one."""
    model = task.model().to(device)

    @partial(torch.compile, dynamic=False)
    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model(inputs).flatten(0, -2), targets.flatten())

    def step(optimizer: torch.optim.Optimizer) -> None:
        rows = torch.randint(len(data), (batch,), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(data.inputs[rows], data.targets[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    fused, parameters = device.type == "cuda", list(model.parameters())
    return {
        "sgd": partial(step, torch.optim.SGD(parameters, lr=1e-4, fused=fused)),
        "adamw": partial(step, torch.optim.AdamW(parameters, lr=1e-4, fused=fused)),
    }


def measure_training(task: Task, device: torch.device, batches: list[int], steps: int, turns: int) -> None:
    """Milliseconds a step, of many in a row: our rounds, and the plain loops, in turns."""
    data, params = task.training_data().to(device), initial_parameters(task, 0)
    fast = Numerics(precision="bfloat16", compile=True)
    trainers = {"": Trainer(task, data, device, fast)}
    if device.type == "cuda":
        trainers[", recorded"] = Trainer(task, data, device, replace(fast, record=True))
    torch.manual_seed(0)
    for batch in batches:
        few, tau = max(1, batch // 8), {"hessian_every": HESSIAN_EVERY}
        never = an_assignment("fed-sophia", steps, batch, hessian_every=steps + 1)
        # of a worker's steps only the first and each so many after it has an estimate
        behind = trainers[""].train(an_assignment("fed-sophia", 1, batch), {"params": params}, None).kept
        rounds = {
            "sgd": (an_assignment("fedavg", steps, batch), None),
            "fed-sophia": (an_assignment("fed-sophia", steps, batch, hessian_batch=few, **tau), None),
            "fed-sophia, whole batch": (an_assignment("fed-sophia", steps, batch, **tau), None),
            "fed-sophia, no estimate": (never, behind),
        }
        loops = plain_steps(task, data, batch, device)
        ms: dict[str, list[float]] = {}
        for turn in range(turns + 1):
            note = partial(_note, ms, turn, task, batch)
            for name, step in loops.items():
                step()
                note(f"{name}, plain", _seconds(partial(_repeat, step, steps), device) / steps * 1e3)
            for (how, trainer), (name, (assignment, kept)) in product(trainers.items(), rounds.items()):
                metrics = trainer.train(assignment, {"params": params}, kept).metrics
                note(name + how, batch / metrics["examples_per_second"] * 1e3, metrics)
        for how in trainers:
            say("train" + how, batch=batch, estimate_of=few, **_figures(ms, how))


def _figures(ms: Mapping[str, list[float]], how: str) -> dict[str, float]:
    """Of medians; an estimate is what Fed-Sophia with it takes longer than without it."""
    median = {name: statistics.median(taken) for name, taken in ms.items()}

    def estimate(case: str) -> float:
        longer = median[case + how] - median["fed-sophia, no estimate" + how]
        return longer * HESSIAN_EVERY / median["sgd" + how]

    return {
        "fed_sophia_over_adamw": median["adamw, plain"] / median["fed-sophia" + how],
        "our_loop_over_a_plain_one": median["sgd, plain"] / median["sgd" + how],
        "estimate_of_a_step": estimate("fed-sophia"),
        "whole_estimate_of_a_step": estimate("fed-sophia, whole batch"),
        "spread": max(map(spread, ms.values())),
    }


def _note(
    ms: dict[str, list[float]],
    turn: int,
    task: Task,
    batch: int,
    name: str,
    took: float,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Say each as it comes: who has a machine for minutes has what was measured until then."""
    if turn:  # the first compiles
        ms.setdefault(name, []).append(took)
    shown = ("step_ms", "refresh_ms", "peak_memory_bytes", "energy_joules")
    told = {key: metrics[key] for key in shown if key in metrics} if metrics else {}
    tokens = batch * getattr(task, "context", 1)
    say(
        "turn",
        number=turn,
        batch=batch,
        case=name,
        ms_a_step=took,
        tokens_per_s=tokens / took * 1e3,
        **told,
    )


def spread(taken: list[float]) -> float:
    """Largest less smallest, in parts of the median."""
    return (max(taken) - min(taken)) / statistics.median(taken)


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


# --- a swarm -------------------------------------------------------------------------------------


class _RandomPixels(FashionMnistCnn):
    def training_data(self) -> Examples:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(6400, 1, 28, 28, generator=generator)
        return Examples(pixels, torch.randint(10, (6400,), generator=generator))


def measure_swarm(
    device: torch.device, workers: int, steps: int, turns: int, larger: tuple[int, ...]
) -> None:
    """Local steps a second of CNN workers, stacked and one by one; then of larger stacks."""
    task = _RandomPixels()
    data, params = task.training_data(), initial_parameters(task, 0)
    rows = [torch.arange(200 * (i % 32), 200 * (i % 32) + 200).numpy() for i in range(max(workers, *larger))]

    def jobs(number: int) -> list[Job]:
        made = (an_assignment("fed-sophia", steps, 32, slot=slot) for slot in range(number))
        return [Job(slot, assignment, None) for slot, assignment in enumerate(made)]

    trainers = [Trainer(task, data.batch(rows[i]), device) for i in range(workers)]
    stacks = StackedTrainer(task, data, rows, device, stack=max(workers, *larger), threads=1)
    mine, state = jobs(workers), {"params": params}

    def alone() -> None:
        for job in mine:
            trainers[job.worker].train(job.assignment, state, None)

    cases = {"one by one": alone, "stacked": lambda: stacks.train(mine, state)}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(turns + 1):
        for name, work in cases.items():
            took = _seconds(work, device)
            if turn:
                taken[name].append(took)
    seconds = {name: statistics.median(each) for name, each in taken.items()}
    for name, took in seconds.items():
        say("swarm", case=name, workers=workers, steps_per_s=workers * steps / took)
    say("stacked over one by one", faster=seconds["one by one"] / seconds["stacked"])
    for number in larger:
        many = jobs(number)
        stacks.train(many, state)
        trained = stacks.train(many, state)[0]
        took = _seconds(partial(stacks.train, many, state), device)
        peak = trained.metrics.get("peak_memory_bytes", 0) / 1e9
        say("swarm", case="stacked", workers=number, steps_per_s=number * steps / took, peak_gb=peak)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", action="append", choices=("step", "train", "swarm"), help="these; else all")
    parser.add_argument(
        "--batch", type=int, action="append", help="of so many examples a step; else 8 and 32"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try whether it runs")
    parser.add_argument("--turns", type=int, default=5, help="that each case takes")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    device, tiny = torch.device(given.device), given.tiny
    only = given.only or ["step", "swarm", "train"]
    say("machine", **description(device, torch.get_num_threads()))
    if "step" in only:
        measure_step(GptMini() if tiny else Gpt2Small(), device, 20 if tiny else 200)
    if "swarm" in only:
        measure_swarm(device, 4 if tiny else 32, 10, given.turns, (8,) if tiny else (256, 1024))
    if "train" in only:
        task = _RandomTokensMini() if tiny else _RandomTokens()
        batches = given.batch or ([2, 8] if tiny else [8, 32])
        measure_training(task, device, batches, 20 if tiny else 40, given.turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
