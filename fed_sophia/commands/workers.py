# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia workers …` and `fed-sophia run workers`: who is there, and where each stands in a round."""

from collections import Counter
from typing import Annotated

import typer

from fed_sophia.commands.asking import ask
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import DEFAULT_SERVER, JsonLines, OperatorKeyFile, RunId, Server
from fed_sophia.output import output_for
from fed_sophia.trust_options import NO_CHOICE
from fed_sophia.workers_view import (
    counts_text,
    enrolled_fields,
    enrolled_table,
    in_round_fields,
    in_round_table,
    presence_of,
)
from protocol.messages import WorkerInRound
from worker.options import Trust

EXAMPLES = """\b
Examples:
  fed-sophia workers list
  fed-sophia workers list --json
"""
APPROVE_EXAMPLES = """\b
Examples:
  fed-sophia workers approve WORKER
"""
RELEASE_EXAMPLES = """\b
Examples:
  fed-sophia workers release WORKER
"""
REVOKE_EXAMPLES = """\b
Examples:
  fed-sophia workers revoke WORKER
"""
WorkerId = Annotated[
    str, typer.Argument(metavar="WORKER", help="The worker's id, as `workers list` shows it.")
]
IN_ROUND_EXAMPLES = """\b
Examples:
  fed-sophia run workers RUN
  fed-sophia run workers RUN --round 3 --json
"""


def list_workers(
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """List the enrolled workers by name: what each serves, on what, and when it was last heard of."""
    output = output_for(json_lines)
    found = ask(server, operator_key_file, trust, lambda client: client.workers())
    output.rows("worker", lambda: enrolled_table(found), [*map(enrolled_fields, found)])
    presences = Counter(presence_of(worker) for worker in found)
    text = counts_text(presences.elements()) or "no workers have enrolled yet"
    output.summary(text, {"workers": len(found), "presences": dict(presences)})


def approve(
    worker_id: WorkerId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Let in a worker that waits for approval."""
    ask(server, operator_key_file, trust, lambda client: client.approve_worker(worker_id))
    output_for(json_lines).summary(f"{worker_id} is approved", {"worker": worker_id})


def release(
    worker_id: WorkerId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """End a worker's quarantine: it is asked for updates again."""
    ask(server, operator_key_file, trust, lambda client: client.release_worker(worker_id))
    output_for(json_lines).summary(f"{worker_id} is released", {"worker": worker_id})


def revoke(
    worker_id: WorkerId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Shut a worker out for good, at once, also in the middle of an upload."""
    ask(server, operator_key_file, trust, lambda client: client.revoke_worker(worker_id))
    output_for(json_lines).summary(f"{worker_id} is revoked", {"worker": worker_id})


def in_round(
    run_id: RunId,
    number: Annotated[
        int | None, typer.Option("--round", min=1, help="Which round.", show_default="the last")
    ] = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Show where each worker of a round stands, and why."""

    async def fetch(client: OperatorClient) -> tuple[int, tuple[WorkerInRound, ...]]:
        chosen = number or (await client.run(run_id)).round
        return chosen, await client.workers_in_round(run_id, chosen) if chosen else ()

    output = output_for(json_lines)
    shown, found = ask(server, operator_key_file, trust, fetch)
    fields = [in_round_fields(run_id, shown, worker) for worker in found]
    output.rows("worker", lambda: in_round_table(found), fields)
    standings = Counter(worker.standing.value for worker in found)
    text = f"round {shown}: {counts_text(standings.elements()) or 'nobody was invited here'}"
    output.summary(
        text if shown else "no round was opened yet",
        {"run": run_id, "round": shown, "workers": len(found), "standings": dict(standings)},
    )
