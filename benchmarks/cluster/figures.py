# SPDX-License-Identifier: Apache-2.0
"""What is made of what was seen at several servers: what one of each costs, what one server carries. PURE."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import mean, median

from benchmarks.cluster.idle import Admitted, Rested, Signed
from benchmarks.cluster.members import Listed
from benchmarks.cluster.observer import Spent
from benchmarks.cluster.uploads import Uploaded
from fed_sophia.output import Fields
from ps_service.pace import SHORTEST_WAIT

FULL = 0.7
"""Of one core: a server is not planned to be busier."""
LONGEST_WAIT_S = 600
"""What a large crowd is advised (`FED_SOPHIA_MAX_WAIT_S`)."""
MANY_ROWS = 1000
"""Of fewer, the lock was held for other things."""
MEAN_WAIT_S = LONGEST_WAIT_S * (1 + SHORTEST_WAIT) / 2


def per_unit(spent: Spent, units: int) -> Fields:
    """What one took, and how many a second there were if the lock were held all the time.

    Args: units: how many there were of what all of it was spent on.
    """
    of_one_ms = 1000 / max(1, units)
    ceiling = units / spent.lock_s if spent.lock_s else None
    return {
        "server_cpu_ms": round(sum(spent.servers_cpu_s) * of_one_ms, 3),
        "postgres_cpu_ms": round(spent.postgres_cpu_s * of_one_ms, 3),
        "store_cpu_ms": round(spent.store_cpu_s * of_one_ms, 3),
        "commits": round(spent.commits / max(1, units), 2),
        "transitions": round(spent.transitions / max(1, units), 2),
        "lock_ms": round(spent.lock_s * of_one_ms, 3),
        "lock_ms_per_transition": round(1000 * spent.lock_s / max(1, spent.transitions), 3),
        "lock_share": round(spent.lock_share, 4),
        "lock_queue": round(spent.queue, 3),
        "database_bytes": round(spent.grown_bytes / max(1, units)),
        "ceiling_per_s": None if ceiling is None else round(ceiling, 1),
    }


def signed(found: Signed) -> Fields:
    return {
        "replicas": found.replicas,
        "workers": found.workers,
        "per_s": round(found.workers / found.spent.seconds, 1),
        **per_unit(found.spent, found.workers),
    }


def rested(found: Rested) -> Fields:
    """Shares are of one core; a return's cost is without what a server costs to which nobody comes."""
    spent, alone = found.spent, found.alone
    cpu_each = [cpu_s / spent.seconds for cpu_s in spent.servers_cpu_s]
    alone_cpu = mean(alone.servers_cpu_s) / alone.seconds
    alone_postgres = alone.postgres_cpu_s / alone.seconds
    returns_per_s = found.returns / spent.seconds
    one_s = (sum(cpu_each) - alone_cpu * found.replicas) / returns_per_s if found.returns else 0.0
    postgres_s = (
        (spent.postgres_cpu_s / spent.seconds - alone_postgres) / returns_per_s if found.returns else 0.0
    )
    carried_per_s = (FULL - alone_cpu) / one_s if one_s > 0 else None
    return {
        "replicas": found.replicas,
        "waiting_each": list(found.waiting_each),
        "returns_per_s": round(returns_per_s, 2),
        "failures": found.failures,
        "server_cpu_each": [round(cpu, 4) for cpu in cpu_each],
        "server_cpu_sum": round(sum(cpu_each), 4),
        "server_cpu_alone": round(alone_cpu, 4),
        "server_cpu_ms_per_return": round(1000 * one_s, 3),
        "server_cpu_per_1000_workers": round(1000 * one_s / MEAN_WAIT_S, 5),
        "postgres_cpu": round(spent.postgres_cpu_s / spent.seconds, 4),
        "postgres_cpu_alone": round(alone_postgres, 4),
        "postgres_cpu_ms_per_return": round(1000 * postgres_s, 3),
        "postgres_cpu_per_1000_workers": round(1000 * postgres_s / MEAN_WAIT_S, 5),
        "bytes_per_worker_each": [
            round(grown / max(1, waiting))
            for grown, waiting in zip(found.grown_bytes_each, found.waiting_each, strict=True)
        ],
        "commits_per_s": round(spent.commits / spent.seconds, 1),
        "rows_per_s": round(spent.rows / spent.seconds, 1),
        "lock_ms_per_row": round(1000 * spent.lock_s / spent.rows, 3) if spent.rows >= MANY_ROWS else None,
        "transitions_per_s": round(spent.transitions / spent.seconds, 2),
        "lock_share": round(spent.lock_share, 4),
        "lock_share_alone": round(alone.lock_share, 4),
        "connections_each": round(found.connections_each, 1),
        "carries_returns_per_s": None if carried_per_s is None else round(carried_per_s, 1),
        "carries_workers": None if carried_per_s is None else round(carried_per_s * MEAN_WAIT_S),
    }


def admitted(found: Admitted) -> Fields:
    return {
        "replicas": found.replicas,
        "updates": found.updates,
        "updates_per_s": round(found.updates_per_s, 1),
        "server_cpu_each": [round(cpu_s / found.spent.seconds, 4) for cpu_s in found.spent.servers_cpu_s],
        **per_unit(found.spent, found.updates),
    }


def uploaded(found: Uploaded) -> Fields:
    one = per_unit(found.spent, found.updates)
    cpu_s = sum(found.spent.servers_cpu_s)
    took_s = sum(found.round_seconds_each)
    return {
        "replicas": found.replicas,
        "mb": found.plan.megabytes,
        "workers": found.plan.workers,
        "rounds": found.plan.rounds,
        "round_seconds": median(found.round_seconds_each),
        "mb_per_s": round(found.megabytes / took_s, 2),
        "server_cpu_ms_per_mb": round(1000 * cpu_s / found.megabytes, 3),
        "server_cpu_each": [round(each / found.spent.seconds, 4) for each in found.spent.servers_cpu_s],
        "carries_updates_per_s": round(FULL * found.updates / cpu_s, 2),
        "carries_mb_per_s": round(FULL * found.megabytes / cpu_s, 1),
        "aggregation_mb_per_s": round(found.megabytes / found.aggregation_s, 1),
        "commits_per_round": round(found.spent.commits / found.plan.rounds, 1),
        "transitions_per_round": round(found.spent.transitions / found.plan.rounds, 1),
        **one,
        "as_seen": asdict(found.spent),
    }


def listed(found: Listed) -> Fields:
    return {
        "members": found.members,
        "slots_s": round(found.slots_s, 3),
        "slots_us_each": round(1e6 * found.slots_s / found.members, 3),
        "silent_s": round(found.silent_s, 4),
        "silent_us_each": round(1e6 * found.silent_s / found.members, 3),
        "database_bytes": round(found.bytes_each),
    }


Cell = Callable[[Mapping[str, object]], str]


def number(name: str, form: str = ".1f", times: float = 1.0) -> Cell:
    """Shows one figure, or several with commas between."""

    def show(fields: Mapping[str, object]) -> str:
        value = fields[name]
        each = value if isinstance(value, list) else [value]
        return ", ".join(format(times * one, form) if isinstance(one, int | float) else "–" for one in each)

    return show


def columns(title: str, rows: Mapping[str, Cell], found: Sequence[Mapping[str, object]]) -> str:
    """A table in Markdown, as the docs have it: a figure a row, and a number of servers a column."""
    lines = [[title, *(_servers(fields) for fields in found)]]
    lines += [[name, *(cell(fields) for fields in found)] for name, cell in rows.items()]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _servers(fields: Mapping[str, object]) -> str:
    count = fields.get("replicas")
    return "" if count is None else "1 server" if count == 1 else f"{count} servers"
