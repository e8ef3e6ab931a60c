# SPDX-License-Identifier: Apache-2.0
"""What a worker's events are called on the command line, for people and for machines."""

from dataclasses import asdict

from fed_sophia.output import Output, size_text
from worker.events import (
    AgentEvent,
    Enrolled,
    Evaluated,
    Failed,
    NotStacked,
    Reconnecting,
    Refused,
    Report,
    Sent,
    StackShrunk,
    Training,
    Waiting,
)


def reporting_to(output: Output) -> Report:
    """A `report` for workers that says each event through `output`."""

    def report(event: AgentEvent) -> None:
        fields = asdict(event)
        if isinstance(event, Sent):
            fields["receipt"] = event.receipt.model_dump(mode="json")
        output.event(type(event).__name__.lower(), f"{event.worker}: {_sentence(event)}", fields)

    return report


def _sentence(event: AgentEvent) -> str:
    match event:
        case Enrolled():
            return f"enrolled as {event.worker_id}"
        case Waiting():
            return "waiting for an assignment"
        case Training():
            return f"training in round {event.round} of run {event.run}"
        case Sent():
            return f"sent {size_text(event.size_bytes)}, receipt {event.receipt.digest[:12]}"
        case Evaluated():
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(event.metrics.items()))
            return f"measured version {event.version}: {metrics}"
        case Refused():
            return f"gave up an assignment: {event.detail} ({event.code})"
        case Reconnecting():
            return f"{event.detail}; trying again in {event.wait_s:.1f} s"
        case NotStacked():
            return f"training one by one, since stacking failed: {event.detail}"
        case StackShrunk():
            return f"out of memory: training {event.at_once} at once from now on"
        case Failed():
            return f"stopped: {event.detail} ({event.code})"
        case _:
            return type(event).__name__.lower()
