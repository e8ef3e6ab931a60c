# SPDX-License-Identifier: Apache-2.0
"""A whole run through a network that does everything a network can do wrong, and what it ends with."""

from pathlib import Path

import pytest

from tests.system.conftest import ServerProcess
from tests.system.network.conftest import ALGORITHMS
from tests.system.network.faults import UNHARMED, Behind, Fault, Kind, Stall, Twice, shuffled
from tests.system.network.federation import (
    ASSIGNMENT,
    DECLARE,
    ENROL,
    TENSORS,
    UPLOAD,
    everything_counts_once,
    federate,
)
from tests.system.network.mistreating_proxy import MistreatingProxy

MENUS = {
    ENROL: [
        Fault(lose_answer=True),
        Fault(cut_request_at=40),
        Fault(cut_answer_at=10),
        Fault(twice=Twice.AT_ONCE_SECOND_HEARD),
        *[UNHARMED] * 4,
    ],
    ASSIGNMENT: [
        Fault(lose_answer=True),
        Fault(cut_answer_at=50),
        Fault(delay_s=0.1),
        Fault(twice=Twice.AT_ONCE_FIRST_HEARD),
        *[UNHARMED] * 4,
    ],
    TENSORS: [
        Fault(lose_answer=True),
        Fault(cut_answer_at=0),
        Fault(cut_answer_at=9_000),
        Fault(down_bytes_per_s=100_000),
        *[UNHARMED] * 4,
    ],
    DECLARE: [
        Fault(cut_request_at=40),
        Fault(lose_answer=True),
        Fault(cut_answer_at=10),
        Fault(twice=Twice.IN_A_ROW),
        Fault(twice=Twice.AT_ONCE_FIRST_HEARD),
        Fault(sender_gone=True, behind=Behind(UPLOAD)),
        Fault(replay=Behind(DECLARE, more=8, at_most_s=60)),
        *[UNHARMED] * 4,
    ],
    UPLOAD: [
        Fault(cut_request_at=0),
        Fault(cut_request_at=9_000),
        Fault(lose_answer=True),
        Fault(cut_answer_at=20),
        Fault(twice=Twice.IN_A_ROW),
        Fault(twice=Twice.AT_ONCE_FIRST_HEARD),
        Fault(twice=Twice.AT_ONCE_SECOND_HEARD),
        Fault(behind=Behind(UPLOAD)),
        Fault(sender_gone=True, behind=Behind(UPLOAD)),
        Fault(up_bytes_per_s=100_000),
        # early, so that what is left of a resumed upload is stalled too
        Fault(stall=Stall(after_bytes=500, for_s=0.3)),
        Fault(delay_s=0.1),
        Fault(replay=Behind(UPLOAD, more=8, at_most_s=60)),
        UNHARMED,
    ],
}

AT_LEAST = {
    Kind.DELAYED: 3,
    Kind.OVERTAKEN: 2,
    Kind.REQUEST_CUT: 4,
    Kind.ANSWER_LOST: 8,
    Kind.ANSWER_CUT: 8,
    Kind.SENDER_GONE: 2,
    Kind.SLOW_UP: 1,
    Kind.SLOW_DOWN: 2,
    Kind.STALLED: 1,
    Kind.TWICE_IN_A_ROW: 2,
    Kind.TWICE_AT_ONCE: 6,
    Kind.REPLAYED: 2,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_run_through_a_storm_ends_with_the_digest_of_the_undisturbed_one(
    server: ServerProcess, tmp_path: Path, algorithm: str, undisturbed: dict[str, dict[str, str]]
) -> None:
    async with MistreatingProxy(server.port, shuffled(1, MENUS)) as proxy:
        stormy = await federate(server, proxy.url, tmp_path / "stormy", algorithm)
    assert stormy.tensors == undisturbed[algorithm]
    assert {kind for kind in Kind if proxy.applied[kind] < AT_LEAST[kind]} == set()
    await everything_counts_once(server, proxy, stormy)
