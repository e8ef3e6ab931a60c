# SPDX-License-Identifier: Apache-2.0
"""Follows a run to its end, by its events."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing

from fed_sophia.operator_client import OperatorClient
from fed_sophia.rounds_view import RoundsView
from protocol.messages import RoundStatus, RoundSummary, RunSummary, parse

MetricsWait = Callable[[Sequence[RoundSummary]], float]
_METRICS_POLL_S = 0.2


async def follow(
    client: OperatorClient, run_id: str, view: RoundsView, metrics_wait_s: MetricsWait
) -> tuple[RunSummary, tuple[RoundSummary, ...]]:
    """Show every round of the run as it changes; give the run and its rounds once it has ended.

    Args:
        metrics_wait_s: how long to wait, after the end, for an evaluator's word on the last version,
            given the rounds there were.
    """
    known: dict[int, RoundSummary] = {}
    async with aclosing(client.events(run_id)) as events:
        async for event in events:
            changed: tuple[RoundSummary, ...]
            if event.kind == "round":
                changed = (parse(RoundSummary, event.data),)
            elif event.kind == "metrics":
                changed = await client.rounds(run_id, after=_first_unmeasured(known) - 1)
            elif event.kind == "run" and parse(RunSummary, event.data).status.ended:
                break  # the stream stays open for late metrics; those we need are asked for below
            else:
                continue
            known |= {round_.round: round_ for round_ in changed}
            view.show(_in_order(known))
    run = await client.run(run_id)
    rounds = await _measured_rounds(client, run, metrics_wait_s)
    view.show(rounds, finished=True)
    return run, rounds


async def _measured_rounds(
    client: OperatorClient, run: RunSummary, metrics_wait_s: MetricsWait
) -> tuple[RoundSummary, ...]:
    rounds = await client.rounds(run.run_id)
    for _ in range(round(metrics_wait_s(rounds) / _METRICS_POLL_S)):
        if all("test_accuracy" in round_.metrics for round_ in rounds if round_.version == run.version):
            break
        await asyncio.sleep(_METRICS_POLL_S)
        rounds = await client.rounds(run.run_id)
    return rounds


def _first_unmeasured(known: dict[int, RoundSummary]) -> int:
    return min(
        (
            number
            for number, round_ in known.items()
            if round_.status is RoundStatus.COMMITTED and "test_accuracy" not in round_.metrics
        ),
        default=1,
    )


def _in_order(known: dict[int, RoundSummary]) -> tuple[RoundSummary, ...]:
    return tuple(known[number] for number in sorted(known))
