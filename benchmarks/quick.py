# SPDX-License-Identifier: Apache-2.0
"""Whether a round costs more than it did when that was last accepted: within a minute on two cores.

    python -m benchmarks.quick             compare with benchmarks/baseline.json; exit code 1 for a regression
    python -m benchmarks.quick --accept    what is measured now is what later runs are compared with

Three small rows of `benchmarks.round_cost`. What is compared, and how far it may differ, is in
`benchmarks/baseline.py`. As root, all of it runs in a network of its own, whose `lo` counts the bytes; else
they are not judged. Linux only.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.baseline import BASELINE, Comparison, Costs, compare, complaints, figures_of, read, write
from benchmarks.ending import ending
from benchmarks.exchange.rounds import Plan
from benchmarks.peers.loopback import enter_private_network
from benchmarks.round_cost import measure_all
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.output import Output, output_for
from protocol.errors import InvalidUsage

PLANS = (Plan(25, 4, 4), Plan(1, 16, 6), Plan(100, 2, 3))


def conclude(comparisons: Sequence[Comparison], output: Output) -> int:
    """Say what was found; give the exit code."""
    output.rows("compared", lambda: _table(comparisons), [each.fields() for each in comparisons])
    wrong = complaints(comparisons)
    output.summary("\n".join(wrong) or "no round costs more than was accepted", {"complaints": wrong})
    return 1 if wrong else 0


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for heading in ("row", "figure"):
        table.add_column(heading, no_wrap=True)
    for heading in ("now", "accepted", "allowed", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in comparisons:
        accepted = "" if each.accepted is None else f"{each.accepted:.4g}"
        numbers = (f"{each.now:.4g}", accepted, each.allowed_text())
        table.add_row(each.row, each.figure.title, *numbers, each.verdict.value)
    return table


def _measured(output: Output, network_is_private: bool) -> Costs:
    """Raises: Interrupted, Internal."""
    rows = run_interruptibly(measure_all(PLANS, (), output))
    costs = {plan.name: figures_of(row) for plan, row in zip(PLANS, rows, strict=True)}
    if not network_is_private:
        for figures in costs.values():
            del figures["models_moved"]
        output.event("not-judged", "what was moved is not judged: others may use loopback; it takes root", {})
    return costs


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__.split("\n")[0])
    parser.add_argument("--accept", action="store_true", help="what is measured now is what is accepted")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    output = output_for(given.json)
    network_is_private = enter_private_network()
    with ending(output):
        if given.accept and not network_is_private:
            raise InvalidUsage("--accept takes root: others may use the loopback device, whose bytes count")
        accepted = {} if given.accept else read(BASELINE)
        costs = _measured(output, network_is_private)
    if given.accept:
        write(BASELINE, costs)
        output.summary(f"accepted, in {BASELINE}", {"accepted": costs})
        return 0
    return conclude(compare(costs, accepted), output)


if __name__ == "__main__":
    sys.exit(main())
