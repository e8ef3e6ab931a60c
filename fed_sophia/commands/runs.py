# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia run …`: list, show, pause, resume and cancel training jobs."""

from fed_sophia.commands.asking import ask
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import (
    DEFAULT_SERVER,
    JsonLines,
    OperatorKeyFile,
    RunId,
    Server,
)
from fed_sophia.output import Fields, HumanOutput, output_for
from fed_sophia.rounds_view import round_fields, rounds_table
from fed_sophia.trust_options import NO_CHOICE
from protocol.messages import RunSpec, RunStatus, RunSummary
from worker.options import Trust

_POLICIES = (
    "cohort_size",
    "cohort_fraction",
    "min_workers",
    "over_selection",
    "quorum",
    "deadline_s",
    "adaptive_deadline",
    "max_extensions",
    "target_metric",
    "max_duration_s",
    "retention",
)

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
PAUSE_EXAMPLES = """\b
Examples:
  fed-sophia run pause RUN
"""
RESUME_EXAMPLES = """\b
Examples:
  fed-sophia run resume RUN
"""


def list_runs(
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """List the runs, newest first."""
    output = output_for(json_lines)
    runs = ask(server, operator_key_file, trust, lambda client: client.runs())
    for run in runs:
        output.event("run", run_sentence(run), run_fields(run))
    output.summary("" if runs else "no runs yet", {"runs": len(runs)})


def show(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
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

    run = ask(server, operator_key_file, trust, fetch)
    policies = "  ".join(f"{name} {value}" for name, value in policies_of(run.spec).items())
    output.event("policies", policies, {"run": run.run_id} | policies_of(run.spec))
    output.summary(run_sentence(run), run_fields(run))


def pause(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Open no further round; the one that is open goes on to its end."""
    run = ask(server, operator_key_file, trust, lambda client: client.pause(run_id))
    output_for(json_lines).summary(run_sentence(run), run_fields(run))


def resume(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Open rounds again after a pause."""
    run = ask(server, operator_key_file, trust, lambda client: client.resume(run_id))
    output_for(json_lines).summary(run_sentence(run), run_fields(run))


def cancel(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """End a run now; what an open round has collected is not counted."""
    run = ask(server, operator_key_file, trust, lambda client: client.cancel(run_id))
    output_for(json_lines).summary(run_sentence(run), run_fields(run))


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
        "workers_awaited": run.spec.workers_awaited,
        "policies": policies_of(run.spec),
        "params_digest": run.tensors.get("params"),
    }


def policies_of(spec: RunSpec) -> Fields:
    """How the run's rounds are held."""
    said = spec.model_dump(mode="json", include=set(_POLICIES), exclude_none=True)
    return {name: said[name] for name in _POLICIES if name in said}


def run_sentence(run: RunSummary) -> str:
    waiting = f"; {run.members} of {run.spec.workers_awaited} workers are here"
    return (
        f"{run.run_id}  {run.spec.name}  {run.spec.task} by {run.spec.algorithm}  "
        f"version {run.version} of {run.spec.rounds}  {run.status.value}"
        + (f": {run.reason}" if run.reason else "")
        + (waiting if run.status is RunStatus.WAITING else "")
    )
