# SPDX-License-Identifier: Apache-2.0
"""Rounds with a million devices that come and go: the server's own decisions, and a simulated population.

    python -m benchmarks.population                               the table of docs/explanation/reliability.md
    python -m benchmarks.population --devices 20000 --cohort 200  the same in small, in seconds
    python -m benchmarks.population --regions one                 everybody sleeps at the same time

Real are the machines that open rounds and decide them; simulated are the clock, the devices and all that lies
between: transfers, records and the aggregation cost nothing but their stated time.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from benchmarks.populated.costs import peak_rss_mb
from benchmarks.populated.figures import Figures, figures_of, table
from benchmarks.populated.policies import COMPARED, POLICIES, spec_for
from benchmarks.populated.population import DAY_MS, HOUR_MS, REGIONS, Population
from benchmarks.populated.simulation import Simulation
from fed_sophia.interruptible import Interrupted, run_interruptibly
from fed_sophia.output import Output, output_for

DEVICES = 1_000_000
COHORT = 10_000
HOURS = 24.0
BEGIN_MS = DAY_MS
"""The population lives through a day before the first round, so that it is in its rhythm."""


async def measure(
    policies: Sequence[str], devices: int, cohort: int, hours: float, seed: int, regions: str, output: Output
) -> list[Figures]:
    """Figures of every policy with the same population and the same days."""
    output.event("population-begun", f"{devices} devices live through a day", {"rss_mb": peak_rss_mb()})
    at_begin = Population(devices, seed, regions)
    at_begin.advance(BEGIN_MS)
    at_begin.times_present[:] = 0
    output.event("population-ready", "", {"rss_mb": peak_rss_mb()})
    found = []
    for policy in policies:
        population = at_begin.copy()
        simulation = Simulation(spec_for(policy, cohort, seed, hours), population, seed, BEGIN_MS)
        until_ms = BEGIN_MS
        while not simulation.run.status.ended:
            until_ms += HOUR_MS
            simulation.run_until(until_ms)
            await asyncio.sleep(0)  # an hour is computed in seconds: signals are heard in between
        figures = figures_of(policy, hours, simulation, population, peak_rss_mb())
        output.event("policy-measured", figures.sentence(), figures.fields())
        found.append(figures)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.population", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--devices", type=int, default=DEVICES, help="enrolled devices")
    parser.add_argument("--cohort", type=int, default=COHORT, help="updates that a round collects")
    parser.add_argument("--hours", type=float, default=HOURS, help="simulated time, from midnight UTC")
    parser.add_argument("--seed", type=int, default=0, help="of the population, the run and all chance")
    parser.add_argument(
        "--policies", nargs="+", choices=POLICIES, default=list(COMPARED), help="how rounds are held"
    )
    parser.add_argument("--regions", choices=REGIONS, default="world", help="where the devices are")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    output = output_for(given.json)
    measuring = measure(
        given.policies, given.devices, given.cohort, given.hours, given.seed, given.regions, output
    )
    try:
        found = run_interruptibly(measuring)
    except Interrupted as interrupted:
        return interrupted.exit_code
    output.summary(table(found), {"policies": [figures.fields() for figures in found]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
