# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia run create`: begin a training job."""

import math
from collections.abc import Sequence
from typing import Annotated

import typer

from fed_sophia.commands.asking import ask
from fed_sophia.commands.runs import run_fields, run_sentence
from fed_sophia.follow import follow
from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import (
    DEFAULT_SERVER,
    AlgorithmName,
    DataDir,
    JsonLines,
    OperatorKeyFile,
    Server,
    duration_s,
    hyperparameters,
    named_values,
)
from fed_sophia.output import output_for
from fed_sophia.policies import adaptive, asynchronous, retention, target_metric
from fed_sophia.rounds_view import view_for
from fed_sophia.trust_options import NO_CHOICE
from protocol.messages import RoundSummary, RunStatus, RunSummary
from worker.options import Trust

_METRICS_WAIT_S = 5.0
_UNMEASURED_AFTER = 3  # rounds without metrics show that nobody measures

EXAMPLES = """\b
Examples:
  fed-sophia run create --task digits --cohort-size 2 --rounds 10 --follow
  fed-sophia run create --task ./my_task.py --cohort-size 10 --deadline 30m
  fed-sophia run create --task digits --cohort-size 10 --min-workers 40 --asynchronous yes
  fed-sophia run create --task digits --cohort-size 8 \\
      --algorithm fed-sophia --set max_round_step=0.02 --encoding delta=bf16
"""


def create(
    task: Annotated[str, typer.Option(help="A task's name, or the path of a file that defines one.")],
    algorithm: AlgorithmName = "fed-sophia-shared",
    cohort_size: Annotated[int | None, typer.Option(min=1, help="Updates that a round collects.")] = None,
    cohort_fraction: Annotated[
        float | None, typer.Option(help="The same as a share of the workers there are, 0 to 1.")
    ] = None,
    min_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers that the first round waits for.", show_default="the cohort size"),
    ] = None,
    over_selection: Annotated[
        float, typer.Option(help="Workers invited for each update wanted; the first to answer are kept.")
    ] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Versions to make.")] = 20,
    local_steps: Annotated[int, typer.Option(min=1, help="Steps a worker makes in a round (J).")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a local step.")] = 32,
    quorum: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Fewest updates that make a version once the deadline has passed; "
            "in an asynchronous run, fewest workers.",
            show_default="80 % of the cohort; half of an asynchronous one",
        ),
    ] = None,
    deadline: Annotated[str, typer.Option(help="Longest time a round collects: 90s, 10m, 24h.")] = "10m",
    adaptive_deadline: Annotated[
        str | None,
        typer.Option(
            metavar="K:FLOOR:CEILING",
            help="Let rounds last the median of those before + K deviations, as in 4:10s:30m.",
        ),
    ] = None,
    asynchronous_rounds: Annotated[
        str | None,
        typer.Option(
            "--asynchronous",
            metavar="SETTINGS",
            help="Let no worker wait for others: each cohort of updates that arrives makes a version. "
            "yes, or as in max-staleness=20,staleness-exponent=0.5,concurrency=64.",
        ),
    ] = None,
    max_extensions: Annotated[
        int, typer.Option(min=0, help="How often a round without a quorum gets its time again.")
    ] = 0,
    target: Annotated[
        str | None,
        typer.Option(metavar="METRIC>=VALUE", help="End when a metric is reached (>= or <=)."),
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option(help="End the run after so long: 90s, 10m, 24h.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=N",
            help="Versions that keep their tensors: last=20, every=50, highest=METRIC:3, lowest=METRIC; "
            "updates=ROUNDS keeps the workers' updates. Repeatable; they add up.",
            show_default="last=10",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Chooses the first parameters, the cohorts and the batches.")
    ] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter of the algorithm. Repeatable."),
    ] = None,
    encoding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE=ENCODING", help="How a bundle travels, as in delta=bounded_int4. Repeatable."
        ),
    ] = None,
    combiner: Annotated[
        list[str] | None,
        typer.Option(metavar="BUNDLE=NAME", help="How the workers' bundles become one. Repeatable."),
    ] = None,
    max_delta_norm: Annotated[
        float | None,
        typer.Option(help="Scale every delta that is longer, over all its tensors, to this L2 norm."),
    ] = None,
    presigned: Annotated[
        bool,
        typer.Option(
            "--presigned", help="Let workers exchange tensors with the server's object store itself."
        ),
    ] = False,
    name: Annotated[str, typer.Option(help="A name for people; it need not be unique.")] = "run",
    follow_run: Annotated[bool, typer.Option("--follow", help="Show the rounds until the run ends.")] = False,
    data_dir: DataDir = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Begin a run: initialise the task's model here, store it on the server, invite the workers."""
    output = output_for(json_lines)
    request = RunRequest(
        task=task,
        name=name,
        rounds=rounds,
        policies={
            "cohort_size": cohort_size,
            "cohort_fraction": cohort_fraction,
            "min_workers": min_workers,
            "over_selection": over_selection,
            "quorum": quorum
            if quorum is not None
            else _default_quorum(cohort_size, cohort_fraction, min_workers, asynchronous_rounds is not None),
            "deadline_s": duration_s(deadline, "--deadline"),
            "adaptive_deadline": adaptive(adaptive_deadline),
            "asynchronous": asynchronous(asynchronous_rounds),
            "max_extensions": max_extensions,
            "target_metric": target_metric(target),
            "max_duration_s": None if max_duration is None else duration_s(max_duration, "--max-duration"),
            "retention": retention(keep or ()),
            "max_delta_norm": max_delta_norm,
            "presigned": presigned,
        },
        algorithm=algorithm,
        local_steps=local_steps,
        batch_size=batch_size,
        seed=seed,
        hyperparameters=hyperparameters(settings, algorithm),
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
            ended, _ = await follow(client, run.run_id, view, metrics_wait_s)
        return ended

    run = ask(server, operator_key_file, trust, create_and_follow)
    output.summary(run_sentence(run), run_fields(run))
    if run.status is RunStatus.FAILED:
        raise typer.Exit(1)


def metrics_wait_s(rounds: Sequence[RoundSummary]) -> float:
    """How long to wait for the last version's metrics: not at all where no version was ever measured."""
    measured = any("test_accuracy" in round_.metrics for round_ in rounds)
    return _METRICS_WAIT_S if measured or len(rounds) < _UNMEASURED_AFTER else 0.0


def _default_quorum(
    size: int | None, fraction: float | None, min_workers: int | None, is_asynchronous: bool
) -> int:
    """80 % of the smallest cohort, half of an asynchronous one; nonsense is left for the spec to refuse."""
    cohort = size if size is not None else (fraction or 0.0) * (min_workers or 0)
    return max(1, int(cohort / 2) if is_asynchronous else math.ceil(0.8 * cohort - 1e-9))
