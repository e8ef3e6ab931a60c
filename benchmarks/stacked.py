# SPDX-License-Identifier: Apache-2.0
"""Training a round's workers stacked, beside training them one by one.

    python -m benchmarks.stacked                        32 workers, CNN, batches of 32
    python -m benchmarks.stacked --task digits --batch 8

The same assignments, local steps and results. One by one is `Trainer`, as an agent uses it, with one thread
an operation and with all cores; stacked is `StackedTrainer` at several sizes of stack, a thread a core. The
cases take turns, and the median over the turns is reported. The floor is what the model's multiplications
alone would take if all cores did them as fast as a large matrix product in the same run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.assignment import an_assignment
from fed_sophia.output import Fields, output_for
from protocol.codec import Bundle
from worker.machine import intra_op_threads, usable_cores
from worker.stacked import Job, StackedTrainer
from worker.training import Trainer, initial_parameters
from worker.trial_data import TrialData

CPU = torch.device("cpu")
STACKS = (4, 8, 16, 32)
MATRIX = 2048


def measure(
    task: str, algorithm: str, workers: int, batch: int, local_steps: int, turns: int
) -> list[Fields]:
    """Milliseconds that a worker's local step takes in each case, and how much faster than one by one."""
    data = TrialData.divided(task, None, "shards:2", workers, 0, validation=200, validation_seed=0)
    params = initial_parameters(data.task, 0)
    jobs = [
        Job(slot, an_assignment(algorithm, local_steps, batch, slot=slot), None) for slot in range(workers)
    ]
    cores = usable_cores()
    alone = data.trainers(CPU)
    works: dict[str, Callable[[], None]] = {
        f"one by one, {threads} threads": partial(one_by_one, alone, jobs, params, threads)
        for threads in sorted({1, cores})
    }
    for stack in STACKS:
        trainer = data.stacked_trainer(CPU, stack=stack, threads=cores)
        works[f"stacks of {stack}"] = partial(stacked, trainer, jobs, params)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            took = _seconds(work)
            if turn:  # the first warms up
                seconds[name].append(took)
    steps = workers * local_steps
    ms = {name: statistics.median(taken) / steps * 1e3 for name, taken in seconds.items()}
    ms["floor"] = floor_ms(data.task.model(), data, batch, cores)
    return _rows(ms)


def one_by_one(trainers: Sequence[Trainer], jobs: Sequence[Job], params: Bundle, threads: int) -> None:
    with intra_op_threads(threads):
        for job in jobs:
            trainers[job.worker].train(job.assignment, {"params": params}, None)


def stacked(trainer: StackedTrainer, jobs: Sequence[Job], params: Bundle) -> None:
    with intra_op_threads(1):
        trainer.train(jobs, {"params": params})


def floor_ms(model: nn.Module, data: TrialData, batch: int, cores: int) -> float:
    """What the multiplications of a step take at the rate of a large matrix product on every core."""
    examples = data.training.batch(data.rows_of_each[0][:batch])
    counter = FlopCounterMode(display=False)
    with counter:
        loss = torch.nn.functional.cross_entropy(model(examples.inputs), examples.targets)
        torch.autograd.grad(loss, list(model.parameters()))
    matrix = torch.randn(MATRIX, MATRIX)
    with intra_op_threads(1):
        rate = 2 * MATRIX**3 / min(_seconds(lambda: matrix @ matrix) for _ in range(5))
    return counter.get_total_flops() / (rate * cores) * 1e3


def _rows(ms: Mapping[str, float]) -> list[Fields]:
    fastest_alone = min(took for name, took in ms.items() if name.startswith("one by one"))
    return [{"case": name, "ms": took, "faster": fastest_alone / took} for name, took in ms.items()]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(found: Sequence[Fields]) -> str:
    lines = ["case                      ms a local step   faster than one by one"]
    return "\n".join(lines + ["{case:<24} {ms:>16.3f} {faster:>24.2f}".format_map(row) for row in found])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stacked", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--task", default="fashion-mnist-cnn", help="what is trained")
    parser.add_argument("--algorithm", default="fed-sophia-shared", help="by what")
    parser.add_argument("--workers", type=int, default=32, help="in the round")
    parser.add_argument("--batch", type=int, default=32, help="examples of a local step")
    parser.add_argument("--local-steps", type=int, default=10, help="of each worker")
    parser.add_argument("--turns", type=int, default=5, help="that each case takes")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    found = measure(given.task, given.algorithm, given.workers, given.batch, given.local_steps, given.turns)
    output_for(given.json).summary(
        table(found), {"cases": found} | {"task": given.task, "batch": given.batch}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
