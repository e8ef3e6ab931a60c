# SPDX-License-Identifier: Apache-2.0
"""What a run has shown, in numbers, and clean and disturbed runs side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.disturbed.run import Outcome
from benchmarks.disturbed.settings import TARGETS
from fed_sophia.demo_summary import rounds_to
from fed_sophia.output import Fields
from protocol.messages import RoundStatus, RoundSummary

CLEAN = "clean"


@dataclass(frozen=True)
class Figures:
    """One run in numbers."""

    setting: str
    case: str
    seed: int
    rounds_to: Mapping[str, int | None]
    """{accuracy: the first round whose version had it}; abandoned rounds count as rounds."""
    committed: int
    abandoned: int
    test_accuracy: float | None
    round_s: float
    """Median length of a committed round."""
    outcomes: Mapping[str, int]
    refused: Mapping[str, int]
    refused_of_liars: Mapping[str, int]
    lies: Mapping[str, int]
    deaths: Mapping[str, int]
    receipts: int
    counted: int
    not_counted: int
    violations: Sequence[str]
    ended: str

    def fields(self) -> Fields:
        return asdict(self)

    def sentence(self) -> str:
        reached = ", ".join(
            f"{accuracy} {'not reached' if number is None else f'in round {number}'}"
            for accuracy, number in self.rounds_to.items()
        )
        return (
            f"{self.setting}, {self.case}, seed {self.seed}: {reached}; {self.abandoned} rounds abandoned, "
            f"{self.round_s:.1f} s a round, {self.receipts} receipts, {len(self.violations)} violations"
        )


def figures_of(setting: str, case: str, seed: int, outcome: Outcome) -> Figures:
    """Sum a run up."""
    rounds, record, audit = outcome.rounds, outcome.record, outcome.audit
    committed = [round_ for round_ in rounds if round_.status is RoundStatus.COMMITTED]
    admitted, declined = sum(r.admitted for r in rounds), sum(r.declined for r in rounds)
    invited = sum(r.invited for r in rounds)
    accuracies = [round_.metrics["test_accuracy"] for round_ in rounds if "test_accuracy" in round_.metrics]
    return Figures(
        setting=setting,
        case=case,
        seed=seed,
        rounds_to={f"{target:.0%}": rounds_to(target, rounds) for target in TARGETS},
        committed=len(committed),
        abandoned=sum(round_.status is RoundStatus.ABANDONED for round_ in rounds),
        test_accuracy=accuracies[-1] if accuracies else None,
        round_s=round(median(map(length_s, committed)), 2) if committed else 0.0,
        outcomes={
            "invited": invited,
            "admitted": admitted,
            "declined": declined,
            "neither": invited - admitted - declined,
        },
        refused=dict(record.refusals),
        refused_of_liars=dict(record.refusals_of_liars),
        lies=dict(record.lies),
        deaths=dict(record.deaths),
        receipts=audit.held,
        counted=audit.counted,
        not_counted=sum(audit.not_counted.values()),
        violations=tuple(audit.violations),
        ended=f"{outcome.run.status.value}: {outcome.run.reason}",
    )


def length_s(round_: RoundSummary) -> float:
    """From its opening to its end."""
    assert round_.ended_ms is not None
    return (round_.ended_ms - round_.opened_ms) / 1000


def table(found: Iterable[Figures], targets: Sequence[float]) -> str:
    """A Markdown table: a row for every setting and seed, clean and disturbed side by side."""
    names = [f"{target:.0%}" for target in targets]
    clean = {(each.setting, each.seed): each for each in found if each.case == CLEAN}
    headings = [f"rounds to {name.replace('%', ' %')}" for name in names]
    lines = [
        "| setting | seed | " + " | ".join(headings) + " | abandoned | s a round |",
        "|---" * (len(headings) + 4) + "|",
    ]
    for each in sorted(found, key=lambda each: (each.setting, each.seed)):
        if each.case == CLEAN:
            continue
        base = clean[each.setting, each.seed]
        cells = [_ratio(base.rounds_to[name], each.rounds_to[name]) for name in names]
        lines.append(
            f"| {each.setting} | {each.seed} | {' | '.join(cells)} | {base.abandoned} → {each.abandoned} "
            f"| {base.round_s:.1f} → {each.round_s:.1f} |"
        )
    return "\n".join(lines)


def _ratio(clean: int | None, disturbed: int | None) -> str:
    if clean is None or disturbed is None:
        return f"{clean or '–'} → {disturbed or '–'}"
    return f"{clean} → {disturbed} (× {disturbed / clean:.2f})"
