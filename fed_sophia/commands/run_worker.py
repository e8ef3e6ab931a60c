# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia worker`: serve one task with the data of this place."""

import platform
import re
from pathlib import Path
from typing import Annotated

import typer

from fed_sophia.extras import needing
from fed_sophia.interruptible import run_until_stopped
from fed_sophia.options import (
    DEFAULT_SERVER,
    DataDir,
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
from worker.options import Numerics, Precision, Trust

EXAMPLES = """\b
Examples:
  fed-sophia worker --join-token-file fed-sophia-data/join.token --task digits
  fed-sophia worker --server https://fl.example.org --task ./my_task.py --name ward-7
  fed-sophia worker --task digits --name b --partition shards:2 --partition-index 1 --partition-of 4
  fed-sophia worker --task gpt2-small --device cuda --precision bfloat16 --compile
"""


def worker(
    task: TaskName,
    server: Server = DEFAULT_SERVER,
    join_token: JoinToken = None,
    join_token_file: JoinTokenFile = None,
    name: Annotated[
        str | None, typer.Option(help="What to call this worker.", show_default="the machine's name")
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Its identity, its unsent updates and its local state; one folder a worker.",
            show_default="./fed-sophia-worker/NAME",
        ),
    ] = None,
    partition: PartitionScheme = None,
    partition_index: Annotated[int, typer.Option(min=0, help="Which part is this worker's.")] = 0,
    partition_of: Annotated[int, typer.Option(min=1, help="Into how many parts the data is divided.")] = 1,
    partition_seed: PartitionSeed = 0,
    device: Device = "auto",
    threads: Threads = None,
    precision: Annotated[
        Precision, typer.Option(help="Of the model's products; all else stays float32.")
    ] = "float32",
    micro_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples that go through the model at a time; fewer take less memory.",
            show_default="the whole mini-batch",
        ),
    ] = None,
    compiles: Annotated[
        bool, typer.Option("--compile", help="Compile the model: a GPU is faster after some tens of seconds.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Record a step's kernels on CUDA, and play them again.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute a model's blocks twice, to keep less in memory.")
    ] = False,
    data_dir: DataDir = None,
    rotate_key: Annotated[
        bool, typer.Option("--rotate-key", help="Put a new key in the place of this worker's at the start.")
    ] = False,
    trust: Trust = NO_CHOICE,
    leave_with_parent: ExitWithParent = False,
    json_lines: JsonLines = False,
) -> None:
    """Train on the data of this place whenever the server asks, until Ctrl-C.

    Started again with the same --state-dir it is the same worker: it needs no token then, and sends an
    update that was finished before.
    """
    if leave_with_parent:
        exit_with_parent()
    with needing("worker", "torch"):
        from fed_sophia.agent_events import reporting_to
        from worker.agent import WorkerOptions, run_worker

    output = output_for(json_lines)
    chosen_name = name or _machine_name()
    options = WorkerOptions(
        server_url=server,
        join_token=read_secret(join_token_file, "join token") if join_token_file else join_token,
        name=chosen_name,
        state_dir=state_dir or Path("fed-sophia-worker") / chosen_name,
        task=task,
        data_dir=data_dir,
        partition=partition,
        partition_index=partition_index,
        partition_of=partition_of,
        partition_seed=partition_seed,
        device=device,
        threads=threads,
        numerics=Numerics(precision, micro_batch, compiles, record, recompute),
        rotate_key=rotate_key,
        trust=trust,
    )
    run_until_stopped(run_worker(options, reporting_to(output)))
    output.summary("stopped", {"stopped": True})


def _machine_name() -> str:
    """The machine's name with whatever a worker's name may not hold left out."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node()).strip("-._")[:64] or "worker"
