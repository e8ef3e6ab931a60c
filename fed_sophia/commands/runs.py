# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia run …`: begin, watch, end and export training jobs."""

import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fed_sophia.export import export_version
from fed_sophia.follow import follow
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import (
    DEFAULT_SERVER,
    DataDir,
    JsonLines,
    OperatorKeyFile,
    RunId,
    Server,
    duration_s,
    hyperparameters,
    named_values,
    operator_key,
)
from fed_sophia.output import Fields, HumanOutput, output_for, size_text
from fed_sophia.rounds_view import round_fields, rounds_table, view_for
from protocol.messages import RunStatus, RunSummary

T = TypeVar("T")
_METRICS_WAIT_S = 5.0

CREATE_EXAMPLES = """\b
Examples:
  fed-sophia run create --task digits --cohort-size 2 --rounds 10 --follow
  fed-sophia run create --task ./my_task.py --cohort-size 10 --deadline 30m
  fed-sophia run create --task digits --cohort-size 8 \\
      --algorithm fed-sophia --set max_round_step=0.02 --encoding delta=bf16
"""
LIST_EXAMPLES = """\b
Examples:
  fed-sophia run list
  fed-sophia run list --json
"""
SHOW_EXAMPLES = """\b
Examples:
  fed-sophia run show RUN
  fed-sophia run show RUN --json
"""
CANCEL_EXAMPLES = """\b
Examples:
  fed-sophia run cancel RUN
"""
EXPORT_EXAMPLES = """\b
Examples:
  fed-sophia run export RUN --output model.safetensors
  fed-sophia run export RUN --version 10 --output ten.safetensors
"""


def _ask(server: str, key_file: Path | None, question: Callable[[OperatorClient], Awaitable[T]]) -> T:
    key = operator_key(server, key_file, os.environ)

    async def asked() -> T:
        async with OperatorClient(server, key) as client:
            return await question(client)

    return run_interruptibly(asked())


def create(
    task: Annotated[str, typer.Option(help="A task's name, or the path of a file that defines one.")],
    cohort_size: Annotated[int, typer.Option(help="Workers invited to each round; it waits for so many.")],
    algorithm: Annotated[
        str, typer.Option(help="fed-sophia-shared, fed-sophia or fedavg.")
    ] = "fed-sophia-shared",
    rounds: Annotated[int, typer.Option(help="Versions to make.")] = 20,
    local_steps: Annotated[int, typer.Option(help="Steps a worker makes in a round (J).")] = 10,
    batch_size: Annotated[int, typer.Option(help="Examples in a local step.")] = 32,
    quorum: Annotated[
        int | None,
        typer.Option(
            help="Fewest updates that make a version once the deadline has passed.",
            show_default="80 % of the cohort",
        ),
    ] = None,
    deadline: Annotated[str, typer.Option(help="Longest time a round collects: 90s, 10m, 24h.")] = "10m",
    seed: Annotated[int, typer.Option(help="Chooses the first parameters, the cohorts and the batches.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter of the algorithm. Repeatable."),
    ] = None,
    encoding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE=ENCODING", help="How a bundle is uploaded: f32, bf16 or f16. Repeatable."
        ),
    ] = None,
    combiner: Annotated[
        list[str] | None,
        typer.Option(metavar="BUNDLE=NAME", help="How the workers' bundles become one. Repeatable."),
    ] = None,
    name: Annotated[str, typer.Option(help="A name for people; it need not be unique.")] = "run",
    follow_run: Annotated[bool, typer.Option("--follow", help="Show the rounds until the run ends.")] = False,
    data_dir: DataDir = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    json_lines: JsonLines = False,
) -> None:
    """Begin a run: initialise the task's model here, store it on the server, invite the workers."""
    output = output_for(json_lines)
    request = RunRequest(
        task=task,
        name=name,
        rounds=rounds,
        cohort_size=cohort_size,
        quorum=math.ceil(0.8 * cohort_size) if quorum is None else quorum,
        algorithm=algorithm,
        local_steps=local_steps,
        batch_size=batch_size,
        deadline_s=duration_s(deadline, "--deadline"),
        seed=seed,
        hyperparameters=hyperparameters(settings),
        encodings=named_values(encoding, "--encoding"),
        combiners=named_values(combiner, "--combiner"),
        data_dir=data_dir,
    )

    async def create_and_follow(client: OperatorClient) -> RunSummary:
        run = await begin(client, request)
        if not follow_run:
            return run
        output.event("created", f"run {run.run_id}; Ctrl-C stops watching, not the run", run_fields(run))
        with view_for(output, run.run_id, f"{run.spec.task} by {run.spec.algorithm}") as view:
            ended, _ = await follow(client, run.run_id, view, _METRICS_WAIT_S)
        return ended

    run = _ask(server, operator_key_file, create_and_follow)
    output.summary(_run_sentence(run), run_fields(run))
    if run.status is RunStatus.FAILED:
        raise typer.Exit(1)


def list_runs(
    server: Server = DEFAULT_SERVER, operator_key_file: OperatorKeyFile = None, json_lines: JsonLines = False
) -> None:
    """List the runs, newest first."""
    output = output_for(json_lines)
    runs = _ask(server, operator_key_file, lambda client: client.runs())
    for run in runs:
        output.event("run", _run_sentence(run), run_fields(run))
    output.summary("" if runs else "no runs yet", {"runs": len(runs)})


def show(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    json_lines: JsonLines = False,
) -> None:
    """Show where a run stands, and its rounds."""
    output = output_for(json_lines)

    async def fetch(client: OperatorClient) -> RunSummary:
        run = await client.run(run_id)
        rounds = await client.rounds(run_id)
        if isinstance(output, HumanOutput):
            output.console.print(rounds_table(rounds, f"{run.spec.task} by {run.spec.algorithm}"))
        for round_ in rounds:
            output.event("round", "", round_fields(round_))
        return run

    run = _ask(server, operator_key_file, fetch)
    output.summary(_run_sentence(run), run_fields(run))


def cancel(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    json_lines: JsonLines = False,
) -> None:
    """End a run now; what an open round has collected is not counted."""
    run = _ask(server, operator_key_file, lambda client: client.cancel(run_id))
    output_for(json_lines).summary(_run_sentence(run), run_fields(run))


def export(
    run_id: RunId,
    destination: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    version: Annotated[
        int | None, typer.Option(help="Which version; 0 is the first parameters.", show_default="the last")
    ] = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    json_lines: JsonLines = False,
) -> None:
    """Write a version's parameters to a safetensors file."""
    exported = _ask(
        server, operator_key_file, lambda client: export_version(client, run_id, version, destination)
    )
    output_for(json_lines).summary(
        f"{destination}: version {exported.version}, {exported.num_tensors} tensors, "
        f"{size_text(exported.size_bytes)}",
        exported.fields(),
    )


def run_fields(run: RunSummary) -> Fields:
    """A run for machines."""
    return {
        "run": run.run_id,
        "name": run.spec.name,
        "task": run.spec.task,
        "algorithm": run.spec.algorithm,
        "status": run.status.value,
        "reason": run.reason,
        "round": run.round,
        "rounds": run.spec.rounds,
        "version": run.version,
        "members": run.members,
        "cohort_size": run.spec.cohort_size,
        "params_digest": run.tensors.get("params"),
    }


def _run_sentence(run: RunSummary) -> str:
    waiting = f"; {run.members} of {run.spec.cohort_size} workers are here"
    return (
        f"{run.run_id}  {run.spec.name}  {run.spec.task} by {run.spec.algorithm}  "
        f"version {run.version} of {run.spec.rounds}  {run.status.value}"
        + (f": {run.reason}" if run.reason else "")
        + (waiting if run.status is RunStatus.WAITING else "")
    )
