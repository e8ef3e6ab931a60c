# SPDX-License-Identifier: Apache-2.0
"""A scenario of attacks as a page of Markdown: what is left of the accuracy, attack by attack.

Two tables where both were tried: updates judged before they count, and all of them counted. The rows without
an attack stand in both.
"""

from fed_sophia.experiments.attacks import ATTACKS
from fed_sophia.experiments.notes import environments, setting
from fed_sophia.experiments.report import NOTHING, fixed_text, in_percent, markdown_table
from fed_sophia.experiments.scenario import Contender
from fed_sophia.experiments.table import Comparison, Row

_TITLES = {True: "Updates are judged before they count:", False: "All updates count:"}


def attack_page(comparison: Comparison) -> str:
    """The whole page: title, tables, notes."""
    contenders = comparison.scenario.algorithms
    judged = [
        value
        for value in (True, False)
        if any(_is_forged(each) and each.admission is value for each in contenders)
    ]
    parts = [f"# {comparison.scenario.title}"]
    for admission in judged:
        parts += [_TITLES[admission], attack_table(comparison, admission=admission)]
    return "\n\n".join([*parts, "\n".join(f"- {sentence}" for sentence in _notes(comparison))]) + "\n"


def attack_table(comparison: Comparison, *, admission: bool) -> str:
    """Final test accuracy: a row for each attack, a column for each algorithm as the file calls it."""
    rows = {row.label: row for row in comparison.rows}
    contenders = [
        each for each in comparison.scenario.algorithms if not _is_forged(each) or each.admission is admission
    ]
    groups = list(dict.fromkeys(each.group for each in contenders))
    found = {(each.group, each.attack): rows.get(each.label) for each in contenders}
    body = [
        [_row_text(comparison, attack), *(_cell(found.get((group, attack))) for group in groups)]
        for attack in dict.fromkeys(each.attack for each in contenders)
    ]
    return markdown_table(["attack", *groups], body)


def _is_forged(contender: Contender) -> bool:
    return contender.attack is not None and ATTACKS[contender.attack].sends


def _row_text(comparison: Comparison, attack: str | None) -> str:
    if attack is None:
        return "none"
    if ATTACKS[attack].sends:
        return attack
    return f"none, {comparison.scenario.workers - comparison.scenario.attackers} workers"


def _cell(row: Row | None) -> str:
    if row is None:
        return NOTHING
    if len(row.failures) == row.accuracy.count:
        return "ruined"
    ruined = f" ({len(row.failures)}/{row.accuracy.count} ruined)" if row.failures else ""
    return fixed_text(in_percent(row.accuracy), decimals=1) + ruined


def _notes(comparison: Comparison) -> list[str]:
    scenario = comparison.scenario
    attacks = dict.fromkeys(
        each.attack for each in scenario.algorithms if each.attack is not None and _is_forged(each)
    )
    return [
        setting(scenario),
        f"Test accuracy in %, the mean of the last {scenario.final_evaluations} evaluations; ± is the "
        f"standard deviation over the seeds (n − 1), of which there are {_seeds(comparison)}. ruined: the "
        "model or its loss was no longer finite; that counts as 0.",
        f"Where there is an attack the last {scenario.attackers} workers are dishonest, and all do the same:",
        *(f"{attack}: {ATTACKS[attack].summary}" for attack in attacks),
        *environments(comparison),
    ]


def _seeds(comparison: Comparison) -> str:
    counts = sorted({row.accuracy.count for row in comparison.rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
