# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia demo`: a real federation on this machine, from nothing to a trained model."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from fed_sophia.demo_summary import DemoSummary, comparison, summarise
from fed_sophia.extras import needing
from fed_sophia.federation import Crowd, federation, until_running, while_alive
from fed_sophia.follow import follow
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.new_run import RunRequest, begin, prepare
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import AlgorithmName, DataDir, JsonLines, hyperparameters
from fed_sophia.output import HumanOutput, Output, output_for
from fed_sophia.processes import Child
from fed_sophia.rounds_view import view_for
from protocol.errors import DataUnavailable, Internal, InvalidUsage
from protocol.messages import RunStatus

EXAMPLES = """\b
Examples:
  fed-sophia demo
  fed-sophia demo --compare
  fed-sophia demo --algorithm fedavg --rounds 50
  fed-sophia demo --task digits --workers 8 --rounds 5 --json
"""
FALLBACK_TASK = "digits"
COMPARED = ("fed-sophia-shared", "fed-sophia", "fedavg")
_ROUND_DEADLINE_S = 120.0
_METRICS_WAIT_S = 30.0


@dataclass(frozen=True)
class Demo:
    """What is to be shown."""

    crowd: Crowd
    requests: tuple[RunRequest, ...]


def demo(
    workers: Annotated[int, typer.Option(min=1, help="Workers of the federation.")] = 32,
    processes: Annotated[int, typer.Option(min=1, help="Processes those workers are spread over.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to train.")] = 20,
    local_steps: Annotated[int, typer.Option(min=1, help="Steps a worker makes in a round (J).")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a local step.")] = 32,
    partition: Annotated[
        str, typer.Option(help="Who holds what: iid, dirichlet:ALPHA, shards:K, labels:K or groups.")
    ] = "shards:2",
    task: Annotated[
        str, typer.Option(help="A task of the menu, such as digits or char-lm, or the path of a file.")
    ] = "fashion-mnist-mlp",
    algorithm: AlgorithmName = "fed-sophia-shared",
    compare: Annotated[
        bool, typer.Option("--compare", help=f"Run {', '.join(COMPARED)} one after the other, side by side.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the data split, the model and the batches.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter of the algorithm. Repeatable."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the server's data and every log in this new folder.")
    ] = None,
    data_dir: DataDir = None,
    json_lines: JsonLines = False,
) -> None:
    """Train a model with real processes over real HTTP on this machine, and sum up how it went.

    A parameter server in a process of its own, workers in others, data that is split unevenly between
    them. Nothing is left behind.
    """
    output = output_for(json_lines)
    if compare and settings:
        raise InvalidUsage("--set belongs to one algorithm and cannot be given with --compare")
    request = RunRequest(
        task=task,
        name="demo",
        rounds=rounds,
        # every update counts, so that equal seeds give equal models
        policies={"cohort_size": workers, "quorum": workers, "deadline_s": _ROUND_DEADLINE_S},
        algorithm=algorithm,
        local_steps=local_steps,
        batch_size=batch_size,
        seed=seed,
        hyperparameters=hyperparameters(settings, algorithm),
        data_dir=data_dir,
    )
    requests = tuple(replace(request, algorithm=name) for name in COMPARED) if compare else (request,)
    crowd = Crowd(task, partition, workers, min(processes, workers), seed, data_dir)
    shown = _checked(Demo(crowd, requests), output)
    with _folder(keep) as folder:
        summaries = run_interruptibly(_show(shown, folder, output))
    _report(summaries, output)


async def _show(demo: Demo, folder: Path, output: Output) -> list[DemoSummary]:
    async with federation(folder, output) as (local, children):
        server, client = await local.start_server()
        async with client:
            await local.start_workers(client, demo.crowd)
            return [
                await while_alive(children, _one_run(request, client, server, output))
                for request in demo.requests
            ]


async def _one_run(request: RunRequest, client: OperatorClient, server: Child, output: Output) -> DemoSummary:
    begun = time.monotonic()
    run = await begin(client, request)
    await until_running(client, run.run_id)
    title = f"{request.algorithm}, {request.task}, {run.spec.workers_awaited} workers"
    with view_for(output, run.run_id, title) as view:
        run, rounds = await follow(client, run.run_id, view, lambda _: _METRICS_WAIT_S)
    if run.status is not RunStatus.FINISHED:
        raise Internal(f"{request.algorithm}: the run {run.status.value}: {run.reason}")
    seconds = time.monotonic() - begun
    return summarise(run, rounds, seconds=seconds, server_peak_rss_mb=server.peak_rss_mb())


def _checked(demo: Demo, output: Output) -> Demo:
    """The demo with data that can be had, if all of it goes together: before anything is started.

    Raises:
        FedSophiaError: it does not.
    """
    with needing("worker", "torch"):
        from worker.tasks.partition import parse_partition

    parse_partition(demo.crowd.partition)
    demo = _with_data(demo, output)
    for request in demo.requests:
        prepare(request)
    return demo


def _with_data(demo: Demo, output: Output) -> Demo:
    """The demo with data that can be had: `digits` if the task's own cannot."""
    with needing("worker"):
        from worker.tasks import load_task

    crowd = demo.crowd
    try:
        load_task(crowd.task, crowd.data_dir).evaluation_data()
    except DataUnavailable as error:
        if crowd.task == FALLBACK_TASK:
            raise
        text = f"{crowd.task} cannot be had here, so this is {FALLBACK_TASK}: {error.detail}"
        output.event("fallback", text, {"task": FALLBACK_TASK, "reason": error.detail})
        crowd = replace(crowd, task=FALLBACK_TASK)
        requests = tuple(replace(request, task=FALLBACK_TASK) for request in demo.requests)
        demo = Demo(crowd, requests)
    return demo


def _report(summaries: list[DemoSummary], output: Output) -> None:
    if len(summaries) == 1:
        output.summary(summaries[0].sentence(), summaries[0].fields())
        return
    if isinstance(output, HumanOutput):
        output.console.print(comparison(summaries))
    output.summary("", {"runs": [summary.fields() for summary in summaries]})


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A temporary folder, or the one to keep.

    Raises:
        InvalidUsage: the folder to keep holds something already.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="fed-sophia-demo-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise InvalidUsage(f"--keep {keep}: expected a new or an empty folder")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.resolve()
