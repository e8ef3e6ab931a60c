# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia swarm`: many workers in one process, over the real wire."""

from pathlib import Path
from typing import Annotated

import typer

from fed_sophia.extras import needing
from fed_sophia.interruptible import run_until_stopped
from fed_sophia.options import (
    DEFAULT_SERVER,
    DataDir,
    EvaluatorToken,
    ExitWithParent,
    JoinToken,
    JoinTokenFile,
    JsonLines,
    Server,
    read_secret,
)
from fed_sophia.output import output_for
from fed_sophia.parent_watch import exit_with_parent
from fed_sophia.trust_options import NO_CHOICE
from fed_sophia.worker_options import Device, PartitionScheme, PartitionSeed, TaskName, Threads
from worker.options import Trust

EXAMPLES = """\b
Examples:
  fed-sophia swarm --workers 8 --task digits --partition shards:2
  fed-sophia swarm --workers 1000 --task digits --partition iid --stack 64
  fed-sophia swarm --workers 16 --first-index 16 --of 32 --task fashion-mnist-mlp --partition iid
"""


def swarm(
    workers: Annotated[int, typer.Option(min=1, help="Workers in this process.")],
    task: TaskName,
    server: Server = DEFAULT_SERVER,
    join_token: JoinToken = None,
    join_token_file: JoinTokenFile = None,
    evaluator_token: EvaluatorToken = None,
    first_index: Annotated[int, typer.Option(min=0, help="Number of its first worker.")] = 0,
    of: Annotated[
        int | None,
        typer.Option(
            min=1, help="Workers of all processes: parts of the data.", show_default="those of this process"
        ),
    ] = None,
    name_prefix: Annotated[str, typer.Option(help="Workers are called PREFIX-NUMBER.")] = "worker",
    state_dir: Annotated[Path, typer.Option(help="One folder for each worker is made in here.")] = Path(
        "fed-sophia-swarm"
    ),
    partition: PartitionScheme = None,
    partition_seed: PartitionSeed = 0,
    parallel_training: Annotated[
        int,
        typer.Option(min=1, help="Workers of this process, or stacks of them, that train at the same time."),
    ] = 1,
    stack: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Workers whose models are stacked and trained as one, at most; 1 trains one by one.",
            show_default="1 on a CPU, 1024 on CUDA",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    trust: Trust = NO_CHOICE,
    leave_with_parent: ExitWithParent = False,
    json_lines: JsonLines = False,
) -> None:
    """Run many workers in one process, each with its own identity and its part of one data set.

    To the server they are ordinary workers. It is how a federation is simulated.
    """
    if leave_with_parent:
        exit_with_parent()
    with needing("worker", "torch"):
        from fed_sophia.agent_events import reporting_to
        from worker.swarm import SwarmOptions, run_swarm

    output = output_for(json_lines)
    options = SwarmOptions(
        server_url=server,
        join_token=read_secret(join_token_file, "join token") if join_token_file else join_token,
        evaluator_token=evaluator_token,
        num_workers=workers,
        first_index=first_index,
        of=of or first_index + workers,
        name_prefix=name_prefix,
        state_dir=state_dir,
        task=task,
        data_dir=data_dir,
        partition=partition,
        partition_seed=partition_seed,
        parallel_training=parallel_training,
        stack=stack,
        device=device,
        threads=threads,
        trust=trust,
    )
    run_until_stopped(run_swarm(options, reporting_to(output)))
    output.summary("stopped", {"stopped": True})
