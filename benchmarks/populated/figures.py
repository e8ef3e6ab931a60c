# SPDX-License-Identifier: Apache-2.0
"""What a run with a population has shown, in numbers, and the policies side by side."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.populated.collection import Held, Standing
from benchmarks.populated.population import DAY_MS, HOUR_MS, Population
from benchmarks.populated.simulation import Simulation
from fed_sophia.output import Fields
from protocol.messages import RoundStatus

FATES = ("used", "declined", "lost", "late", "over_target", "abandoned")
"""What became of the work of a device that was invited."""

OUT_OF_RUN = "the run's time was over"
"""No failure: the span that is simulated ends somewhere."""


@dataclass(frozen=True)
class Figures:
    """One policy in numbers; times are simulated, but for `costs`."""

    policy: str
    ended: str
    committed: int
    abandoned: Mapping[str, int]
    """{reason, its numbers left out: rounds}."""
    rounds_an_hour: float
    waited_s: float
    """In which no round was open for want of workers."""
    round_s: Mapping[str, float]
    """Of committed rounds, from their opening to the next version."""
    round_s_by_hour: Mapping[int, float]
    """{hour of the day, UTC: median of the committed rounds that were opened in it}."""
    updates_a_round: float
    deadline_s: Mapping[str, float]
    eligible: Mapping[str, int]
    devices: Mapping[str, int]
    """{fate: invited devices}."""
    work_s: Mapping[str, float]
    """{fate: device-seconds}."""
    after_close_s: float
    """Device-seconds of work for rounds that were over."""
    fairness: Mapping[str, Mapping[str, float]]
    """{tenth of the devices: its shares, of all, in percent}."""
    costs: Mapping[str, float]
    peak_rss_mb: float
    """Of the process, so far."""

    @property
    def failed(self) -> int:
        """Rounds abandoned, but for the one that the run's end cut off."""
        return sum(rounds for reason, rounds in self.abandoned.items() if reason != OUT_OF_RUN)

    @property
    def drop_out(self) -> float:
        """Share of the invited that went while their round waited for them, and were missed."""
        return self.devices["lost"] / max(1, sum(self.devices.values()))

    def wasted(self, of: Mapping[str, float]) -> float:
        """Share that was in vain."""
        return 1 - of["used"] / max(1, sum(of.values()))

    def fields(self) -> Fields:
        return asdict(self)

    def sentence(self) -> str:
        return (
            f"{self.policy}: {self.committed} versions, {self.failed} rounds abandoned, "
            f"{self.round_s['median']:.0f} s a round, {self.drop_out:.1%} of the invited lost, "
            f"{self.wasted(self.work_s):.0%} of the work in vain, "
            f"{self.costs['round_step_mean_us']:.1f} µs a round's event, "
            f"{self.costs['opening_median_ms']:.0f} ms to open a round, peak RSS {self.peak_rss_mb:.0f} MB; "
            f"{self.ended}"
        )


def figures_of(
    policy: str, hours: float, simulation: Simulation, population: Population, rss_mb: float
) -> Figures:
    """Sum a run up. Args: population: as the run has left it."""
    held = simulation.held
    committed = [each for each in held if each.round.status is RoundStatus.COMMITTED]
    abandoned = [each for each in held if each.round.status is RoundStatus.ABANDONED]
    eligible = [number for _, number in simulation.eligible]
    run = simulation.run
    return Figures(
        policy=policy,
        ended=f"{run.status.value}: {run.reason}",
        committed=len(committed),
        abandoned=dict(Counter(_reason(each) for each in abandoned)),
        rounds_an_hour=round(len(committed) / hours, 2),
        waited_s=simulation.waited_ms / 1000,
        round_s=_spread([_length_s(each) for each in committed]),
        round_s_by_hour=_by_hour(committed),
        updates_a_round=round(sum(each.round.admitted for each in committed) / max(1, len(committed)), 1),
        deadline_s=_spread([(each.round.deadline_ms - each.round.opened_ms) / 1000 for each in held]),
        eligible={"min": min(eligible), "max": max(eligible)},
        devices=_by_fate(held, lambda each: each.devices),
        work_s=_by_fate(held, lambda each: each.spent_s),
        after_close_s=round(sum(each.after_close_s for each in held)),
        fairness=_fairness(population),
        costs=simulation.costs.fields(),
        peak_rss_mb=rss_mb,
    )


def _reason(each: Held) -> str:
    """Why the round was abandoned, without the numbers of this one."""
    return OUT_OF_RUN if each.round.at_last_deadline else re.sub(r"\d+", "N", each.round.reason or "")


def fate(each: Held, standing: Standing) -> str:
    """What became of the work of devices that stood so when their round was closed."""
    match standing:
        case Standing.ADMITTED:
            return "used" if each.round.status is RoundStatus.COMMITTED else "abandoned"
        case Standing.DECLINED:
            return "declined"
        case Standing.LOST:
            return "lost"
        case Standing.ASKED:
            return "over_target" if each.round.admitted >= each.round.target else "late"


def table(found: Iterable[Figures]) -> str:
    """A Markdown table, a row for every policy.

    Of a tenth of the devices: its share of the updates that counted, and of the time that devices are there.
    """
    lines = [
        "| policy | versions an hour | updates in each | s a round: median (p10–p90) "
        "| median by hour of the day | abandoned | invited in vain | device time in vain "
        "| late, over target, lost | slowest tenth | least available tenth |",
        "|---" * 11 + "|",
    ]
    for each in found:
        round_s, hourly_s, work_s = each.round_s, each.round_s_by_hour.values(), each.work_s
        all_s = max(1.0, sum(work_s.values()))
        in_vain = (f"{work_s[name] / all_s:.1%}" for name in ("late", "over_target", "lost"))
        lines.append(
            f"| {each.policy} | {each.rounds_an_hour:.1f} | {each.updates_a_round:,.0f} "
            f"| {round_s['median']:.0f} ({round_s['p10']:.0f}–{round_s['p90']:.0f}) "
            f"| {min(hourly_s, default=0):.0f}–{max(hourly_s, default=0):.0f} | {each.failed} "
            f"| {each.wasted(each.devices):.0%} | {each.wasted(work_s):.0%} | {', '.join(in_vain)} "
            f"| {_share_text(each.fairness['slowest'])} | {_share_text(each.fairness['least_available'])} |"
        )
    return "\n".join(lines)


def _share_text(shares: Mapping[str, float]) -> str:
    return f"{shares['updates']:.1f} ({shares['available']:.1f}) %"


def _by_fate(held: Iterable[Held], amounts_of: Callable[[Held], Mapping[Standing, float]]) -> dict[str, int]:
    found = dict.fromkeys(FATES, 0.0)
    for each in held:
        for standing, amount in amounts_of(each).items():
            found[fate(each, standing)] += amount
    return {name: round(amount) for name, amount in found.items()}


def _by_hour(committed: Iterable[Held]) -> dict[int, float]:
    lengths_s = defaultdict(list)
    for each in committed:
        lengths_s[each.round.opened_ms % DAY_MS // HOUR_MS].append(_length_s(each))
    return {hour: round(float(np.median(lengths_s[hour])), 1) for hour in sorted(lengths_s)}


def _length_s(each: Held) -> float:
    assert each.round.ended_ms is not None
    return (each.round.ended_ms - each.round.opened_ms) / 1000


def _spread(values: Sequence[float]) -> dict[str, float]:
    p10, median, p90 = np.percentile(values, (10, 50, 90)).tolist() if values else (0.0, 0.0, 0.0)
    ends = (values[0], values[-1], max(values)) if values else (0.0, 0.0, 0.0)
    names = ("median", "p10", "p90", "first", "last", "max")
    return {name: round(value, 1) for name, value in zip(names, (median, p10, p90, *ends), strict=True)}


def _fairness(population: Population) -> dict[str, dict[str, float]]:
    tenths = {
        "slowest": population.least(-population.work_ms),
        "fastest": population.least(population.work_ms),
        "least_available": population.least(population.sessions_a_day),
        "most_available": population.least(-population.sessions_a_day),
    }
    counts = {
        "available": population.times_present,
        "invitations": population.times_invited,
        "updates": population.times_counted,
    }
    return {
        tenth: {
            name: round(100 * float(count[slots].sum() / max(1, count.sum())), 2)
            for name, count in counts.items()
        }
        for tenth, slots in tenths.items()
    }
