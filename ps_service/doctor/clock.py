# SPDX-License-Identifier: Apache-2.0
"""Whether this machine's clock agrees with the database's, by which servers that share it go."""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from protocol.errors import FedSophiaError
from ps_service.doctor.finding import Finding, ok, warning
from ps_service.doctor.reach_postgres import cause_of, reached
from ps_service.settings import Settings

APART_S = 2.0
ASKED = 5
"""Times; the quickest answer counts."""


def check_clock(settings: Settings, utc_s: Callable[[], float] = time.time) -> Finding:
    """Whether they are more than two seconds apart."""
    url = settings.database_url.get_secret_value()
    if not url:
        return ok("the database is a file: this machine's clock is the only one")
    try:
        ahead_s = asyncio.run(_ahead_s(url, utc_s))
    except (FedSophiaError, DBAPIError) as met:
        return warning(f"not compared with the database's clock: {cause_of(met)}", "see the check `database`")
    apart = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"
    if abs(ahead_s) > APART_S:
        return warning(
            f"this machine's clock is {apart}",
            "let both machines keep time (chrony, systemd-timesyncd): the times of log files and of "
            "certificates are this machine's, all others the database's",
            ahead_s=ahead_s,
        )
    return ok(f"this machine's clock is {apart}", ahead_s=ahead_s)


async def _ahead_s(url: str, utc_s: Callable[[], float]) -> float:
    answers = []
    async with reached(url) as records, records.glance() as connection:
        for _ in range(ASKED):
            before_s = utc_s()
            database_ms = await records.now_ms(connection)
            after_s = utc_s()
            answers.append((after_s - before_s, (before_s + after_s) / 2 - database_ms / 1000))
    return round(min(answers)[1], 3)
